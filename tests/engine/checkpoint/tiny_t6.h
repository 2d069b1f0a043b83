// A whole T6 checkpoint of a few kilobytes, as files' bytes: two layers, two heads of four, ranks (2, 1, 1).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/model/t6_shapes.h"
#include "tests/engine/checkpoint/torch_zip_writer.h"

namespace t6::testing {

using Shapes = std::map<std::string, std::vector<int64_t>>;

inline T6Sizes TinySizes() {
  T6Sizes s;
  s.vocab_size = 10;
  s.n_layers = 2;
  s.width = 6;
  s.mlp_width = OfficialMlpWidth(s.width);
  s.n_heads = 2;
  s.head_dim = 4;
  s.rank_q = 2;
  s.rank_k = s.rank_v = 1;
  return s;
}

inline std::string TinyConfig() {
  return R"({"vocab_size": 10, "n_layer": 2, "n_head": 2, "head_dim": 4, "n_embd": 6, "rank": 1, "q_rank": 2,
             "block_size": 32, "using_groupnorm": false, "eos_token_id": 3, "model_type": "gpt2"})";
}

inline size_t CountOf(const std::vector<int64_t>& shape) {
  size_t n = 1;
  for (const int64_t d : shape) n *= static_cast<size_t>(d);
  return n;
}

// Float32 tensors of these shapes; each number is `value`.
inline std::string BinOf(const Shapes& shapes, float value = 0.5f) {
  std::vector<TensorSpec> tensors;
  std::vector<std::string> storages;
  for (const auto& [name, shape] : shapes) {
    tensors.push_back(WholeTensor(name, shape, std::to_string(storages.size())));
    storages.push_back(Floats(std::vector<float>(CountOf(shape), value)));
  }
  return WriteZip(TorchMembers(StateDict(tensors), storages), {.zip64 = true, .descriptors = true});
}

inline std::string SafetensorsOf(const Shapes& shapes, float value = 0.5f) {
  std::string header, data;
  for (const auto& [name, shape] : shapes) {
    const size_t begin = data.size();
    data += Floats(std::vector<float>(CountOf(shape), value));
    header += fmt::format(R"({}"{}":{{"dtype":"F32","shape":{},"data_offsets":[{},{}]}})",
                          header.empty() ? "" : ",", name,
                          TensorView{nullptr, DType::kF32, shape}.ShapeString(), begin, data.size());
  }
  std::string file;
  AppendNumber<uint64_t>(file, header.size() + 2);
  return file + "{" + header + "}" + data;
}

}  // namespace t6::testing

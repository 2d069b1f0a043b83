// One decode row over factors from a file, through the GPU's store and attention: for
// bench/attention_error.py.
//   attention_factors_cuda [--portable] IN OUT
// IN: int32 h, d, R_Q, R, rotary_dim, n; float32 qkv [n][elements], cos [n][rotary_dim / 2], sin the same.
// OUT: float32 [h][d], the attention of token n - 1.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "engine/backend/cuda/cuda_memory.h"
#include "engine/backend/cuda/tpa_attention.h"

namespace t6::bench {
namespace {

void Must(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "attention_factors_cuda: %s\n", std::string(MessageOf(status)).c_str());
  std::exit(1);
}

struct Problem {
  AttentionSpec spec;
  int n = 0;
  std::vector<float> qkv, cos, sin;
};

std::vector<float> ReadFloats(std::ifstream& file, size_t n) {
  std::vector<float> x(n);
  file.read(reinterpret_cast<char*>(x.data()), static_cast<std::streamsize>(n * sizeof(float)));
  return x;
}

Problem ReadProblem(const char* path) {
  std::ifstream file(path, std::ios::binary);
  int32_t header[6] = {};
  file.read(reinterpret_cast<char*>(header), sizeof header);
  Problem p;
  p.spec.n_heads = header[0], p.spec.head_dim = header[1];
  p.spec.q.rank = header[2], p.spec.full_query = header[2] == 0;
  p.spec.k.rank = p.spec.v.rank = header[3];
  p.spec.rotary_dim = header[4], p.n = header[5];
  const size_t n = p.n, angles = n * (p.spec.rotary_dim / 2);
  p.qkv = ReadFloats(file, n * p.spec.qkv_elements());
  p.cos = ReadFloats(file, angles), p.sin = ReadFloats(file, angles);
  if (!file) Must(InvalidArgument("{} ends early", path));
  return p;
}

void Upload(const std::vector<float>& from, cuda::DeviceMemory* to) {
  Must(to->Allocate(from.size() * sizeof(float)));
  Must(cuda::FromCuda(
      cudaMemcpy(to->as<void>(), from.data(), from.size() * sizeof(float), cudaMemcpyHostToDevice), "copy"));
}

// The plan of the last n_rows tokens of one sequence, its pages in reversed order.
StepPlan MakePlan(int n, int n_rows) {
  StepPlan plan;
  plan.Clear();
  const int n_pages = (n + kPageTokens - 1) / kPageTokens;
  plan.page_ids.resize(n_pages);
  std::iota(plan.page_ids.rbegin(), plan.page_ids.rend(), 0);
  for (int t = n - n_rows; t < n; ++t) {
    plan.token_ids.push_back(0), plan.positions.push_back(t);
    plan.slots.push_back(plan.page_ids[t / kPageTokens] * kPageTokens + t % kPageTokens);
  }
  plan.row_begin.push_back(n_rows), plan.context_len.push_back(n), plan.page_begin.push_back(n_pages);
  return plan;
}

std::vector<float> Attend(const Problem& p, bool portable) {
  const AttentionSpec& spec = p.spec;
  cuda::DeviceMemory qkv, cos, sin, pages, out;
  Upload(p.qkv, &qkv), Upload(p.cos, &cos), Upload(p.sin, &sin);
  const PageLayout layout(spec, DType::kBF16);
  const int n_pages = (p.n + kPageTokens - 1) / kPageTokens;
  Must(pages.Allocate(n_pages * layout.page_bytes()));
  std::vector<float> result(static_cast<size_t>(spec.n_heads) * spec.head_dim);
  Must(out.Allocate(result.size() * sizeof(float)));

  cuda::TpaAttentionOptions options;
  options.force_portable = portable;
  auto attention = cuda::TpaAttention::Make(std::move(options));
  Must(attention.status());
  Must((*attention)
           ->Reserve({.max_rows = p.n, .max_sequences = 1, .max_outputs = 1, .max_context = p.n}, spec));
  const LayerPages layer{pages.as<uint8_t>(), &layout, n_pages};
  const StepPlan all = MakePlan(p.n, p.n), last = MakePlan(p.n, 1);
  Must((*attention)->Plan(all, spec));
  StoreFactorsParams store{
      .spec = &spec, .qkv = qkv.as<float>(), .cos = cos.as<float>(), .sin = sin.as<float>(), .pages = layer};
  Must((*attention)->Store(store));
  Must((*attention)->Plan(last, spec));
  TpaAttentionParams run{.spec = &spec,
                         .qkv = qkv.as<float>() + static_cast<size_t>(p.n - 1) * spec.qkv_elements(),
                         .cos = cos.as<float>(),
                         .sin = sin.as<float>(),
                         .pages = layer,
                         .out = out.as<float>()};
  Must((*attention)->Run(run));
  Must(cuda::FromCuda(
      cudaMemcpy(result.data(), out.as<void>(), result.size() * sizeof(float), cudaMemcpyDeviceToHost),
      "attention"));
  return result;
}

}  // namespace
}  // namespace t6::bench

int main(int argc, char** argv) {
  const bool portable = argc > 1 && std::strcmp(argv[1], "--portable") == 0;
  if (argc != 3 + portable) {
    std::fprintf(stderr, "usage: attention_factors_cuda [--portable] IN OUT\n");
    return 2;
  }
  const auto problem = t6::bench::ReadProblem(argv[1 + portable]);
  const std::vector<float> out = t6::bench::Attend(problem, portable);
  std::ofstream(argv[2 + portable], std::ios::binary)
      .write(reinterpret_cast<const char*>(out.data()),
             static_cast<std::streamsize>(out.size() * sizeof(float)));
  return 0;
}

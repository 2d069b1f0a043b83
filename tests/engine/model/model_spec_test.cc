#include "engine/model/model_spec.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "tests/engine/checkpoint/tiny_t6.h"
#include "tests/support/temporary_folder.h"

namespace t6 {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::Shapes;

Shapes TinyShapes() { return T6Shapes(testing::TinySizes()); }

StatusOr<ModelSpec> Read(const fs::path& folder, const ModelOptions& options = {}) {
  T6_ASSIGN_OR_RETURN(const auto tensors, OpenCheckpoint(folder));
  return ReadModelSpec(folder, *tensors, options);
}

// What comes of these tensors beside this config.
StatusOr<ModelSpec> Read(const Shapes& shapes, const std::string& config = testing::TinyConfig(),
                         const ModelOptions& options = {}) {
  const testing::TemporaryFolder folder;
  folder.Write("model.safetensors", testing::SafetensorsOf(shapes));
  folder.Write("config.json", config);
  return Read(folder.path(), options);
}

std::string ErrorOf(const StatusOr<ModelSpec>& spec) {
  return spec.ok() ? "read" : std::string(MessageOf(spec.status()));
}

// TinyConfig with `key` set to `json`, or without it.
std::string Config(const std::string& key, const std::string& json = "") {
  std::string config = testing::TinyConfig();
  const size_t at = config.find("\"" + key + "\"");
  if (at != std::string::npos) {
    const size_t end = config.find_first_of(",}", at);
    config.erase(at, end + (config[end] == ',' ? 1 : 0) - at);
  }
  if (!json.empty()) config.insert(1, "\"" + key + "\": " + json + ", ");
  return config;
}

TEST(ModelSpec, DerivesAndChecksSizes) {
  const auto spec = Read(TinyShapes());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->variant, "T6");
  EXPECT_EQ(spec->vocab_size, 10);
  EXPECT_EQ(spec->n_layers, 2);
  EXPECT_EQ(spec->width, 6);
  EXPECT_EQ(spec->mlp_width, 16);
  EXPECT_EQ(spec->block_size, 32);
  EXPECT_EQ(spec->attention.n_heads, 2);
  EXPECT_EQ(spec->attention.head_dim, 4);
  EXPECT_EQ(spec->attention.q.rank, 2);
  EXPECT_EQ(spec->attention.k.rank, 1);
  EXPECT_EQ(spec->attention.v.rank, 1);
  EXPECT_EQ(spec->attention.rotary_dim, 4);
  EXPECT_FALSE(spec->attention.head_norm);
  EXPECT_TRUE(spec->rope_bf16);
  EXPECT_TRUE(spec->tied_head);
  EXPECT_THAT(spec->generation.eos_token_ids, ElementsAre(3));
  EXPECT_FALSE(spec->generation.temperature.has_value());
}

TEST(ModelSpec, NeedsOnlyWhatShapesCannotTell) {
  const auto spec = Read(TinyShapes(), R"({"block_size": 7})");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->attention.n_heads, 2);
  EXPECT_EQ(spec->attention.q.rank, 2);
  EXPECT_EQ(spec->vocab_size, 10);
  EXPECT_THAT(ErrorOf(Read(TinyShapes(), Config("block_size"))), HasSubstr("no \"block_size\""));
  EXPECT_TRUE(Read(TinyShapes(), Config("block_size"), {"", {{"block_size", "99"}}}).ok());
}

TEST(ModelSpec, NamesKeysThatDisagreeWithTheShapes) {
  for (const std::string key : {"vocab_size", "n_layer", "n_head", "head_dim", "n_embd", "rank", "q_rank"}) {
    EXPECT_THAT(ErrorOf(Read(TinyShapes(), Config(key, "8"))),
                AllOf(HasSubstr("\"" + key + "\" is 8"), HasSubstr("shapes say")));
  }
  EXPECT_THAT(ErrorOf(Read(TinyShapes(), Config("using_groupnorm", "true"))),
              HasSubstr("\"using_groupnorm\" is true"));
}

TEST(ModelSpec, NamesKeysOfWrongTypeOrSize) {
  for (const std::string key :
       {"vocab_size", "n_layer", "n_head", "head_dim", "n_embd", "rank", "q_rank", "block_size"}) {
    for (const std::string value : {"0", "-1", "2.5", "\"2\"", "[2]", "{}", "true", "1e30",
                                    "99999999999999999999", "9223372036854775807", "2000000000"}) {
      EXPECT_THAT(ErrorOf(Read(TinyShapes(), Config(key, value))),
                  AllOf(HasSubstr("\"" + key + "\" is "), HasSubstr("config.json")))
          << value;
    }
  }
  EXPECT_THAT(ErrorOf(Read(TinyShapes(), Config("using_groupnorm", "1"))),
              HasSubstr("\"using_groupnorm\" is 1"));
  EXPECT_THAT(ErrorOf(Read(TinyShapes(), Config("eos_token_id", "-1"))), HasSubstr("\"eos_token_id\" is -1"));
  EXPECT_THAT(ErrorOf(Read(TinyShapes(), Config("eos_token_id", "10"))),
              HasSubstr("\"eos_token_id\" 10 is beyond"));
}

TEST(ModelSpec, NamesMalformedConfigs) {
  for (const std::string config : {"", "{", "[]", "null", "{\"n_head\": 2, \"n_head\": 2}", "\xff\xfe"}) {
    EXPECT_THAT(ErrorOf(Read(TinyShapes(), config)), HasSubstr("config.json: "));
  }
  const testing::TemporaryFolder folder;
  folder.Write("model.safetensors", testing::SafetensorsOf(TinyShapes()));
  EXPECT_THAT(ErrorOf(Read(folder.path())), HasSubstr("config.json: no such file"));
}

TEST(ModelSpec, NamesEveryMissingTensor) {
  for (const auto& [name, shape] : TinyShapes()) {
    Shapes shapes = TinyShapes();
    shapes.erase(name);
    EXPECT_THAT(ErrorOf(Read(shapes)), AllOf(HasSubstr("tensor \"" + name + "\""), HasSubstr("is missing")))
        << name;
  }
}

TEST(ModelSpec, NamesEveryMisshapenTensorWithBothShapes) {
  for (const auto& [name, shape] : TinyShapes()) {
    for (const size_t side : {0, 1}) {
      Shapes shapes = TinyShapes();
      shapes[name][side] += 1;
      if (name == "transformer.wte.weight" && side == 0) continue;  // then vocab_size is what disagrees
      const auto text = [](const std::vector<int64_t>& s) {
        return TensorView{nullptr, DType::kF32, s}.ShapeString();
      };
      EXPECT_THAT(ErrorOf(Read(shapes)), AllOf(HasSubstr("tensor \"" + name + "\" has the shape " +
                                                         text(shapes[name]) + ", not " + text(shape)),
                                               Not(HasSubstr("; "))))
          << name;
    }
    Shapes flat = TinyShapes();
    flat[name] = {shape[0] * shape[1]};
    EXPECT_THAT(ErrorOf(Read(flat)), HasSubstr("tensor \"" + name + "\" has the shape")) << name;
  }
}

TEST(ModelSpec, NamesSurplusTensors) {
  for (const std::string name :
       {"transformer.h.0.attn.c_qkv.W_A_q.bias", "transformer.h.1.attn.subln.weight", "lm_head.bias",
        "transformer.h.99999999999.mlp.c_fc1.weight", "transformer.h.-1.x", "_orig_mod.x"}) {
    Shapes shapes = TinyShapes();
    shapes[name] = {4};
    EXPECT_THAT(ErrorOf(Read(shapes)),
                AllOf(HasSubstr("tensor \"" + name + "\" [4]"), HasSubstr("does not belong")));
  }
}

TEST(ModelSpec, NamesTensorsOfLayersThatAreNotWhole) {
  Shapes shapes = TinyShapes();
  shapes["transformer.h.2.mlp.c_fc1.weight"] = {16, 6};
  EXPECT_THAT(ErrorOf(Read(shapes)),
              HasSubstr("tensor \"transformer.h.2.mlp.c_fc1.weight\" [16, 6] does not belong"));
}

TEST(ModelSpec, ReadsGroupnorm) {
  T6Sizes sizes = testing::TinySizes();
  sizes.head_norm = true;
  const auto spec = Read(T6Shapes(sizes), Config("using_groupnorm", "true"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_TRUE(spec->attention.head_norm);
  EXPECT_TRUE(Read(T6Shapes(sizes), Config("using_groupnorm"))->attention.head_norm);
  EXPECT_THAT(ErrorOf(Read(T6Shapes(sizes))), HasSubstr("\"using_groupnorm\" is false"));
}

TEST(ModelSpec, KnowsATiedHeadByItsBytes) {
  Shapes shapes = TinyShapes();
  const int64_t tied = Read(shapes)->n_parameters;
  shapes["lm_head.weight"] = {10, 6};
  auto spec = Read(shapes);  // every number is the same
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_TRUE(spec->tied_head);
  EXPECT_EQ(spec->n_parameters, tied);
  const testing::TemporaryFolder folder;
  std::string file = testing::SafetensorsOf(shapes);
  file.back() ^= 0x40;  // of wte, the last by name
  folder.Write("model.safetensors", file);
  folder.Write("config.json", testing::TinyConfig());
  spec = Read(folder.path());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_FALSE(spec->tied_head);
  EXPECT_EQ(spec->n_parameters, tied + 60);
}

TEST(ModelSpec, RefusesVariantsByName) {
  const auto refused = [](const StatusOr<ModelSpec>& spec, const std::string& variant) {
    EXPECT_EQ(spec.status().code(), absl::StatusCode::kUnimplemented) << spec.status();
    EXPECT_THAT(ErrorOf(spec), HasSubstr("variant \"" + variant + "\" is recognised but not served yet"));
  };
  refused(Read(TinyShapes(), Config("rope_partial_factor", "0.5")), "T6_partialrope");
  refused(Read(TinyShapes(), Config("rope_decay_base", "0.999")), "T6_partialrope_decay");
  EXPECT_THAT(ErrorOf(Read(TinyShapes(), Config("rope_decay_base", "0.999"))), HasSubstr("T6_linearattn"));
  refused(Read(TinyShapes(), Config("group_size", "2")), "llama-mqa");
  refused(Read(TinyShapes(), Config("group_size", "3")), "llama-gqa");
  refused(Read(TinyShapes(), Config("q_lora_rank", "8")), "llama-mla");
  refused(Read(TinyShapes(), Config("kv_lora_rank", "8")), "llama-mla");
  EXPECT_TRUE(Read(TinyShapes(), Config("group_size", "null")).ok());
  Shapes kvonly = TinyShapes();
  kvonly["transformer.h.0.attn.c_qkv.c_q.weight"] = {8, 6};
  refused(Read(kvonly), "T6_kvonly");
  refused(Read(kvonly, Config("rope_decay_base", "0.99")), "T6_kvonly_partialrope_decay");
  const auto grouped = [](int64_t rows) {
    return Shapes{{"transformer.h.0.attn.c_q.weight", {8, 6}},
                  {"transformer.h.0.attn.c_k.weight", {rows, 6}}};
  };
  refused(Read(grouped(8)), "llama-mha");
  refused(Read(grouped(4)), "llama-mqa");
  refused(Read(grouped(4), Config("n_head", "4")), "llama-gqa");
  refused(Read({{"transformer.h.0.attn.kv_b_proj.weight", {8, 6}}}), "llama-mla");
  refused(Read(TinyShapes(), testing::TinyConfig(), {"T6_linearattn_partialrope_decay", {}}),
          "T6_linearattn_partialrope_decay");
  refused(Read(TinyShapes(), testing::TinyConfig(), {"t6-partialrope", {}}), "T6_partialrope");
}

TEST(ModelSpec, TakesTheVariantFromTheFlag) {
  for (const std::string variant : {"T6", "t6", "T6_ropek", "T6-ropek"}) {
    EXPECT_TRUE(Read(TinyShapes(), testing::TinyConfig(), {variant, {}}).ok()) << variant;
  }
  EXPECT_THAT(ErrorOf(Read(TinyShapes(), testing::TinyConfig(), {"T7", {}})),
              AllOf(HasSubstr("\"T7\" is unknown"), HasSubstr("T6_kvonly"), HasSubstr("llama-mla")));
  const auto denied = Read(TinyShapes(), Config("rope_partial_factor", "0.5"), {"T6", {}});
  EXPECT_EQ(denied.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(ErrorOf(denied), AllOf(HasSubstr("\"T6\" was asked for"), HasSubstr("T6_partialrope")));
}

TEST(ModelSpec, AppliesOverrides) {
  const auto with = [](std::map<std::string, std::string> overrides,
                       const std::string& config = testing::TinyConfig()) {
    return Read(TinyShapes(), config, {"", std::move(overrides)});
  };
  EXPECT_EQ(with({{"block_size", "64"}})->block_size, 64);
  EXPECT_TRUE(with({{"n_head", "2"}}, Config("n_head", "\"two\"")).ok());
  EXPECT_TRUE(with({{"rope_partial_factor", "null"}}, Config("rope_partial_factor", "0.5")).ok());
  EXPECT_THAT(with({{"eos_token_id", "[1,2]"}})->generation.eos_token_ids, ElementsAre(1, 2));
  EXPECT_THAT(ErrorOf(with({{"rope_decay_base", "0.999"}})), HasSubstr("T6_partialrope_decay"));
  EXPECT_THAT(ErrorOf(with({{"heads", "2"}})),
              AllOf(HasSubstr("\"heads\""), HasSubstr("known are vocab_size, n_layer")));
  for (const std::string value : {"", "two", "\"2\"", "{}", "2 2"}) {
    EXPECT_THAT(ErrorOf(with({{"n_head", value}})), HasSubstr("--model-override n_head=" + value));
  }
}

TEST(ModelSpec, ReadsGenerationDefaults) {
  const testing::TemporaryFolder folder;
  folder.Write("model.safetensors", testing::SafetensorsOf(TinyShapes()));
  folder.Write("config.json", testing::TinyConfig());
  const auto with = [&](const std::string& json) {
    folder.Write("generation_config.json", json);
    return Read(folder.path());
  };
  const auto spec =
      with(R"({"temperature": 0.5, "top_p": 0.9, "top_k": 7, "max_new_tokens": 64, "eos_token_id": [4, 0]})");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->generation.temperature, 0.5);
  EXPECT_EQ(spec->generation.top_p, 0.9);
  EXPECT_EQ(spec->generation.top_k, 7);
  EXPECT_EQ(spec->generation.max_new_tokens, 64);
  EXPECT_THAT(spec->generation.eos_token_ids, ElementsAre(4, 0));
  EXPECT_THAT(with(R"({"eos_token_id": 5})")->generation.eos_token_ids, ElementsAre(5));
  EXPECT_THAT(with("{}")->generation.eos_token_ids, ElementsAre(3));  // config.json's
  EXPECT_EQ(with(R"({"top_k": -1})")->generation.top_k, 0);
  for (const std::string bad : {R"("temperature": -1)", R"("temperature": "hot")", R"("top_p": 2)",
                                R"("top_k": 1.5)", R"("max_new_tokens": 0)", R"("eos_token_id": "x")"}) {
    EXPECT_THAT(ErrorOf(with("{" + bad + "}")),
                AllOf(HasSubstr("generation_config.json"), HasSubstr(bad.substr(0, bad.find(':')))));
  }
}

// The official code's own checkpoints, where the shared goldens lie beside the source tree; four of them are
// in it.
TEST(ModelSpec, ReadsOrRefusesTheOfficialVariants) {
  const fs::path source = T6_SOURCE_DIR;
  const std::map<std::string, std::string> refused = {
      {"T6-kvonly", "T6_kvonly"},
      {"T6-kvonly-ropek", "T6_kvonly"},
      {"T6-kvonly-partialrope", "T6_kvonly_partialrope"},
      {"T6-kvonly-partialrope-decay", "T6_kvonly_partialrope_decay"},
      {"T6-partialrope", "T6_partialrope"},
      {"T6-partialrope-decay", "T6_partialrope_decay"},
      {"T6-linearattn-partialrope-decay", "T6_partialrope_decay"},  // only --variant could tell
      {"llama-mha", "llama-mha"},
      {"llama-gqa", "llama-gqa"},
      {"llama-mqa", "llama-mqa"},
      {"llama-mla", "llama-mla"},
  };
  int read = 0;
  for (const fs::path& goldens : {source / "tests/goldens/variants", source / "../shared/goldens/variants"}) {
    if (!fs::is_directory(goldens)) continue;
    for (const auto& entry : fs::directory_iterator(goldens)) {
      const std::string name = entry.path().filename().string();
      const auto spec = Read(entry.path());
      if (const auto variant = refused.find(name); variant != refused.end()) {
        EXPECT_THAT(ErrorOf(spec), HasSubstr("variant \"" + variant->second + "\" is recognised")) << name;
        continue;
      }
      EXPECT_TRUE(spec.ok()) << name << ": " << spec.status();
      ++read;
    }
  }
  EXPECT_GE(read, 4);
}

TEST(ModelSpec, ReadsTheModelThatShips) {
  const auto spec = Read(fs::path(T6_SOURCE_DIR) / "models/t6-docqa-14m");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->attention.n_heads, 13);
  EXPECT_EQ(spec->attention.q.rank, 6);
  EXPECT_EQ(spec->n_parameters, 13914624);
  EXPECT_TRUE(spec->tied_head);
  EXPECT_EQ(spec->generation.temperature, 0.0);
  EXPECT_THAT(spec->generation.eos_token_ids, ElementsAre(4, 0));
}

}  // namespace
}  // namespace t6

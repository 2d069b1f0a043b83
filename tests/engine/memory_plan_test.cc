// What an engine says before it allocates anything: the plan's sizes, and refusals that name numbers and
// flags. On a made-up device, so that a GPU's 128 GiB, or too few bytes, are there.
#include "engine/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "engine/backend/page_layout.h"
#include "engine/model/t6_model.h"

namespace t6 {
namespace {

using ::testing::HasSubstr;

constexpr size_t kGiB = size_t{1} << 30, kMiB = size_t{1} << 20;

// Answers what a plan asks; nothing else is called.
class PaperBackend final : public Backend {
 public:
  DeviceInfo device;
  size_t workspace = 300 * kMiB;

  PaperBackend() {
    device.kind = "cuda", device.memory_available = 128 * kGiB, device.default_step_rows = 8192;
    device.cache_share = 0.95, device.cache_most = SIZE_MAX;
  }
  const DeviceInfo& info() const override { return device; }
  DType activation_dtype(DType compute) const override { return compute; }
  int activation_stride(int width) const override { return (width + 63) / 64 * 64; }
  size_t WorkspaceBytes(const StepLimits&, const AttentionSpec&, const ModelSizes&) const override {
    return workspace;
  }

  StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(size_t) override { return Never(); }
  Status Upload(void*, const void*, size_t) override { return Never(); }
  Status Download(void*, const void*, size_t) override { return Never(); }
  StatusOr<std::unique_ptr<PackedMatrix>> Pack(const std::vector<TensorView>&, DType, bool) override {
    return Never();
  }
  Status Reserve(const StepLimits&, const AttentionSpec&, const ModelSizes&) override { return Never(); }
  Status BeginStep(const StepPlan&, const AttentionSpec&) override { return Never(); }
  const int32_t* output_rows() const override { return nullptr; }
  Status CopyAndClearPages(const CopyPagesParams&) override { return Never(); }
  Status Embed(const EmbedParams&) override { return Never(); }
  Status Project(const ProjectParams&) override { return Never(); }
  Status StoreFactors(const StoreFactorsParams&) override { return Never(); }
  Status TpaAttention(const TpaAttentionParams&) override { return Never(); }
  Status KeepOutputRows(const KeepOutputRowsParams&) override { return Never(); }
  Status Sample(const SampleParams&) override { return Never(); }
  StatusOr<StepResult> WaitSample() override { return Never(); }

 private:
  static Status Never() { return Internal("a plan asks for nothing"); }
};

// T6-XL: 72,704 bytes a page and layer in bfloat16.
ModelSpec XlSpec() {
  ModelSpec spec;
  spec.variant = "T6";
  spec.vocab_size = 50304, spec.n_layers = 48, spec.width = 1600, spec.mlp_width = 4266;
  spec.block_size = 1024;
  AttentionSpec& a = spec.attention;
  a.n_heads = 78, a.head_dim = a.rotary_dim = 64;
  a.q.rank = 6, a.k.rank = a.v.rank = 2;
  return spec;
}

class MemoryPlanTest : public ::testing::Test {
 protected:
  StatusOr<MemoryPlan> Plan() {
    T6_ASSIGN_OR_RETURN(const ResolvedConfig resolved, ResolveConfig(config_, spec_, backend_.device));
    return PlanMemory(config_, resolved, spec_, backend_);
  }
  // The refusal's code and message.
  void Refuses(absl::StatusCode code, const std::vector<std::string>& says) {
    const auto plan = Plan();
    ASSERT_FALSE(plan.ok());
    EXPECT_EQ(plan.status().code(), code) << plan.status();
    for (const std::string& part : says) EXPECT_THAT(std::string(plan.status().message()), HasSubstr(part));
  }

  PaperBackend backend_;
  EngineConfig config_;
  ModelSpec spec_ = XlSpec();
};

TEST_F(MemoryPlanTest, ThePartsAddUpToNoMoreThanThereIs) {
  for (const char* cache : {"bf16", "f32", "fp8"}) {
    config_.cache_dtype = cache;
    const auto plan = Plan();
    ASSERT_TRUE(plan.ok()) << plan.status();
    const size_t weights = 2 * size_t{1556000000};  // of 1.556 G parameters, the embedding aside
    EXPECT_GT(plan->weight_bytes, weights);
    EXPECT_LT(plan->weight_bytes, weights + weights / 4);
    EXPECT_GT(plan->workspace_bytes, backend_.workspace);
    EXPECT_EQ(plan->cache_bytes, plan->n_pages * plan->page_bytes);
    const size_t left = backend_.device.memory_available - plan->weight_bytes - plan->workspace_bytes;
    EXPECT_LE(plan->cache_bytes, left);
    EXPECT_GT(plan->cache_bytes, left / 100 * 94) << "95 % of what is left";
  }
  config_.cache_dtype = "auto";
  EXPECT_EQ(Plan()->page_bytes, 48u * 72704u);
}

TEST_F(MemoryPlanTest, AllThatIsLeftCanBeAskedForAndNotAByteMore) {
  const auto automatic = Plan();
  ASSERT_TRUE(automatic.ok());
  const size_t left = backend_.device.memory_available - automatic->weight_bytes - automatic->workspace_bytes;
  config_.cache_bytes = left;
  const auto all = Plan();
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_LE(all->cache_bytes, left);
  EXPECT_GT(all->cache_bytes + all->page_bytes, left);
  config_.cache_bytes = left + 1;
  Refuses(absl::StatusCode::kResourceExhausted,
          {"--cache-bytes asks for", fmt::format("{:.0f} MiB", static_cast<double>(left) / kMiB)});
  config_.cache_bytes = SIZE_MAX;
  Refuses(absl::StatusCode::kResourceExhausted, {"--cache-bytes asks for"});
}

TEST_F(MemoryPlanTest, AModelThatDoesNotFitSaysWhatItTakes) {
  backend_.device.memory_available = 3 * kGiB;
  Refuses(absl::StatusCode::kResourceExhausted,
          {"weights (", "workspaces (", "3072 MiB", "--dtype bf16", "--max-num-seqs", "--max-step-rows"});
  backend_.device.memory_available = 0;  // as a GPU that others fill
  Refuses(absl::StatusCode::kResourceExhausted, {"the 0 MiB available"});
}

TEST_F(MemoryPlanTest, ACacheBelowOneContextIsRefusedWithWhatItNeeds) {
  config_.max_context = 1 << 19;
  config_.cache_bytes = kGiB;
  const size_t needed = (size_t{1} << 19) / kPageTokens * 48 * 72704;
  Refuses(absl::StatusCode::kResourceExhausted,
          {"fewer than the context of 524288", fmt::format("at least {}", needed), "--max-context"});
  config_.cache_bytes = needed;
  const auto plan = Plan();
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->cache_tokens(), 1 << 19);
}

// Angles of 2^24 positions are 4 GiB, and a context of so many tokens has 0.9 TB of factors.
TEST_F(MemoryPlanTest, TheLongestContextIsCountedAndRefused) {
  const auto usual = Plan();
  ASSERT_TRUE(usual.ok());
  config_.max_context = 1 << 24;
  Refuses(absl::StatusCode::kResourceExhausted, {"fewer than the context of 16777216"});
  backend_.device.memory_available = 2048 * kGiB;
  const auto plan = Plan();
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->weight_bytes - usual->weight_bytes, ((size_t{1} << 24) - 1024) * 64 * sizeof(float));
  config_.max_context = (1 << 24) + 1;
  Refuses(absl::StatusCode::kInvalidArgument, {"--max-context", "16777217"});
}

// Slots are page * 64 + offset, in 32 bits.
TEST_F(MemoryPlanTest, PagesAreNoMoreThanSlotsCanName) {
  spec_.n_layers = 1;
  spec_.attention.n_heads = 1;
  backend_.device.memory_available = 4096 * kGiB;
  config_.cache_bytes = 4000 * kGiB;
  const auto plan = Plan();
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->n_pages, (1 << 25) - 1);
  EXPECT_LT(int64_t{plan->n_pages} * kPageTokens, int64_t{1} << 31);
}

TEST_F(MemoryPlanTest, FlagsOutOfTheirRangeAreNamed) {
  const EngineConfig good;
  const auto refuses = [&](auto change, const char* flag) {
    config_ = good;
    change(config_);
    Refuses(absl::StatusCode::kInvalidArgument, {flag});
  };
  refuses([](EngineConfig& c) { c.dtype = "fp8"; }, "--dtype \"fp8\"");
  refuses([](EngineConfig& c) { c.cache_dtype = "int8"; }, "--cache-dtype \"int8\"");
  refuses([](EngineConfig& c) { c.max_num_seqs = 0; }, "--max-num-seqs is 0");
  refuses([](EngineConfig& c) { c.max_num_seqs = 5000; }, "--max-num-seqs is 5000");
  refuses([](EngineConfig& c) { c.max_step_rows = 1 << 20; }, "--max-step-rows is 1048576");
  refuses([](EngineConfig& c) { c.max_step_ms = 0; }, "--max-step-ms is 0");
}

}  // namespace
}  // namespace t6

// Attention on every instruction set that this CPU has.
#include <cctype>
#include <utility>

#include "engine/backend/cpu/tpa_attention_impl.h"
#include "tests/support/attention_target.h"

namespace t6::testing {
namespace {

class CpuAttention final : public AttentionUnderTest {
 public:
  CpuAttention(int n_threads, const cpu::AttentionKernels& kernels)
      : pool_(n_threads), attention_(cpu::MakeTpaAttention(&pool_, kernels, kernels)) {}

  Status Reserve(const StepLimits& limits, const AttentionSpec& spec) override {
    return attention_->Reserve(limits, spec);
  }
  Status Plan(const StepPlan& plan, const AttentionSpec& spec) override {
    attention_->Plan(plan, spec);
    return absl::OkStatus();
  }
  Status Store(const StoreFactorsParams& params) override {
    attention_->Store(params);
    return absl::OkStatus();
  }
  Status StoreBeforeRun(const StoreFactorsParams& params) override {
    attention_->StoreInRun(params);
    return absl::OkStatus();
  }
  Status Run(const TpaAttentionParams& params) override {
    attention_->Run(params);
    return absl::OkStatus();
  }

 private:
  ThreadPool pool_;
  std::unique_ptr<cpu::TpaAttention> attention_;
};

}  // namespace

std::vector<AttentionTarget> AttentionTargets() {
  std::vector<AttentionTarget> targets;
  for (const DType page : {DType::kF32, DType::kBF16, DType::kFp8}) {
    const DType read_as = page == DType::kFp8 ? DType::kBF16 : page;
    for (const cpu::AttentionKernels& kernels : cpu::AllAttentionKernels(read_as)) {
      AttentionTarget target;
      target.name = std::string(NameOf(page)) + "_";
      for (const char c : std::string(kernels.name)) {
        if (std::isalnum(static_cast<unsigned char>(c))) target.name += c;
      }
      target.page = page, target.compute = kernels.compute;
      target.sharing_keeps_bits = kernels.head_weights == nullptr;
      target.is_best = kernels.name == cpu::BestAttentionKernels(read_as).name;
      target.threads = {1, 2, 5};
      target.make = [kernels](int n_threads, bool /*fixed_splits*/) -> std::unique_ptr<AttentionUnderTest> {
        return std::make_unique<CpuAttention>(n_threads, kernels);
      };
      targets.push_back(std::move(target));
    }
  }
  return targets;
}

}  // namespace t6::testing

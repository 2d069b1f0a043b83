#include "engine/backend/cuda/simple_attention.h"

#include "engine/backend/cuda/cuda_status.h"
#include "engine/backend/cuda/simple_attention_kernel.h"

namespace t6::cuda {
namespace {

class SimpleAttention final : public AttentionPath {
 public:
  Status Supports(const AttentionSpec& spec, DType pages) const override {
    if (spec.head_dim > kMaxSimpleHeadDim) {
      return Unimplemented("heads of {} numbers; the GPU's attention takes up to {}", spec.head_dim,
                           kMaxSimpleHeadDim);
    }
    for (const FactorSpec* f : {&spec.q, &spec.k, &spec.v}) {
      if (f->a != HeadFactor::kContextual || f->b != DimFactor::kContextual) {
        return Unimplemented("factors that do not depend on the token are not served on a GPU yet");
      }
    }
    if (pages != DType::kF32 && pages != DType::kBF16 && pages != DType::kFp8) {
      return Unimplemented("{} pages are not served on a GPU", NameOf(pages));
    }
    return absl::OkStatus();
  }
  size_t WorkspaceBytes(const StepLimits&, const AttentionSpec&) const override { return 0; }
  Status Reserve(const StepLimits&, const AttentionSpec&) override { return absl::OkStatus(); }

  Status Run(const TpaAttentionParams& p, const AttentionStep& step, int min_rows,
             cudaStream_t stream) override {
    const AttentionSpec& spec = *p.spec;
    const PageLayout& layout = *p.pages.layout;
    const auto offset = [&](PartName name) { return static_cast<int64_t>(layout.part(name).offset); };
    SimpleAttentionCall call;
    call.n_sequences = step.n_sequences, call.n_rows = step.n_rows, call.row_begin = step.row_begin;
    call.page_begin = step.page_begin, call.page_ids = step.page_ids, call.positions = step.positions;
    call.row_capacity = step.row_capacity, call.min_rows = min_rows;
    call.n_heads = spec.n_heads, call.head_dim = spec.head_dim;
    call.rank_q = spec.full_query ? 0 : spec.q.rank, call.rank_k = spec.k.rank, call.rank_v = spec.v.rank;
    call.rotary_dim = spec.rotary_dim,
    call.qkv_stride = p.qkv_stride > 0 ? p.qkv_stride : spec.qkv_elements();
    call.logit_scale = spec.logit_scale();
    call.pages = p.pages.base;
    call.type = layout.dtype() == DType::kF32    ? SimpleAttentionCall::Pages::kF32
                : layout.dtype() == DType::kBF16 ? SimpleAttentionCall::Pages::kBf16
                                                 : SimpleAttentionCall::Pages::kFp8;
    if (layout.dtype() == DType::kFp8) call.sk = offset(PartName::kSK), call.sv = offset(PartName::kSV);
    call.page_bytes = static_cast<int64_t>(layout.page_bytes());
    call.bk = offset(PartName::kBK), call.ak = offset(PartName::kAK);
    call.bv = offset(PartName::kBV), call.av = offset(PartName::kAV);
    call.qkv = p.qkv, call.cos = p.cos, call.sin = p.sin;
    call.head_norm_weight = spec.head_norm ? p.head_norm_weight : nullptr;
    call.head_norm_eps = spec.head_norm_eps;
    call.out = {p.out, p.out_dtype == DType::kBF16};
    T6_RETURN_IF_CUDA_ERROR(LaunchSimpleAttention(call, stream));
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<AttentionPath> MakeSimpleAttention() { return std::make_unique<SimpleAttention>(); }

}  // namespace t6::cuda

#include "engine/backend/cpu/tpa_attention_kernels.h"

#include <algorithm>
#include <cstdint>

#include "engine/backend/cpu/gemm_tile.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/tpa_attention_kernels.cc"
#include <hwy/foreach_target.h>
// After foreach_target.
#include "engine/backend/cpu/tpa_attention_kernels-inl.h"

#if HWY_ONCE
#include "engine/backend/cpu/attention_heads_x86-inl.h"
#include "engine/backend/cpu/attention_intrinsics-inl.h"
#include "engine/backend/cpu/attention_softmax_x86-inl.h"

namespace t6::cpu {
namespace {

HWY_EXPORT(KernelsF32);
HWY_EXPORT(KernelsBf16);

AttentionKernels VectorKernels(DType page) {
  return page == DType::kF32 ? HWY_DYNAMIC_DISPATCH(KernelsF32)() : HWY_DYNAMIC_DISPATCH(KernelsBf16)();
}

#if HWY_ARCH_X86_64
void ScoreBf16(const ScoreArgs& args) {
  if (bf16_kernels::CanScore(args)) return bf16_kernels::Score(args);
  static const auto general = VectorKernels(DType::kBF16).score;
  general(args);
}

// What AVX-512 does, with products, packing and softmax replaced.
AttentionKernels DotKernels() {
  AttentionKernels k = VectorKernels(DType::kBF16);
  k.name = "AVX512-BF16";
  k.compute = DType::kBF16;
  k.fetches = true;
  k.score = ScoreBf16;
  k.softmax_weights = bf16_kernels::SoftmaxWeights;
  k.pair_keys = bf16_kernels::PairKeys;
  k.pair_values = bf16_kernels::PairValues;
  k.head_keys = bf16_kernels::HeadKeys;
  k.head_values = bf16_kernels::HeadValues;
  k.head_weights = bf16_kernels::HeadWeights;
  k.gemm = bf16_kernels::Gemm<false>;
  k.gemm_rows = bf16_kernels::Gemm<true>;
  k.pack_keys = bf16_kernels::PackKeys;
  k.pack_values = bf16_kernels::PackValues;
  k.pack_float_keys = bf16_kernels::PackFloatKeys;
  k.pack_float_values = bf16_kernels::PackFloatValues;
  k.round = bf16_kernels::Round;
  return k;
}

AttentionKernels TileKernels() {
  AttentionKernels k = DotKernels();
  k.name = "AMX-BF16";
  k.cheap_products = true;
  k.fetches = false;
  k.head_weights = nullptr;  // its products are cheaper than expanding
  k.enter = amx_kernels::Enter;
  k.leave = amx_kernels::Leave;
  k.gemm = amx_kernels::Gemm;
  k.gemm_rows = nullptr;
  return k;
}
#endif

AttentionKernels Best(DType page) {
#if HWY_ARCH_X86_64
  if (page == DType::kBF16 && HasAvx512Bf16()) return HasAmxBf16() ? TileKernels() : DotKernels();
#endif
  return VectorKernels(page);
}

}  // namespace

const AttentionKernels& BestAttentionKernels(DType page) {
  static const AttentionKernels wide = Best(DType::kF32), narrow = Best(DType::kBF16);
  return page == DType::kF32 ? wide : narrow;
}

std::vector<AttentionKernels> AllAttentionKernels(DType page) {
  std::vector<AttentionKernels> all;
#if HWY_ARCH_X86_64
  if (page == DType::kBF16 && HasAvx512Bf16()) {
    if (HasAmxBf16()) all.push_back(TileKernels());
    all.push_back(DotKernels());
  }
#endif
  const int64_t targets = hwy::SupportedTargets();
  for (int bit = 0; bit < 63; ++bit) {
    const int64_t target = targets & (int64_t{1} << bit);
    if (target == 0) continue;
    hwy::SetSupportedTargetsForTest(target);
    const AttentionKernels kernels = VectorKernels(page);
    // A target that is not compiled falls back to one that is.
    const auto same = [&](const AttentionKernels& k) { return k.name == kernels.name; };
    if (std::none_of(all.begin(), all.end(), same)) all.push_back(kernels);
  }
  hwy::SetSupportedTargetsForTest(0);
  return all;
}

}  // namespace t6::cpu
#endif  // HWY_ONCE

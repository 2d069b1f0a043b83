#include "engine/backend/cpu/tpa_attention_store.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "engine/backend/cpu/row_ops.h"
#include "engine/backend/cpu/tpa_attention_page.h"
#include "engine/backend/fp8_scale.h"
#include "engine/base/check.h"

namespace t6::cpu {
namespace {

// n numbers, rounded to nearest even; bfloat16's and float32's times 1.
void PutAll(const float* in, int n, float /*f*/, float* out) { std::memcpy(out, in, n * sizeof(float)); }
void PutAll(const float* in, int n, float /*f*/, bf16* out) { PrepareRow(in, n, n, {}, out); }
void PutAll(const float* in, int n, float f, fp8* out) {
  for (int i = 0; i < n; ++i) out[i] = ToFp8(in[i] * f);
}

// The bits of the largest of n numbers, `stride` apart.
uint32_t Largest(const float* x, int n, int stride) {
  uint32_t largest = 0;
  for (int i = 0; i < n; ++i)
    largest = std::max(largest, std::bit_cast<uint32_t>(x[i * stride]) & 0x7fffffff);
  return largest;
}

template <typename T>
class RowStore {
 public:
  RowStore(const AttentionKernels& kernels, const StoreFactorsParams& p, float* scratch)
      : kernels_(kernels),
        p_(p),
        h_(p.spec->n_heads),
        d_(p.spec->head_dim),
        dp_(RoundUp(d_, 32)),
        half_(p.spec->rotary_dim / 2),
        rotated_(scratch),
        rounded_(reinterpret_cast<T*>(scratch + dp_)) {}

  void Run(int row, int position, int slot) {
    page_ = PageOf(slot), token_ = slot % kPageTokens;
    factors_ = p_.qkv + static_cast<size_t>(row) * p_.spec->qkv_elements() + p_.spec->q_elements();
    cos_ = p_.cos + static_cast<size_t>(position) * half_,
    sin_ = p_.sin + static_cast<size_t>(position) * half_;
    Factor(p_.spec->k.rank, half_, PartName::kBK, PartName::kAK, PartName::kSK);
    Factor(p_.spec->v.rank, 0, PartName::kBV, PartName::kAV, PartName::kSV);
  }

 private:
  uint8_t* PageOf(int slot) const {
    return p_.pages.base + static_cast<size_t>(slot / kPageTokens) * p_.pages.layout->page_bytes();
  }
  template <typename Number>
  Number* Part(PartName name) const {
    return reinterpret_cast<Number*>(page_ + p_.pages.layout->part(name).offset);
  }

  // A [h, rank], then B [rank, d] of the projections.
  void Factor(int rank, int half, PartName b_name, PartName a_name, PartName scales_name) {
    const float* a_in = std::exchange(factors_, factors_ + static_cast<size_t>(rank) * h_);
    const float* b_in = std::exchange(factors_, factors_ + static_cast<size_t>(rank) * d_);
    if constexpr (sizeof(T) > 1) PutAll(a_in, rank * h_, 1.0f, rounded_);
    for (int r = 0; r < rank; ++r, b_in += d_) {
      const float* b = half > 0 ? rotated_ : b_in;
      if (half > 0)
        kernels_.rotate({.in = b_in,
                         .n = 1,
                         .d = d_,
                         .dp = dp_,
                         .half = half,
                         .cos = cos_,
                         .sin = sin_,
                         .out = rotated_});
      float b_factor = 1.0f;
      T* a_out = Part<T>(a_name) + static_cast<size_t>(r) * h_ * kPageTokens + token_;
      if constexpr (sizeof(T) == 1) {
        const uint32_t a_largest = Largest(a_in + r, h_, rank), b_largest = Largest(b, d_, 1);
        const auto a_factor = std::bit_cast<float>(PowerOfTwoBits(Fp8Exponent(a_largest)));
        b_factor = std::bit_cast<float>(PowerOfTwoBits(Fp8Exponent(b_largest)));
        Part<uint32_t>(scales_name)[r * kPageTokens + token_] = Fp8ScaleBits(a_largest, b_largest);
        for (int j = 0; j < h_; ++j) a_out[j * kPageTokens] = ToFp8(a_in[j * rank + r] * a_factor);
      } else {
        for (int j = 0; j < h_; ++j) a_out[j * kPageTokens] = rounded_[j * rank + r];
      }
      PutAll(b, d_, b_factor, Part<T>(b_name) + (static_cast<size_t>(r) * kPageTokens + token_) * d_);
    }
  }

  const AttentionKernels& kernels_;
  const StoreFactorsParams& p_;
  const int h_, d_, dp_, half_;
  float* rotated_;  // [dp]
  T* rounded_;      // [h, rank]: A of bfloat16 and float32
  uint8_t* page_ = nullptr;
  int token_ = 0;
  const float* factors_ = nullptr;  // what comes next of the row's
  const float *cos_ = nullptr, *sin_ = nullptr;
};

}  // namespace

size_t StoreScratchFloats(const AttentionSpec& spec) {
  return RoundUp(spec.head_dim, 32) + static_cast<size_t>(std::max(spec.k.rank, spec.v.rank)) * spec.n_heads;
}

void ExpectFactorRow(const StoreFactorsParams& params, int slot) {
  const PageLayout& layout = *params.pages.layout;
  const size_t number = SizeOf(layout.dtype());
  const uint8_t* page = params.pages.base + slot / kPageTokens * layout.page_bytes();
  for (const PartName name : {PartName::kAK, PartName::kAV}) {
    const int n = params.spec->n_heads * (name == PartName::kAK ? params.spec->k.rank : params.spec->v.rank);
    const uint8_t* at = page + layout.part(name).offset + slot % kPageTokens * number;
    for (int i = 0; i < n; ++i) __builtin_prefetch(at + i * kPageTokens * number, 1);
  }
}

void StoreFactorRow(const AttentionKernels& kernels, const StoreFactorsParams& params, const StepPlan& plan,
                    int row, float* scratch) {
  const int slot = plan.slots[row], position = plan.positions[row];
  T6_DCHECK(slot >= 0 && slot / kPageTokens < params.pages.n_pages, "slot {} of {} pages", slot,
            params.pages.n_pages);
  const DType type = params.pages.layout->dtype();
  if (type == DType::kF32) return RowStore<float>(kernels, params, scratch).Run(row, position, slot);
  if (type == DType::kBF16) return RowStore<bf16>(kernels, params, scratch).Run(row, position, slot);
  RowStore<fp8>(kernels, params, scratch).Run(row, position, slot);
}

}  // namespace t6::cpu

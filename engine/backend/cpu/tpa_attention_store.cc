#include "engine/backend/cpu/tpa_attention_store.h"

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "engine/backend/fp8_scale.h"
#include "engine/base/check.h"

namespace t6::cpu {
namespace {

inline void Put(float x, float* out) { *out = x; }
inline void Put(float x, bf16* out) { *out = ToBf16(x); }
inline void Put(float x, fp8* out) { *out = ToFp8(x); }

// out = f * rotated in.
template <typename T>
void PutRotated(const float* in, const float* cos, const float* sin, int half, int d, float f, T* out) {
  for (int i = 0; i < half; ++i) {
    Put((in[i] * cos[i] + in[half + i] * sin[i]) * f, out + i);
    Put((in[half + i] * cos[i] - in[i] * sin[i]) * f, out + half + i);
  }
  for (int i = 2 * half; i < d; ++i) Put(in[i] * f, out + i);
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
  RowStore(const StoreFactorsParams& p, int row, int position, int slot)
      : p_(p),
        h_(p.spec->n_heads),
        d_(p.spec->head_dim),
        half_(p.spec->rotary_dim / 2),
        token_(slot % kPageTokens),
        page_(p.pages.base + static_cast<size_t>(slot / kPageTokens) * p.pages.layout->page_bytes()),
        factors_(p.qkv + static_cast<size_t>(row) * p.spec->qkv_elements() + p.spec->q_elements()),
        cos_(p.cos + static_cast<size_t>(position) * half_),
        sin_(p.sin + static_cast<size_t>(position) * half_) {}

  void Run() {
    Factor(p_.spec->k.rank, half_, PartName::kBK, PartName::kAK, PartName::kSK);
    Factor(p_.spec->v.rank, 0, PartName::kBV, PartName::kAV, PartName::kSV);
  }

 private:
  template <typename Number>
  Number* Part(PartName name) const {
    return reinterpret_cast<Number*>(page_ + p_.pages.layout->part(name).offset);
  }

  // A [h, rank], then B [rank, d] of the projections.
  void Factor(int rank, int half, PartName b_name, PartName a_name, PartName scales_name) {
    const float* a_in = std::exchange(factors_, factors_ + static_cast<size_t>(rank) * h_);
    const float* b_in = std::exchange(factors_, factors_ + static_cast<size_t>(rank) * d_);
    for (int r = 0; r < rank; ++r) {
      float a_factor = 1.0f, b_factor = 1.0f;
      if constexpr (sizeof(T) == 1) {
        rotated_.resize(d_);
        PutRotated(b_in + static_cast<size_t>(r) * d_, cos_, sin_, half, d_, 1.0f, rotated_.data());
        const uint32_t a = Largest(a_in + r, h_, rank), b = Largest(rotated_.data(), d_, 1);
        a_factor = std::bit_cast<float>(PowerOfTwoBits(Fp8Exponent(a)));
        b_factor = std::bit_cast<float>(PowerOfTwoBits(Fp8Exponent(b)));
        Part<uint32_t>(scales_name)[r * kPageTokens + token_] = Fp8ScaleBits(a, b);
      }
      PutRotated(b_in + static_cast<size_t>(r) * d_, cos_, sin_, half, d_, b_factor,
                 Part<T>(b_name) + (static_cast<size_t>(r) * kPageTokens + token_) * d_);
      T* a_out = Part<T>(a_name) + static_cast<size_t>(r) * h_ * kPageTokens + token_;
      for (int j = 0; j < h_; ++j) Put(a_in[j * rank + r] * a_factor, a_out + j * kPageTokens);
    }
  }

  const StoreFactorsParams& p_;
  const int h_, d_, half_, token_;
  uint8_t* page_;
  const float* factors_;  // what comes next of the row's
  const float *cos_, *sin_;
  std::vector<float> rotated_;
};

}  // namespace

void StoreFactorRows(const StoreFactorsParams& params, const StepPlan& plan, int begin, int end) {
  const DType type = params.pages.layout->dtype();
  for (int row = begin; row < end; ++row) {
    const int slot = plan.slots[row];
    T6_DCHECK(slot >= 0 && slot / kPageTokens < params.pages.n_pages, "slot {} of {} pages", slot,
              params.pages.n_pages);
    const int position = plan.positions[row];
    if (type == DType::kF32) {
      RowStore<float>(params, row, position, slot).Run();
    } else if (type == DType::kBF16) {
      RowStore<bf16>(params, row, position, slot).Run();
    } else {
      RowStore<fp8>(params, row, position, slot).Run();
    }
  }
}

}  // namespace t6::cpu

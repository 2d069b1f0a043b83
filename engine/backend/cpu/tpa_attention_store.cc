#include "engine/backend/cpu/tpa_attention_store.h"

#include <algorithm>

#include "engine/base/check.h"

namespace t6::cpu {
namespace {

inline void Put(float x, float* out) { *out = x; }
inline void Put(float x, bf16* out) { *out = ToBf16(x); }

// One row of B_K, rotated.
template <typename T>
void PutRotated(const float* in, const float* cos, const float* sin, int half, int d, T* out) {
  for (int i = 0; i < half; ++i) {
    Put(in[i] * cos[i] + in[half + i] * sin[i], out + i);
    Put(in[half + i] * cos[i] - in[i] * sin[i], out + half + i);
  }
  for (int i = 2 * half; i < d; ++i) Put(in[i], out + i);
}

template <typename T>
void StoreRow(const StoreFactorsParams& p, int row, int position, int slot) {
  const AttentionSpec& spec = *p.spec;
  const PageLayout& layout = *p.pages.layout;
  const int h = spec.n_heads, d = spec.head_dim, half = spec.rotary_dim / 2, t = slot % kPageTokens;
  uint8_t* page = p.pages.base + static_cast<size_t>(slot / kPageTokens) * layout.page_bytes();
  const auto part = [&](PartName name) { return reinterpret_cast<T*>(page + layout.part(name).offset); };
  const float* ak_in = p.qkv + static_cast<size_t>(row) * spec.qkv_elements() + spec.q_elements();
  const float* bk_in = ak_in + h * spec.k.rank;
  const float* av_in = bk_in + spec.k.rank * d;
  const float* bv_in = av_in + h * spec.v.rank;

  T *ak = part(PartName::kAK), *bk = part(PartName::kBK), *av = part(PartName::kAV),
    *bv = part(PartName::kBV);
  const float* cos = p.cos + static_cast<size_t>(position) * half;
  const float* sin = p.sin + static_cast<size_t>(position) * half;
  for (int r = 0; r < spec.k.rank; ++r) {
    PutRotated(bk_in + r * d, cos, sin, half, d, bk + (static_cast<size_t>(r) * kPageTokens + t) * d);
    for (int j = 0; j < h; ++j)
      Put(ak_in[j * spec.k.rank + r], ak + (static_cast<size_t>(r) * h + j) * kPageTokens + t);
  }
  for (int u = 0; u < spec.v.rank; ++u) {
    T* out = bv + (static_cast<size_t>(u) * kPageTokens + t) * d;
    for (int i = 0; i < d; ++i) Put(bv_in[u * d + i], out + i);
    for (int j = 0; j < h; ++j)
      Put(av_in[j * spec.v.rank + u], av + (static_cast<size_t>(u) * h + j) * kPageTokens + t);
  }
}

}  // namespace

void StoreFactorRows(const StoreFactorsParams& params, const StepPlan& plan, int begin, int end) {
  const bool f32 = params.pages.layout->dtype() == DType::kF32;
  for (int row = begin; row < end; ++row) {
    const int slot = plan.slots[row];
    T6_DCHECK(slot >= 0 && slot / kPageTokens < params.pages.n_pages, "slot {} of {} pages", slot,
              params.pages.n_pages);
    if (f32) {
      StoreRow<float>(params, row, plan.positions[row], slot);
    } else {
      StoreRow<bf16>(params, row, plan.positions[row], slot);
    }
  }
}

}  // namespace t6::cpu

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/sample_ops.cc"
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/backend/cpu/sample_ops.h"

HWY_BEFORE_NAMESPACE();
namespace t6::cpu::HWY_NAMESPACE {
namespace {  // each file has its own

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

int Lanes() { return static_cast<int>(hn::Lanes(D())); }

RowScan Scan(const float* HWY_RESTRICT x, int n) {
  const D d;
  const V zero = hn::Zero(d);
  V max[4], taint[4];  // taint: zero times anything that is not finite is NaN, and stays it
  for (int j = 0; j < 4; ++j) max[j] = hn::Set(d, x[0]), taint[j] = zero;
  int i = 0;
  for (; i + 4 * Lanes() <= n; i += 4 * Lanes()) {
    for (int j = 0; j < 4; ++j) {
      const V v = hn::LoadU(d, x + i + j * Lanes());
      max[j] = hn::Max(max[j], v);
      taint[j] = hn::MulAdd(v, zero, taint[j]);
    }
  }
  float rest_max = x[0];
  bool finite = true;
  for (; i < n; ++i) {
    finite = finite && std::isfinite(x[i]);
    rest_max = std::max(rest_max, x[i]);
  }
  const V all = hn::Max(hn::Max(max[0], max[1]), hn::Max(max[2], max[3]));
  const V tainted = hn::Add(hn::Add(taint[0], taint[1]), hn::Add(taint[2], taint[3]));
  return {std::max(rest_max, hn::GetLane(hn::MaxOfLanes(d, all))),
          finite && hn::AllTrue(d, hn::Eq(tainted, zero))};
}

int32_t FirstIndex(const float* HWY_RESTRICT x, int n, float value) {
  const D d;
  const V wanted = hn::Set(d, value);
  int i = 0;
  for (; i + Lanes() <= n; i += Lanes()) {
    const intptr_t lane = hn::FindFirstTrue(d, hn::Eq(hn::LoadU(d, x + i), wanted));
    if (lane >= 0) return i + static_cast<int32_t>(lane);
  }
  for (; i < n; ++i) {
    if (x[i] == value) return i;
  }
  return n;
}

// exp((x - max) * scale), with what lies past the end of the row as zeros.
V Weights(D d, const float* x, int n_left, V max, V scale) {
  if (n_left >= Lanes()) return hn::Exp(d, hn::Mul(hn::Sub(hn::LoadU(d, x), max), scale));
  HWY_ALIGN float last[HWY_LANES(float)] = {};
  std::copy(x, x + n_left, last);
  const V w = hn::Exp(d, hn::Mul(hn::Sub(hn::Load(d, last), max), scale));
  return hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(n_left)), w);
}

// One block of at most kSumBlock; `weights` may be null.
double ExpBlock(const float* HWY_RESTRICT x, int n, V max, V scale, float* HWY_RESTRICT weights) {
  const D d;
  V sum[2] = {hn::Zero(d), hn::Zero(d)};
  for (int i = 0, j = 0; i < n; i += Lanes(), j ^= 1) {
    const V w = Weights(d, x + i, n - i, max, scale);
    sum[j] = hn::Add(sum[j], w);
    if (weights == nullptr) continue;
    if (i + Lanes() <= n) {
      hn::StoreU(w, d, weights + i);
    } else {
      HWY_ALIGN float last[HWY_LANES(float)];
      hn::Store(w, d, last);
      std::copy(last, last + (n - i), weights + i);
    }
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(sum[0], sum[1])));
}

double SumOfExp(const float* x, int n, float max) {
  const D d;
  double sum = 0;
  for (int i = 0; i < n; i += kSumBlock) {
    sum += ExpBlock(x + i, std::min(kSumBlock, n - i), hn::Set(d, max), hn::Set(d, 1.0f), nullptr);
  }
  return sum;
}

void ExpOfRow(const float* x, int n, float max, float scale, float* weights, double* block_sums) {
  const D d;
  for (int i = 0; i < n; i += kSumBlock) {
    block_sums[i / kSumBlock] =
        ExpBlock(x + i, std::min(kSumBlock, n - i), hn::Set(d, max), hn::Set(d, scale), weights + i);
  }
}

// Calls found(i) for each x[i] >= threshold(), which may rise meanwhile.
template <class Threshold, class Found>
void ForEachAtLeast(const float* HWY_RESTRICT x, int begin, int n, const Threshold& threshold,
                    const Found& found) {
  const D d;
  int i = begin;
  for (; i + Lanes() <= n; i += Lanes()) {
    if (hn::AllFalse(d, hn::Ge(hn::LoadU(d, x + i), hn::Set(d, threshold())))) continue;
    for (int j = i; j < i + Lanes(); ++j) {
      if (x[j] >= threshold()) found(j);
    }
  }
  for (; i < n; ++i) {
    if (x[i] >= threshold()) found(i);
  }
}

void Collect(const float* x, int n, float threshold, std::vector<int32_t>* indices) {
  ForEachAtLeast(
      x, 0, n, [&] { return threshold; }, [&](int i) { indices->push_back(i); });
}

void Top(const float* x, int n, int n_top, std::vector<TokenScore>* top) {
  top->clear();
  const size_t wanted = static_cast<size_t>(std::min(n, n_top));
  if (wanted == 0) return;
  top->reserve(wanted + 1);
  const auto threshold = [&] {
    return top->size() < wanted ? -std::numeric_limits<float>::infinity() : top->back().logprob;
  };
  ForEachAtLeast(x, 0, n, threshold, [&](int i) {
    // Indices ascend, so an equal one goes behind: the lowest stays in front.
    const auto place =
        std::find_if(top->begin(), top->end(), [&](const TokenScore& s) { return s.logprob < x[i]; });
    if (place == top->end() && top->size() == wanted) return;
    top->insert(place, TokenScore{i, x[i]});
    if (top->size() > wanted) top->pop_back();
  });
}

}  // namespace
}  // namespace t6::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace t6::cpu {

HWY_EXPORT(Scan);
HWY_EXPORT(FirstIndex);
HWY_EXPORT(SumOfExp);
HWY_EXPORT(ExpOfRow);
HWY_EXPORT(Collect);
HWY_EXPORT(Top);

RowScan ScanRow(const float* x, int n) { return HWY_DYNAMIC_DISPATCH(Scan)(x, n); }
int32_t FirstIndexOf(const float* x, int n, float value) {
  return HWY_DYNAMIC_DISPATCH(FirstIndex)(x, n, value);
}
double SumExp(const float* x, int n, float max) { return HWY_DYNAMIC_DISPATCH(SumOfExp)(x, n, max); }
void ExpRow(const float* x, int n, float max, float scale, float* weights, double* block_sums) {
  HWY_DYNAMIC_DISPATCH(ExpOfRow)(x, n, max, scale, weights, block_sums);
}
void CollectAtLeast(const float* x, int n, float threshold, std::vector<int32_t>* indices) {
  HWY_DYNAMIC_DISPATCH(Collect)(x, n, threshold, indices);
}
void TopOfRow(const float* x, int n, int n_top, std::vector<TokenScore>* top) {
  HWY_DYNAMIC_DISPATCH(Top)(x, n, n_top, top);
}

}  // namespace t6::cpu
#endif

// 2^x with Highway, for whoever needs exponentials. Included once for each of Highway's targets (the toggle
// below).
#if defined(T6_EXP2_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef T6_EXP2_INL_H_
#undef T6_EXP2_INL_H_
#else
#define T6_EXP2_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace t6::cpu {
namespace HWY_NAMESPACE {

// 2^x for x < 128 to a relative error of 1e-7; 2^-126 for anything smaller. The polynomial is minimax on
// [-1/2, 1/2].
template <class D, class V = hwy::HWY_NAMESPACE::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RebindToSigned<D> di;
  x = hn::Max(x, hn::Set(d, -126.0f));
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits.
  const V magic = hn::Set(d, 12582912.0f);
  const V shifted = hn::Add(x, magic);
  const V f = hn::Sub(x, hn::Sub(shifted, magic));
  V y = hn::Set(d, 1.559467747e-4f);
  y = hn::MulAdd(y, f, hn::Set(d, 1.340664390e-3f));
  y = hn::MulAdd(y, f, hn::Set(d, 9.617692975e-3f));
  y = hn::MulAdd(y, f, hn::Set(d, 5.550310551e-2f));
  y = hn::MulAdd(y, f, hn::Set(d, 2.402265278e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, 6.931472150e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, 1.0f));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, y), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
}

}  // namespace HWY_NAMESPACE
}  // namespace t6::cpu
HWY_AFTER_NAMESPACE();
#endif  // per-target include guard

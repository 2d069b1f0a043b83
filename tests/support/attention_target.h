// What attention's tests run on: one implementation of attention on one device, with one type of pages. The
// tests hold host memory only; a device's copies are its target's own business.
#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "engine/backend/backend.h"

namespace t6::testing {

// One attention, as the backend of its device uses it; params point to host memory.
class AttentionUnderTest {
 public:
  virtual ~AttentionUnderTest() = default;
  virtual Status Reserve(const StepLimits& limits, const AttentionSpec& spec) = 0;
  virtual Status Plan(const StepPlan& plan, const AttentionSpec& spec) = 0;
  virtual Status Store(const StoreFactorsParams& params) = 0;
  // As the backend does it, which may leave some of it to Run.
  virtual Status StoreBeforeRun(const StoreFactorsParams& params) { return Store(params); }
  virtual Status Run(const TpaAttentionParams& params) = 0;
};

struct AttentionTarget {
  std::string name;
  DType page = DType::kF32;
  DType compute = DType::kF32;     // what products round their factors to
  bool is_best = false;            // of its page type: what is not about instruction sets runs on these alone
  bool sharing_keeps_bits = true;  // a row's result does not depend on how many rows share its pages
  std::vector<int> threads;        // numbers of threads that may not change a bit
  // Why nothing runs here ("no GPU"), or empty.
  std::string missing;
  // `fixed_splits`: bits may not depend on the batch.
  std::function<std::unique_ptr<AttentionUnderTest>(int n_threads, bool fixed_splits)> make;

  // Of an error measured on what one unit of relative rounding does to an output, to first order (the
  // reference's `norms`). Factors are rounded in the reference too, so what is left is the arithmetic's: a
  // few roundings, and as many more as sums over ranks cancel.
  double tolerance() const { return compute == DType::kBF16 ? 0x1p-9 * 4 : 0x1p-24 * 16; }
};

inline void PrintTo(const AttentionTarget& target, std::ostream* out) { *out << target.name; }

// Every target of the device that this program is linked with.
std::vector<AttentionTarget> AttentionTargets();

}  // namespace t6::testing

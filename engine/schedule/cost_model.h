// What a step will cost, in milliseconds: fixed + per row + per row and token of its context. Learnt from the
// steps themselves (recursive least squares that forgets), so that no device has to be described. Engine
// thread only.
#pragma once

#include <array>
#include <cstdint>

namespace t6 {

// What a step's cost depends on.
struct StepCost {
  int64_t rows = 0;
  int64_t row_contexts = 0;  // sum over rows of the tokens attended to

  void Add(int first_position, int n_rows) {
    rows += n_rows;
    row_contexts += int64_t{n_rows} * first_position + int64_t{n_rows} * (n_rows + 1) / 2;
  }
};

class CostModel {
 public:
  CostModel() { Restart(1.0); }

  double Estimate(const StepCost& step) const;
  // A step was measured. One that is far off the estimate teaches nothing (the machine paused), three in a
  // row that the device is another one than was thought.
  void Learn(const StepCost& step, double milliseconds);
  // How many rows, starting at `first_position` and at most `max_rows`, can be added to `step` within
  // `limit_ms` for all of it.
  int RowsFor(const StepCost& step, int first_position, int max_rows, double limit_ms) const;

 private:
  static constexpr int kTerms = 3;
  using Terms = std::array<double, kTerms>;

  static Terms Features(const StepCost& step);
  void Restart(double factor);

  Terms ms_ = {1.0, 0.1, 1e-5};  // the estimate: of a step, a row, a row's context token
  Terms unit_;                   // ms_ as it was at the last restart: what the covariance counts in
  std::array<Terms, kTerms> covariance_;
  int surprises_ = 0;
};

}  // namespace t6

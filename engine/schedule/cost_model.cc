#include "engine/schedule/cost_model.h"

#include <algorithm>

namespace t6 {
namespace {

constexpr double kForget = 0.95;    // some twenty steps are remembered
constexpr double kPrior = 10.0;     // the first guess may be far off: a measurement counts for more
constexpr double kMaxTrace = 60.0;  // beyond it nothing is forgotten: what no step varies must not run away
constexpr double kLeast = 1e-3;     // of its unit: no term vanishes, none is negative
constexpr double kSurprise = 3.0;
constexpr int kMaxSurprises = 3;

}  // namespace

CostModel::Terms CostModel::Features(const StepCost& step) {
  return {1.0, static_cast<double>(step.rows), static_cast<double>(step.row_contexts)};
}

double CostModel::Estimate(const StepCost& step) const {
  const Terms x = Features(step);
  return ms_[0] * x[0] + ms_[1] * x[1] + ms_[2] * x[2];
}

void CostModel::Restart(double factor) {
  surprises_ = 0;
  for (int i = 0; i < kTerms; ++i) {
    ms_[i] *= factor;
    covariance_[i].fill(0);
    covariance_[i][i] = kPrior;
  }
  unit_ = ms_;
}

void CostModel::Learn(const StepCost& step, double milliseconds) {
  if (!(milliseconds > 0)) return;
  if (const double ratio = milliseconds / Estimate(step); ratio > kSurprise || ratio < 1 / kSurprise) {
    if (++surprises_ < kMaxSurprises) return;
    Restart(ratio);
  }
  surprises_ = 0;
  // Relative errors count, so that a step of one row and one of 512 teach equally much.
  const double estimate = Estimate(step);
  const double error = milliseconds / estimate - 1;
  Terms x = Features(step), px{};
  for (int i = 0; i < kTerms; ++i) x[i] *= unit_[i] / estimate;
  double xpx = 0, trace = 0;
  for (int i = 0; i < kTerms; ++i) {
    for (int j = 0; j < kTerms; ++j) px[i] += covariance_[i][j] * x[j];
    xpx += x[i] * px[i];
    trace += covariance_[i][i];
  }
  const double forget = trace < kMaxTrace ? kForget : 1.0;
  for (int i = 0; i < kTerms; ++i) {
    ms_[i] = std::max(kLeast * unit_[i], ms_[i] + px[i] / (forget + xpx) * error * unit_[i]);
    for (int j = 0; j < kTerms; ++j) {
      covariance_[i][j] = (covariance_[i][j] - px[i] * px[j] / (forget + xpx)) / forget;
    }
  }
}

int CostModel::RowsFor(const StepCost& step, int first_position, int max_rows, double limit_ms) const {
  int fits = 0, too_many = max_rows + 1;
  while (too_many - fits > 1) {
    const int n = fits + (too_many - fits) / 2;
    StepCost with = step;
    with.Add(first_position, n);
    (Estimate(with) <= limit_ms ? fits : too_many) = n;
  }
  return fits;
}

}  // namespace t6

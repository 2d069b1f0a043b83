#include "engine/schedule/cost_model.h"

#include <gtest/gtest.h>

#include <random>

namespace t6 {
namespace {

StepCost Step(int first_position, int n_rows) {
  StepCost step;
  step.Add(first_position, n_rows);
  return step;
}

double True(const StepCost& step) { return 0.7 + 0.35 * step.rows + 4e-5 * step.row_contexts; }

StepCost RandomStep(std::mt19937& random) {
  StepCost step;
  for (int n = random() % 16; n > 0; --n) step.Add(random() % 4000, 1);
  if (step.rows == 0 || random() % 2 == 0) step.Add(random() % 3000, 1 + random() % 256);
  return step;
}

TEST(CostModel, AChunkAttendsToWhatIsBeforeItAndToItself) {
  EXPECT_EQ(Step(0, 1).row_contexts, 1);
  EXPECT_EQ(Step(10, 3).row_contexts, 11 + 12 + 13);
  EXPECT_EQ(Step(10, 3).rows, 3);
}

TEST(CostModel, LearnsWhatStepsCost) {
  CostModel model;
  std::mt19937 random(1);
  for (int i = 0; i < 400; ++i) {
    const StepCost step = RandomStep(random);
    const double noise = 0.95 + 0.1 * (random() % 1000) / 1000.0;
    model.Learn(step, True(step) * noise);
  }
  for (int i = 0; i < 100; ++i) {
    const StepCost step = RandomStep(random);
    EXPECT_NEAR(model.Estimate(step) / True(step), 1.0, 0.15);
  }
}

TEST(CostModel, FollowsAMachineThatIsFarFromTheFirstGuess) {
  for (const double factor : {0.01, 100.0}) {
    CostModel model;
    std::mt19937 random(2);
    for (int i = 0; i < 200; ++i) {
      const StepCost step = RandomStep(random);
      model.Learn(step, True(step) * factor);
    }
    EXPECT_NEAR(model.Estimate(Step(500, 64)) / (True(Step(500, 64)) * factor), 1.0, 0.2) << factor;
  }
}

TEST(CostModel, OnePauseOfTheMachineChangesLittle) {
  CostModel model;
  std::mt19937 random(3);
  for (int i = 0; i < 300; ++i) {
    const StepCost step = RandomStep(random);
    model.Learn(step, True(step));
  }
  model.Learn(Step(100, 1), 10000.0);
  EXPECT_NEAR(model.Estimate(Step(0, 256)) / True(Step(0, 256)), 1.0, 0.3);
}

TEST(CostModel, StaysSaneWhenStepsNeverVary) {
  CostModel model;
  for (int i = 0; i < 100000; ++i) model.Learn(Step(100, 1), 2.0);
  EXPECT_NEAR(model.Estimate(Step(100, 1)), 2.0, 0.1);
  EXPECT_GT(model.Estimate(Step(0, 256)), model.Estimate(Step(0, 1)));
  for (int i = 0; i < 100; ++i) model.Learn(Step(0, 256), 60.0);  // and can still learn
  EXPECT_NEAR(model.Estimate(Step(0, 256)), 60.0, 10.0);
  model.Learn(Step(0, 1), 0.0);  // a clock that stood still teaches nothing
  EXPECT_NEAR(model.Estimate(Step(0, 256)), 60.0, 10.0);
}

TEST(CostModel, RowsForIsTheMostThatFits) {
  CostModel model;
  const StepCost decode = Step(1000, 1);
  for (const double limit : {1.0, 3.0, 10.0, 30.0}) {
    const int n = model.RowsFor(decode, 200, 500, limit);
    StepCost fits = decode, more = decode;
    fits.Add(200, n), more.Add(200, n + 1);
    if (n > 0) {
      EXPECT_LE(model.Estimate(fits), limit);
    }
    if (n < 500) {
      EXPECT_GT(model.Estimate(more), limit);
    }
  }
  EXPECT_EQ(model.RowsFor(decode, 200, 500, 1e9), 500);
  EXPECT_EQ(model.RowsFor(decode, 200, 500, 0.0), 0);
}

}  // namespace
}  // namespace t6

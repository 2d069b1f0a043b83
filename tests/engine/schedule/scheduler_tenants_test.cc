// Tenants share the engine: nobody waits behind all that another has sent.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/schedule/scheduler_harness.h"

namespace t6 {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

GenerationRequest Of(const std::string& tenant, int first_token, int max_tokens = 1, int priority = 0) {
  GenerationRequest request = Request(Iota(first_token, 8), max_tokens);
  request.tenant = tenant;
  request.priority = priority;
  return request;
}

// The requests in the order in which they ended, one running at a time.
std::vector<RequestId> OrderOfEnding(SchedulerHarness& engine, const std::vector<RequestId>& ids) {
  std::vector<RequestId> order;
  while (engine.Step()) {
    for (const RequestId id : ids) {
      if (engine.Read(id).done() && std::find(order.begin(), order.end(), id) == order.end())
        order.push_back(id);
    }
  }
  return order;
}

TEST(SchedulerTenants, TakeTurnsHoweverManyOneHasSentBefore) {
  SchedulerHarness engine(64, {.max_num_seqs = 1, .max_context = 200});
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(engine.Submit(Of("a", i)));
  for (int i = 0; i < 2; ++i) ids.push_back(engine.Submit(Of("b", 10 + i)));
  ids.push_back(engine.Submit(Of("c", 20)));
  EXPECT_THAT(OrderOfEnding(engine, ids),
              ElementsAre(ids[0], ids[4], ids[6], ids[1], ids[5], ids[2], ids[3]));
  engine.ExpectNoPagesLeft();
}

TEST(SchedulerTenants, APriorityIsWorthNothingAgainstAnotherTenant) {
  SchedulerHarness engine(64, {.max_num_seqs = 1, .max_context = 200});
  std::vector<RequestId> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(engine.Submit(Of("a", i, 1, /*priority=*/-1000 - i)));
  for (int i = 0; i < 2; ++i) ids.push_back(engine.Submit(Of("b", 10 + i, 1, /*priority=*/i)));
  // Its own go by it.
  EXPECT_THAT(OrderOfEnding(engine, ids), ElementsAre(ids[2], ids[3], ids[1], ids[4], ids[0]));
}

TEST(SchedulerTenants, ANewcomerGetsTheNextSlotThatIsFree) {
  SchedulerHarness engine(64, {.max_num_seqs = 4, .max_context = 200});
  std::vector<RequestId> many;
  for (int i = 0; i < 12; ++i) many.push_back(engine.Submit(Of("a", i, 5 + 3 * i)));
  ASSERT_TRUE(engine.Step());
  const RequestId one = engine.Submit(Of("b", 30, 2));
  while (engine.Read(one).all.tokens.empty()) ASSERT_TRUE(engine.Step());
  int ended = 0;
  for (const RequestId id : many) ended += engine.Read(id).done() ? 1 : 0;
  EXPECT_EQ(ended, 1);
  engine.RunAll();
  engine.ExpectNoPagesLeft();
}

TEST(SchedulerTenants, WhoAskedForLittleHasNoClaimOnALongTurnLater) {
  SchedulerHarness engine(64, {.max_num_seqs = 2, .max_context = 200});
  const RequestId slow = engine.Submit(Of("b", 30, 120));
  std::vector<RequestId> ids;
  for (int i = 0; i < 20; ++i) ids.push_back(engine.Submit(Of("a", i, 2)));
  while (!engine.Read(ids[9]).done()) ASSERT_TRUE(engine.Step());
  for (int i = 0; i < 10; ++i) ids.push_back(engine.Submit(Of("b", i, 2)));
  ASSERT_FALSE(engine.Read(slow).done());
  const std::vector<RequestId> order = OrderOfEnding(engine, ids);
  // From here on both get on alike, though b had one and a ten until now.
  int last_a = 0, last_b = 0;
  for (size_t i = 0; i < order.size(); ++i) (order[i] > ids[19] ? last_b : last_a) = static_cast<int>(i);
  EXPECT_LE(std::abs(last_a - last_b), 4);
  engine.ExpectNoPagesLeft();
}

TEST(SchedulerTenants, WhoHasTheMostGivesWayWhenPagesRunOut) {
  // Room for four sequences of a page, and each grows into a second one.
  SchedulerHarness engine(6, {.max_num_seqs = 8, .max_context = 128, .reserve_tokens = 0});
  std::vector<GenerationRequest> requests;
  std::vector<RequestId> ids;
  const auto submit = [&](const std::string& tenant, int first_token) {
    GenerationRequest request = Request(Iota(first_token, 60), 20);
    request.tenant = tenant;
    requests.push_back(request);
    ids.push_back(engine.Submit(std::move(request)));
  };
  for (int i = 0; i < 4; ++i) submit("a", i);
  ASSERT_TRUE(engine.Step());
  submit("b", 9);  // the youngest of all, and its tenant's only one
  engine.RunAll();
  ASSERT_GT(engine.scheduler.n_preemptions(), 0);
  EXPECT_EQ(engine.Read(ids[4]).all.cached_tokens, 0);
  for (size_t i = 0; i < ids.size(); ++i) engine.ExpectAnswer(ids[i], requests[i]);
  engine.ExpectNoPagesLeft();
}

TEST(SchedulerTenants, WhoIsAloneAgainIsServedInOrder) {
  SchedulerHarness engine(64, {.max_num_seqs = 1, .max_context = 200});
  std::vector<RequestId> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(engine.Submit(Of("a", i)));
  const RequestId other = engine.Submit(Of("b", 10));
  ASSERT_TRUE(engine.Step());
  engine.scheduler.Cancel(other);
  ids.push_back(engine.Submit(Of("a", 4)));
  ids.push_back(engine.Submit(Of("a", 5, 1, /*priority=*/-1)));
  EXPECT_THAT(OrderOfEnding(engine, ids), ElementsAre(ids[0], ids[4], ids[1], ids[2], ids[3]));
}

TEST(SchedulerTenants, TheirLinesAreCounted) {
  SchedulerHarness engine(64, {.max_num_seqs = 1, .max_context = 200});
  for (int i = 0; i < 3; ++i) engine.Submit(Of("a", i));
  engine.Submit(Of("b", 10));
  engine.Submit(Of("", 20));
  const auto count = [&](const std::string& tenant) {
    const auto line = engine.scheduler.tenant_lines().find(tenant);
    return line == engine.scheduler.tenant_lines().end()
               ? std::pair<int, int64_t>()
               : std::pair(line->second.requests, line->second.tokens);
  };
  EXPECT_EQ(count("a"), std::pair(3, int64_t{24}));
  EXPECT_EQ(count("b"), std::pair(1, int64_t{8}));
  EXPECT_EQ(engine.scheduler.tenant_lines().size(), 2u);
  ASSERT_TRUE(engine.Step());
  EXPECT_EQ(count("a"), std::pair(2, int64_t{16}));
  engine.RunAll();
  EXPECT_TRUE(engine.scheduler.tenant_lines().empty());
}

}  // namespace
}  // namespace t6

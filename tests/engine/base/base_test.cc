#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include "engine/base/check.h"
#include "engine/base/metrics.h"
#include "engine/base/status.h"

namespace t6 {
namespace {

TEST(StatusTest, MessagesCarryTheValueAndAnnotationTheWhere) {
  const Status status = Annotate(InvalidArgument("rank {} is above {}", 99, 64), "config.json");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MessageOf(status), "config.json: rank 99 is above 64");
  EXPECT_TRUE(Annotate(Status(), "anywhere").ok());
}

StatusOr<int> Half(int x) {
  if (x % 2 != 0) return InvalidArgument("{} is odd", x);
  return x / 2;
}

Status QuarterInto(int x, int* out) {
  T6_ASSIGN_OR_RETURN(const int half, Half(x));
  T6_ASSIGN_OR_RETURN(*out, Half(half));
  return {};
}

TEST(StatusTest, MacrosReturnTheFirstError) {
  int out = 0;
  EXPECT_TRUE(QuarterInto(12, &out).ok());
  EXPECT_EQ(out, 3);
  EXPECT_EQ(MessageOf(QuarterInto(6, &out)), "3 is odd");
}

TEST(CheckDeathTest, SaysWhatFailedAndWhere) {
  EXPECT_DEATH(T6_CHECK(1 + 1 == 3, "page {}", 7), "base_test.cc:.*1 \\+ 1 == 3.*page 7");
}

TEST(MetricsTest, EveryNameIsThereBeforeTheFirstRequest) {
  prometheus::Registry registry;
  EngineMetrics metrics(registry, "m");
  metrics.SetCacheConfig(64, 10, "fp8");
  metrics.CountFinished("stop");
  const std::string text = prometheus::TextSerializer().Serialize(registry.Collect());
  for (const char* name :
       {"vllm:num_requests_running{model_name=\"m\"} 0", "vllm:num_requests_waiting{",
        "vllm:kv_cache_usage_perc{", "vllm:cache_config_info{block_size=\"64\",cache_dtype=\"fp8\",",
        "vllm:prefix_cache_queries_total{", "vllm:prefix_cache_hits_total{", "vllm:prompt_tokens_total{",
        "vllm:generation_tokens_total{", "vllm:time_to_first_token_seconds_bucket{",
        "vllm:inter_token_latency_seconds_count{", "vllm:e2e_request_latency_seconds_sum{",
        "vllm:request_queue_time_seconds_bucket{", "vllm:num_preemptions_total{",
        "vllm:request_success_total{finished_reason=\"stop\",model_name=\"m\"} 1", "t6:factor_bytes{",
        "t6:max_num_seqs{", "t6:prefix_evictions_total{", "t6:steps_total{"}) {
    EXPECT_NE(text.find(name), std::string::npos) << name << "\n" << text;
  }
}

}  // namespace
}  // namespace t6

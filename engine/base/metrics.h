// The engine's Prometheus metrics, under the names that routers and dashboards already know (docs/api.md).
// Owns nothing: the metrics live in the registry, which outlives this struct. Thread-safe, as prometheus-cpp
// is.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <string>

namespace t6 {

struct EngineMetrics {
  // Registers every metric at zero, labelled model_name, so that a scrape before the first request shows them
  // all.
  EngineMetrics(prometheus::Registry& registry, const std::string& model_name);

  prometheus::Gauge& requests_running;         // vllm:num_requests_running
  prometheus::Gauge& requests_waiting;         // vllm:num_requests_waiting
  prometheus::Gauge& cache_usage;              // vllm:kv_cache_usage_perc, 0..1: pages held by requests
  prometheus::Counter& prefix_queries;         // vllm:prefix_cache_queries_total, tokens looked up
  prometheus::Counter& prefix_hits;            // vllm:prefix_cache_hits_total, tokens found
  prometheus::Counter& prompt_tokens;          // vllm:prompt_tokens_total
  prometheus::Counter& generation_tokens;      // vllm:generation_tokens_total
  prometheus::Counter& preemptions;            // vllm:num_preemptions_total
  prometheus::Gauge& max_num_seqs;             // t6:max_num_seqs
  prometheus::Histogram& time_to_first_token;  // vllm:time_to_first_token_seconds
  prometheus::Histogram& inter_token;          // vllm:inter_token_latency_seconds
  prometheus::Histogram& e2e_latency;          // vllm:e2e_request_latency_seconds
  prometheus::Histogram& queue_time;           // vllm:request_queue_time_seconds
  prometheus::Gauge& factor_bytes_device;  // t6:factor_bytes{tier="device"}: bytes of pages in use or cached
  prometheus::Counter& tokens_reused_device;  // t6:tokens_reused_total{tier="device"}
  prometheus::Counter&
      prefill_waits_shared;  // t6:prefill_waits_shared_total: requests that waited for a prefix in the making
  prometheus::Counter&
      prefix_evictions;        // t6:prefix_evictions_total: pages of prefixes that gave way to others
  prometheus::Counter& steps;  // t6:steps_total
  prometheus::Counter& step_plan_seconds;               // t6:step_seconds_total{phase="plan"}
  prometheus::Counter& step_forward_seconds;            // t6:step_seconds_total{phase="forward"}
  prometheus::Counter& step_commit_seconds;             // t6:step_seconds_total{phase="commit"}
  prometheus::Family<prometheus::Counter>& success;     // vllm:request_success_total{finished_reason}
  prometheus::Family<prometheus::Gauge>& cache_config;  // vllm:cache_config_info
  const std::string model_name;

  // reason: "stop", "length" or "abort".
  void CountFinished(const std::string& reason);
  void SetCacheConfig(int page_tokens, int n_pages, const std::string& cache_dtype);
};

}  // namespace t6

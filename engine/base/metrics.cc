#include "engine/base/metrics.h"

namespace t6 {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Histogram;
using prometheus::Registry;
using Labels = prometheus::Labels;

prometheus::Gauge& Gauge(Registry& r, const char* name, const char* help, const Labels& labels) {
  return BuildGauge().Name(name).Help(help).Register(r).Add(labels);
}

prometheus::Counter& Counter(Registry& r, const char* name, const char* help, const Labels& labels) {
  return BuildCounter().Name(name).Help(help).Register(r).Add(labels);
}

prometheus::Histogram& Seconds(Registry& r, const char* name, const char* help, const Labels& labels) {
  static const Histogram::BucketBoundaries kSeconds = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                       0.25,   0.5,   1,      2.5,   5,    10,    30,   60};
  return BuildHistogram().Name(name).Help(help).Register(r).Add(labels, kSeconds);
}

Labels With(Labels labels, const char* key, const char* value) {
  labels.emplace(key, value);
  return labels;
}

}  // namespace

EngineMetrics::EngineMetrics(Registry& r, const std::string& name)
    : requests_running(
          Gauge(r, "vllm:num_requests_running", "Requests in the running batch", {{"model_name", name}})),
      requests_waiting(
          Gauge(r, "vllm:num_requests_waiting", "Requests waiting to run", {{"model_name", name}})),
      cache_usage(Gauge(r, "vllm:kv_cache_usage_perc", "Share of pages held by requests, 0 to 1",
                        {{"model_name", name}})),
      prefix_queries(Counter(r, "vllm:prefix_cache_queries_total",
                             "Prompt tokens looked up in the prefix cache", {{"model_name", name}})),
      prefix_hits(Counter(r, "vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache",
                          {{"model_name", name}})),
      prompt_tokens(Counter(r, "vllm:prompt_tokens_total", "Prompt tokens of admitted requests",
                            {{"model_name", name}})),
      generation_tokens(
          Counter(r, "vllm:generation_tokens_total", "Tokens generated", {{"model_name", name}})),
      preemptions(Counter(r, "vllm:num_preemptions_total", "Requests preempted because pages ran out",
                          {{"model_name", name}})),
      max_num_seqs(Gauge(r, "t6:max_num_seqs", "Requests that can run at once", {{"model_name", name}})),
      time_to_first_token(Seconds(r, "vllm:time_to_first_token_seconds", "Submission to first token",
                                  {{"model_name", name}})),
      inter_token(Seconds(r, "vllm:inter_token_latency_seconds", "Between two tokens of one request",
                          {{"model_name", name}})),
      e2e_latency(
          Seconds(r, "vllm:e2e_request_latency_seconds", "Submission to last token", {{"model_name", name}})),
      queue_time(
          Seconds(r, "vllm:request_queue_time_seconds", "Submission to admission", {{"model_name", name}})),
      factor_bytes_device(Gauge(r, "t6:factor_bytes", "Bytes of factor pages in use or cached",
                                With({{"model_name", name}}, "tier", "device"))),
      tokens_reused_device(Counter(r, "t6:tokens_reused_total", "Prompt tokens whose factors were reused",
                                   With({{"model_name", name}}, "tier", "device"))),
      prefill_waits_shared(Counter(r, "t6:prefill_waits_shared_total",
                                   "Requests that waited for a prefix in the making",
                                   {{"model_name", name}})),
      prefix_evictions(Counter(r, "t6:prefix_evictions_total",
                               "Pages of cached prefixes that gave way to other tokens",
                               {{"model_name", name}})),
      steps(Counter(r, "t6:steps_total", "Steps of the engine", {{"model_name", name}})),
      step_plan_seconds(Counter(r, "t6:step_seconds_total", "Time in steps by phase",
                                With({{"model_name", name}}, "phase", "plan"))),
      step_forward_seconds(Counter(r, "t6:step_seconds_total", "Time in steps by phase",
                                   With({{"model_name", name}}, "phase", "forward"))),
      step_commit_seconds(Counter(r, "t6:step_seconds_total", "Time in steps by phase",
                                  With({{"model_name", name}}, "phase", "commit"))),
      success(
          BuildCounter().Name("vllm:request_success_total").Help("Requests finished, by reason").Register(r)),
      cache_config(BuildGauge()
                       .Name("vllm:cache_config_info")
                       .Help("Page size, number of pages and type of the factors in them")
                       .Register(r)),
      model_name(name) {
  for (const char* reason : {"stop", "length", "abort"})
    success.Add({{"model_name", name}, {"finished_reason", reason}});
}

void EngineMetrics::CountFinished(const std::string& reason) {
  success.Add({{"model_name", model_name}, {"finished_reason", reason}}).Increment();
}

void EngineMetrics::SetCacheConfig(int page_tokens, int n_pages, const std::string& cache_dtype) {
  cache_config
      .Add({{"model_name", model_name},
            {"block_size", std::to_string(page_tokens)},
            {"cache_dtype", cache_dtype},
            {"num_gpu_blocks", std::to_string(n_pages)}})
      .Set(1);
}

}  // namespace t6

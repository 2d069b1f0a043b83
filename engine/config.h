// How an engine is made, and what it turned out to be. Plain data.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/tensor/dtype.h"

namespace t6 {

struct EngineConfig {
  std::string model_directory;
  std::string device = "auto";       // auto | cpu | cuda
  std::string dtype = "bf16";        // bf16 | f32: weights and products
  std::string cache_dtype = "auto";  // auto (as dtype) | bf16 | f32 | fp8
  int threads = 0;                   // 0: by affinity and cgroup quota
  size_t cache_bytes = 0;            // 0: automatic
  int max_context = 0;               // 0: the model's block_size; may exceed it
  int max_num_seqs = 64;
  int max_queued_requests = 1024;  // bound of the inbox and the waiting line
  int64_t max_queued_tokens = 1 << 22;
  int max_queued_per_tenant = 0;  // of requests, of a tenant with a name; 0: half. Of the tokens half, too
  double max_step_ms = 25.0;      // budget of estimated cost that keeps decode smooth
  int max_step_rows = 0;          // query tokens of one step at most; 0: what suits the device
  std::string variant;
  std::map<std::string, std::string> model_overrides;
  // Ids from here up are never sampled; 0: the whole table has text. The server sets it from the tokenizer.
  int n_text_tokens = 0;
  // Told the share of the weights that is loaded, 0 to 1, on the thread that calls Create.
  std::function<void(double)> on_load_progress;
};

// The memory plan: made before anything large is allocated, printed by --plan.
struct MemoryPlan {
  size_t weight_bytes = 0;
  size_t workspace_bytes = 0;
  size_t page_bytes = 0;  // one page in every layer
  int n_pages = 0;
  size_t cache_bytes = 0;
  size_t available_bytes = 0;
  int64_t cache_tokens() const { return int64_t{n_pages} * 64; }
};

// Where sampling parameters that a request leaves out come from (generation_config.json).
struct ModelInfo {
  std::string variant;
  int vocab_size = 0;
  int n_layers = 0;
  int width = 0;  // of the residual stream
  int max_context = 0;
  int64_t n_parameters = 0;
  std::string device;       // "cpu: AVX-512 bf16, 2 threads"
  std::string dtype;        // of weights and products: "bf16"
  std::string cache_dtype;  // of cached factors: "fp8"
  std::optional<double> default_temperature, default_top_p;
  std::optional<int> default_top_k, default_max_new_tokens;
  std::vector<int32_t> eos_token_ids;
  MemoryPlan memory;
  std::string slow_attention;  // what the device has no kernel of its own for; empty: nothing
  std::string why_not_cuda;    // --device auto took the CPU: what the GPU lacks, where there could be one
};

struct EngineStats {
  int running = 0;
  int waiting = 0;
  int pages_total = 0;
  int pages_held = 0;    // by sequences
  int pages_cached = 0;  // by the prefix tree alone: reusable
};

}  // namespace t6

// Attention alone on the CPU, in the shapes of the shipped model: milliseconds for all layers of one step,
// and beside each figure its floor, the time to read the same bytes of factors once, measured in the same
// run. usage: attention_cpu [threads] [target, "" for the best] [part of a case's name]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "engine/backend/cpu/tpa_attention_impl.h"

namespace t6::cpu {
namespace {

constexpr int kLayers = 6;

// The least of several timings, in milliseconds.
double Best(const std::function<void()>& f) {
  double best = 1e9;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 200; ++i) {
    const auto t0 = std::chrono::steady_clock::now();
    f();
    const auto t1 = std::chrono::steady_clock::now();
    best = std::min(best, std::chrono::duration<double, std::milli>(t1 - t0).count());
    if (i >= 4 && t1 - start > std::chrono::milliseconds(700)) break;
  }
  return best;
}

double ReadMilliseconds(ThreadPool& pool, size_t bytes) {
  std::vector<uint64_t> buffer(bytes / 8 + 64, 1);
  std::vector<uint64_t> sums(64 * pool.n_threads());
  const size_t piece = 32768;  // words
  return Best([&] {
    pool.Run(static_cast<int>((bytes / 8 + piece - 1) / piece), [&](int i, int worker) {
      const size_t begin = i * piece, end = std::min(bytes / 8, begin + piece);
      uint64_t sum[16] = {};
      for (size_t k = begin; k + 16 <= end; k += 16) {
        for (int j = 0; j < 16; ++j) sum[j] += buffer[k + j];
      }
      for (uint64_t s : sum) sums[64 * worker] += s;
    });
  });
}

struct Case {
  const char* name;
  DType dtype;
  int n_sequences, context, rows;  // context before the step
  bool shared;
};

void Run(const Case& c, ThreadPool& pool, const AttentionKernels& kernels) {
  AttentionSpec spec;
  spec.n_heads = 13, spec.head_dim = 64, spec.rotary_dim = 64;
  spec.q.rank = 6, spec.k.rank = 2, spec.v.rank = 2;
  const PageLayout layout(spec, c.dtype);
  const int total = c.context + c.rows, pages_each = (total + kPageTokens - 1) / kPageTokens;
  const int shared_pages = c.shared ? c.context / kPageTokens : 0;
  const int n_pages = shared_pages + c.n_sequences * (pages_each - shared_pages);

  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const size_t layer_bytes = layout.page_bytes() * n_pages;
  std::vector<uint8_t> cache(layer_bytes * kLayers + 128);
  auto* base = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(cache.data()) + 127) / 128 * 128);
  for (size_t i = 0; i < layer_bytes * kLayers / SizeOf(c.dtype); ++i) {
    const float x = static_cast<float>(static_cast<int>(i * 2654435761u >> 16 & 1023) - 512) / 512.0f;
    if (c.dtype == DType::kF32)
      reinterpret_cast<float*>(base)[i] = x;
    else
      reinterpret_cast<bf16*>(base)[i] = ToBf16(x);
  }
  StepPlan plan;
  plan.Clear();
  for (int s = 0; s < c.n_sequences; ++s) {
    std::vector<int32_t> ids(pages_each);
    for (int p = 0; p < pages_each; ++p) {
      ids[p] = p < shared_pages ? p : shared_pages + s * (pages_each - shared_pages) + p - shared_pages;
    }
    for (int i = 0; i < c.rows; ++i) {
      plan.token_ids.push_back(0);
      plan.positions.push_back(c.context + i);
      plan.slots.push_back(ids[(c.context + i) / kPageTokens] * kPageTokens + (c.context + i) % kPageTokens);
    }
    plan.row_begin.push_back(plan.n_rows());
    plan.context_len.push_back(total);
    plan.page_ids.insert(plan.page_ids.end(), ids.begin(), ids.end());
    plan.page_begin.push_back(static_cast<int32_t>(plan.page_ids.size()));
  }
  if (c.shared) plan.shared_prefixes = {{0, c.n_sequences, shared_pages}};
  std::vector<float> qkv(static_cast<size_t>(plan.n_rows()) * spec.qkv_elements());
  for (float& x : qkv) x = normal(random);
  const std::vector<float> cos(static_cast<size_t>(total) * 32, 1.0f),
      sin(static_cast<size_t>(total) * 32, 0.0f);
  std::vector<float> out(static_cast<size_t>(plan.n_rows()) * 13 * 64);

  const auto attention = MakeTpaAttention(&pool, kernels, kernels);
  const StepLimits limits{plan.n_rows(), c.n_sequences, 1, total};
  if (!attention->Reserve(limits, spec).ok()) return;
  double store = 0.0;
  const auto step = [&](bool run) {
    attention->Plan(plan, spec);
    for (int layer = 0; layer < kLayers; ++layer) {
      const LayerPages pages{base + layer * layer_bytes, &layout, n_pages};
      attention->Store({&spec, qkv.data(), cos.data(), sin.data(), pages});
      if (run) attention->Run({&spec, qkv.data(), cos.data(), sin.data(), pages, nullptr, out.data()});
    }
  };
  store = Best([&] { step(false); });
  const double ms = Best([&] { step(true); });
  const double bytes = static_cast<double>(layer_bytes) * kLayers;
  const double floor = ReadMilliseconds(pool, static_cast<size_t>(bytes));
  fmt::print(
      "{:24} {:5} {:12} {:8.3f} ms  store {:6.3f}  {:6.2f} MB  floor {:6.3f} ms ({:5.1f} GB/s)  floor/time "
      "{:4.2f}\n",
      c.name, NameOf(c.dtype), kernels.name, ms, store, bytes / 1e6, floor, bytes / floor / 1e6, floor / ms);
}

void Main(int n_threads, const std::string& target, const std::string& part) {
  ThreadPool pool(n_threads);
  const Case cases[] = {{"decode at 64", DType::kBF16, 1, 64, 1, false},
                        {"decode at 1k", DType::kBF16, 1, 1000, 1, false},
                        {"decode at 4k", DType::kBF16, 1, 4095, 1, false},
                        {"decode at 16k", DType::kBF16, 1, 16383, 1, false},
                        {"16 on one 1k prompt", DType::kBF16, 16, 1030, 1, true},
                        {"16 apart at 1k", DType::kBF16, 16, 1030, 1, false},
                        {"8 rows at 1k", DType::kBF16, 1, 1000, 8, false},
                        {"16 rows at 1k", DType::kBF16, 1, 1000, 16, false},
                        {"prefill 512", DType::kBF16, 1, 0, 512, false},
                        {"prefill 512 at 4k", DType::kBF16, 1, 4096, 512, false},
                        {"decode at 4k", DType::kF32, 1, 4095, 1, false},
                        {"prefill 512", DType::kF32, 1, 0, 512, false}};
  for (const Case& c : cases) {
    if (std::string_view(c.name).find(part) == std::string_view::npos) continue;
    for (const AttentionKernels& kernels : AllAttentionKernels(c.dtype)) {
      const bool best = kernels.name == BestAttentionKernels(c.dtype).name;
      if (target.empty() ? best : target == "all" || kernels.name == target) Run(c, pool, kernels);
    }
  }
}

}  // namespace
}  // namespace t6::cpu

int main(int argc, char** argv) {
  t6::cpu::Main(argc > 1 ? std::atoi(argv[1]) : t6::AvailableThreads(), argc > 2 ? argv[2] : "",
                argc > 3 ? argv[3] : "");
  return 0;
}

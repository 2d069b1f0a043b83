#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/ptx.cuh"
#include "engine/backend/cuda/sampling_kernels.h"
#include "engine/backend/cuda/sampling_key.cuh"

namespace t6::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits, kKeyBits = 64;
constexpr float kWeightScale = 0x1p44f;

struct Shared {
  uint64_t warp_values[kWarps];
  double warp_sums[kWarps];
  unsigned long long masses[kDigits];
  uint32_t counts[kDigits];
  uint64_t chosen;  // what one thread found, for all
  uint64_t passed;  // mass before it
  uint32_t n_inside, n_before;
};

// Results are valid in every thread.
__device__ uint64_t BlockMin(uint64_t x, Shared& s) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) {
    const uint64_t other = __shfl_xor_sync(~0u, x, i);
    x = other < x ? other : x;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.warp_values[threadIdx.x / 32] = x;
  __syncthreads();
  x = s.warp_values[threadIdx.x % 32];
#pragma unroll
  for (int i = 16; i > 0; i /= 2) {
    const uint64_t other = __shfl_xor_sync(~0u, x, i);
    x = other < x ? other : x;
  }
  return x;
}
__device__ double BlockSum(double x, Shared& s) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.warp_sums[threadIdx.x / 32] = x;
  __syncthreads();
  x = s.warp_sums[threadIdx.x % 32];
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  return x;
}

// One row's distribution over the ids that may be sampled: weights exp((logit - max) / temperature) as
// integers, cut to the ids whose keys are at most `last_key`.
class Draw {
 public:
  __device__ Draw(const float* logits, int n, float max, float temperature, Shared& s)
      : logits_(logits), n_(n), max_(max), scale_(1.0f / temperature), s_(s) {}

  __device__ uint64_t Weight(float logit) const {
    return __float2ull_rn(expf((logit - max_) * scale_) * kWeightScale);
  }

  // Keeps the `n` largest.
  __device__ void KeepMost(uint32_t n) { Cut<false>(n); }
  // Keeps the fewest largest whose weights reach `share` of what is left.
  __device__ void KeepMass(float share) {
    const double wanted = ceil(static_cast<double>(share) * static_cast<double>(TotalWeight()));
    if (wanted >= 1.0) {
      Cut<true>(static_cast<uint64_t>(wanted));
    } else {
      Cut<false>(1);
    }
  }

  // The first id, ascending, whose running sum passes `uniform` of the total.
  __device__ int32_t Take(double uniform) {
    // A warp has a run of ids; the warp whose run holds the target looks closer.
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int run = ((n_ + kWarps - 1) / kWarps + 31) / 32 * 32;
    const int begin = min(n_, warp * run), end = min(n_, begin + run);
    uint64_t own = 0;
    for (int i = begin + lane; i < end; i += 32) own += Kept(i);
#pragma unroll
    for (int i = 16; i > 0; i /= 2) own += __shfl_xor_sync(~0u, own, i);
    __syncthreads();
    if (lane == 0) s_.warp_values[warp] = own;
    if (threadIdx.x == 0) s_.chosen = 0;
    __syncthreads();
    uint64_t total = 0, before = 0;
    int last_warp = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += s_.warp_values[w];
      if (s_.warp_values[w] > 0) last_warp = w;
      total += s_.warp_values[w];
    }
    const double target = uniform * static_cast<double>(total);
    // Rounding may leave the target a hair past the end: the last id with a weight then.
    const bool holds = static_cast<double>(before) <= target &&
                       (static_cast<double>(before + own) > target || warp == last_warp) && own > 0;
    if (holds) Search(begin, end, before, target, lane);
    __syncthreads();
    return static_cast<int32_t>(s_.chosen);
  }

 private:
  __device__ uint64_t Kept(int i) const {
    const float logit = logits_[i];
    return KeyOf(logit, i) <= last_key_ ? Weight(logit) : 0;
  }

  __device__ uint64_t TotalWeight() {
    uint64_t own = 0;
    for (int i = threadIdx.x; i < n_; i += kThreads) own += Kept(i);
#pragma unroll
    for (int i = 16; i > 0; i /= 2) own += __shfl_xor_sync(~0u, own, i);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s_.warp_values[threadIdx.x / 32] = own;
    __syncthreads();
    uint64_t total = 0;
    for (int w = 0; w < kWarps; ++w) total += s_.warp_values[w];
    return total;
  }

  __device__ void Search(int begin, int end, uint64_t passed, double target, int lane) {
    int32_t found = -1;
    for (int base = begin; base < end; base += 32) {
      uint64_t sum = base + lane < end ? Kept(base + lane) : 0;
      const uint64_t weight = sum;
#pragma unroll
      for (int i = 1; i < 32; i *= 2) {
        const uint64_t below = __shfl_up_sync(~0u, sum, i);
        if (lane >= i) sum += below;
      }
      const unsigned some = __ballot_sync(~0u, weight > 0);
      const unsigned past = __ballot_sync(~0u, weight > 0 && static_cast<double>(passed + sum) > target);
      if (some != 0) found = base + 31 - __clz(some);
      if (past != 0) {
        found = base + __ffs(past) - 1;
        break;
      }
      passed += __shfl_sync(~0u, sum, 31);
    }
    if (lane == 0) s_.chosen = static_cast<uint64_t>(found);
  }

  // Lowers last_key_ to the smallest key up to which there are `wanted` ids, or weights of `wanted`: digit
  // by digit from the top, each time among the keys that share the digits already known.
  template <bool kByMass>
  __device__ void Cut(uint64_t wanted) {
    uint64_t prefix = 0;
    for (int shift = kKeyBits - kDigitBits, known = 0;; shift = max(shift - kDigitBits, 0)) {
      const int bits = kKeyBits - known - shift;  // of this digit
      for (int i = threadIdx.x; i < kDigits; i += kThreads) s_.masses[i] = 0, s_.counts[i] = 0;
      __syncthreads();
      for (int i = threadIdx.x; i < n_; i += kThreads) {
        const float logit = logits_[i];
        const uint64_t key = KeyOf(logit, i);
        if (key > last_key_ || (known > 0 && (key >> (kKeyBits - known)) != prefix)) continue;
        const auto digit = static_cast<uint32_t>(key >> shift) & ((1u << bits) - 1);
        atomicAdd(&s_.counts[digit], 1u);
        if constexpr (kByMass) atomicAdd(&s_.masses[digit], static_cast<unsigned long long>(Weight(logit)));
      }
      __syncthreads();
      if (threadIdx.x < 32) Find<kByMass>(wanted);
      __syncthreads();
      prefix = (prefix << bits) | s_.chosen;
      known += bits;
      wanted -= s_.passed;
      if (shift == 0) {
        last_key_ = prefix;
        break;
      }
      // All that share these digits are kept: no need to look closer.
      if (s_.n_inside == 1 || (!kByMass && s_.n_inside == wanted)) {
        const uint64_t all_ones = (uint64_t{1} << shift) - 1;
        last_key_ = min(last_key_, (prefix << shift) | all_ones);
        break;
      }
      __syncthreads();
    }
    __syncthreads();
  }

  // One warp: the first digit at which the running sum reaches `wanted` (or the last that there is).
  template <bool kByMass>
  __device__ void Find(uint64_t wanted) {
    const int lane = threadIdx.x;
    uint64_t passed = 0, last_passed = 0;
    int last = 0;
    for (int base = 0; base < kDigits; base += 32) {
      const uint64_t own = kByMass ? s_.masses[base + lane] : s_.counts[base + lane];
      uint64_t sum = own;
#pragma unroll
      for (int i = 1; i < 32; i *= 2) {
        const uint64_t below = __shfl_up_sync(~0u, sum, i);
        if (lane >= i) sum += below;
      }
      const unsigned some = __ballot_sync(~0u, own > 0);
      const unsigned reached = __ballot_sync(~0u, own > 0 && passed + sum >= wanted);
      const int at = reached != 0 ? __ffs(reached) - 1 : 31 - __clz(some);
      if (some != 0) {
        last = base + at;
        last_passed = passed + __shfl_sync(~0u, sum - own, at);
      }
      if (reached != 0) break;
      passed += __shfl_sync(~0u, sum, 31);
    }
    if (lane == 0) {
      s_.chosen = static_cast<uint64_t>(last);
      s_.passed = last_passed;
      s_.n_inside = s_.counts[last];
    }
  }

  const float* logits_;
  int n_;
  float max_, scale_;
  uint64_t last_key_ = ~uint64_t{0};
  Shared& s_;
};

__device__ int32_t Choose(const SampleRow& row, const float* logits, int n_text, uint64_t best, Shared& s) {
  if (row.score_token >= 0) return row.score_token;
  if (row.temperature <= 0.0f) return IdOf(best);
  Draw draw(logits, n_text, LogitOf(best), row.temperature, s);
  if (row.top_k > 0 && row.top_k < n_text) draw.KeepMost(static_cast<uint32_t>(row.top_k));
  if (row.top_p < 1.0f) draw.KeepMass(row.top_p);
  return draw.Take(row.uniform);
}

// The greedy token, whose key the head's product has found; 0: a logit is not finite.
__device__ void PutGreedy(uint64_t best, SampleResult& result, int32_t& sampled) {
  result.is_finite = best != 0 ? 1 : 0;
  sampled = IdOf(best);
  if (best == 0) return;
  result.token = IdOf(best), result.n_top = 0, result.logprob = __int_as_float(0x7fc00000);
}

__global__ void __launch_bounds__(kThreads) Sample(const __grid_constant__ SampleCall call) {
  __shared__ Shared s;
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  const SampleRow row = call.rows[blockIdx.x];
  if (call.best != nullptr) {
    const bool suffices = row.is_used != 0 && row.temperature <= 0.0f && row.score_token < 0 && row.n_top < 0;
    if (threadIdx.x == 0) {
      const uint64_t best = call.best[blockIdx.x];
      call.best[blockIdx.x] = ~uint64_t{0};
      if (suffices) PutGreedy(best, call.results[row.result], call.sampled[blockIdx.x]);
    }
    if (suffices) return;
  }
  if (row.is_used == 0) return;
  const float* logits = call.logits + static_cast<int64_t>(blockIdx.x) * call.vocab;
  SampleResult& result = call.results[row.result];
  const int n_text = max(1, min(call.n_text, call.vocab));

  uint64_t best_text = ~uint64_t{0}, best = ~uint64_t{0};
  bool finite = true;
#pragma unroll 8
  for (int i = threadIdx.x; i < call.vocab; i += kThreads) {
    const float logit = logits[i];
    finite = finite && isfinite(logit);
    const uint64_t key = KeyOf(logit, i);
    best = min(best, key);
    if (i < n_text) best_text = min(best_text, key);
  }
  finite = __syncthreads_and(finite) != 0;
  if (!finite) {
    if (threadIdx.x == 0) result.is_finite = 0, call.sampled[blockIdx.x] = 0;
    return;
  }
  best_text = BlockMin(best_text, s);
  const int32_t token = Choose(row, logits, n_text, best_text, s);
  if (threadIdx.x == 0) {
    result.token = token, result.is_finite = 1, result.n_top = 0;
    result.logprob = __int_as_float(0x7fc00000);
    call.sampled[blockIdx.x] = token;
  }
  if (row.n_top < 0 && row.score_token < 0) return;

  best = BlockMin(best, s);
  const float max = LogitOf(best);
  double sum = 0.0;
  for (int i = threadIdx.x; i < call.vocab; i += kThreads) sum += expf(logits[i] - max);
  const double log_sum = max + log(BlockSum(sum, s));
  if (threadIdx.x == 0 && token < call.vocab) {
    result.logprob = static_cast<float>(logits[token] - log_sum);
  }
  const int n_top = min(min(row.n_top, kMaxTop), call.vocab);
  uint64_t last = 0;
  for (int k = 0; k < n_top; ++k) {
    uint64_t next = ~uint64_t{0};
    for (int i = threadIdx.x; i < call.vocab; i += kThreads) {
      const uint64_t key = KeyOf(logits[i], i);
      if ((k == 0 || key > last) && key < next) next = key;
    }
    last = BlockMin(next, s);
    if (threadIdx.x == 0) {
      result.top_tokens[k] = IdOf(last);
      result.top_logprobs[k] = static_cast<float>(LogitOf(last) - log_sum);
      result.n_top = k + 1;
    }
  }
}

}  // namespace

cudaError_t LaunchSample(const SampleCall& call, cudaStream_t stream) {
  if (call.n_rows == 0) return cudaSuccess;
  return LaunchOverlapped(&Sample, dim3(call.n_rows), kThreads, 0, stream, call);
}

}  // namespace t6::cuda

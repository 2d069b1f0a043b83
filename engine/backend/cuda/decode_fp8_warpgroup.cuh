// A warpgroup's work on fp8 pages on Hopper: scores of 64 tokens and all heads, weights, values. A warp makes
// 16 tokens of B_K half precision in registers once, whatever the number of heads, and the query is the other
// operand, in shared memory. Weights times A_V go through shared memory and meet B_V transposed, 16 numbers
// of d a warp.
#pragma once

#include "engine/backend/cuda/decode_fp8_shared.cuh"
#include "engine/backend/cuda/decode_fp8_wgmma.cuh"

namespace t6::cuda {

// A lane's part of a warpgroup's work, all in registers. With g = lane / 4 and c = lane % 4 it has tokens
// 16 warp + 2 g and the next, numbers 16 warp + 2 g and the next of d, and heads 8 tile + 2 c and the next.
template <class T>
class Fp8Warpgroup {
  static constexpr int kRank = T::kRank, kTiles = T::kTiles, kNumbers = T::kTiles * 4;
  static constexpr float kBias = 0x1p-8f;      // see Fp8ConsumerWarp
  static constexpr float kKeyBias = 0x1p+7f;   // keeps what is 2^-15 of a token's greatest term exact
  static constexpr float kTooMuch = 0x1p+15f;  // of a weight, for half precision

 public:
  __device__ Fp8Warpgroup(const DecodeParams& p, const Fp8Shared<T>& shared, int group, int warp, int lane)
      : p_(p), shared_(shared), ring_(p, shared, lane), group_(group), warp_(warp), lane_(lane) {
    const int g = lane >> 2, c = lane & 3, matrix = lane >> 3, row = lane & 7;
    first_head_ = T::kHeadGroups == 2 ? group * T::kHeads : 0;
    key_offset_ = SwizzledByte((16 * warp + 2 * g) * 64 + 16 * c);
    value_offset_ = SwizzledByte((16 * (matrix >> 1) + 2 * row + (matrix & 1)) * 64 + 16 * warp);
    const int scales = T::kHeadOffset + (kRank * p.n_heads * 64 + 127) / 128 * 128;
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
      const int head = r * p.n_heads + first_head_ + 8 * matrix + row;
      head_offset_[r] = T::kHeadOffset + SwizzledByte(head * 64 + 16 * warp);
      scale_offset_[r] = SwizzledByte(scales + r * 256 + (16 * warp + 2 * g) * 4);
    }
    const uint32_t weights = ptx::SharedAddress(shared.Weights(group));
    weight_store_ = weights + (8 * (matrix >> 1) + row) * 128 + (((2 * warp + (matrix & 1)) ^ row) << 4);
    // Kept as they are: the compiler would form them anew on every page.
    ptx::Opaque(key_offset_), ptx::Opaque(value_offset_), ptx::Opaque(weight_store_);
#pragma unroll
    for (int r = 0; r < kRank; ++r) ptx::Opaque(head_offset_[r]), ptx::Opaque(scale_offset_[r]);
    query_tile_ = wgmma::Tile(ptx::SharedAddress(shared.tiles) + first_head_ * 128);
    weight_tile_ = wgmma::Tile(weights);
  }

  // The query lies in its tile.
  __device__ void Start() {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) out_[i] = 0.0f;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        max_[2 * n + j] = Head(n, j) < p_.n_heads ? kNoMax : -kNoMax;  // see ConsumerWarp
        sum_[2 * n + j] = 0.0f;
      }
    }
    largest_scale_ = 0x1p-100f;
  }

  // The first n pages of a segment, those that are this warpgroup's.
  __device__ void AttendFull(int n) {
    constexpr int kTurns = T::kHeadGroups == 2 ? 1 : 2;
    int page = 0;
    if (kTurns == 2 && group_ == 1 && n > 0) ring_.SkipPage(), page = 1;
    for (; page < n; page += kTurns) {
      Attend<false>(64);
      if (kTurns == 2 && page + 1 < n) ring_.SkipPage();
    }
    SettleValues();
  }
  // A page that is not full.
  __device__ void AttendLast(int page, int valid) {
    if (T::kHeadGroups == 1 && page % 2 != group_) {
      ring_.SkipPage();
      return;
    }
    Attend<true>(valid);
    SettleValues();
  }

  // Joins the warpgroups' results and writes the segment's.
  __device__ void Finish(const DecodeSegment& segment, int index) {
    auto& own = shared_.OfGroup(group_);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float& sum = sum_[2 * n + j];
#pragma unroll
        for (int i = 4; i < 32; i *= 2) sum += __shfl_xor_sync(~0u, sum, i);
      }
      if (lane_ < 4) {
        *reinterpret_cast<float2*>(&own.of_warp[warp_][8 * n + 2 * lane_]) =
            make_float2(sum_[2 * n], sum_[2 * n + 1]);
        if (warp_ == 0) {
          own.max_sum[8 * n + 2 * lane_].x = max_[2 * n];
          own.max_sum[8 * n + 2 * lane_ + 1].x = max_[2 * n + 1];
        }
      }
    }
    ptx::NamedBarrier(Barrier(), 128);  // now the bytes of the weights are free, too
    ring_.Release();
    const int thread = warp_ * 32 + lane_;
    if (thread < T::kHeads) {
      own.max_sum[thread].y =
          own.of_warp[0][thread] + own.of_warp[1][thread] + own.of_warp[2][thread] + own.of_warp[3][thread];
    }
    if constexpr (T::kHeadGroups == 2) {
      ptx::NamedBarrier(Barrier(), 128);
      Write<0, kTiles, false>(segment, index);
    } else {
      constexpr int kHalf = kTiles / 2;
      group_ == 0 ? Give<kHalf, kTiles>() : Give<0, kHalf>();
      ptx::NamedBarrier(kConsumerBarrier, T::kConsumers);
      group_ == 0 ? Write<0, kHalf, true>(segment, index) : Write<kHalf, kTiles, true>(segment, index);
    }
    ptx::NamedBarrier(kConsumerBarrier, T::kConsumers);
  }

 private:
  // The next page, of which `valid` tokens exist where it is masked.
  template <bool kMasked>
  __device__ void Attend(int valid) {
    float logit[kNumbers], multiplier[2];
    Score(ring_.Next(), logit, multiplier);
    const int token = 16 * warp_ + 2 * (lane_ >> 2);
    if constexpr (kMasked) Mask(valid - token, logit, multiplier);
    float weight[kNumbers], more[2 * kTiles];
    Weigh(logit, multiplier, weight, more);

    const uint32_t stage = ring_.Next();
    float2 scales[kRank];
    float largest = 0.0f;
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
      scales[r] = ptx::LoadSharedFloats(stage + scale_offset_[r]);
      if constexpr (kMasked) {
        if (token >= valid) scales[r].x = 0.0f;
        if (token + 1 >= valid) scales[r].y = 0.0f;
      }
      largest = fmaxf(largest, fmaxf(scales[r].x, scales[r].y));
    }
    float most = more[0];
#pragma unroll
    for (int i = 1; i < 2 * kTiles; ++i) most = fmaxf(most, more[i]);
    // Behind this barrier the products that read the weights of the page before are done, too.
    if (ptx::NamedBarrierAny(Barrier(), 128, most > kTooMuch || largest > largest_scale_)) {
      Raise(logit, multiplier, largest);
      Weigh(logit, multiplier, weight, more);
    }
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) sum_[i] += more[i];
    StoreWeights<kMasked>(stage, weight, scales, valid - token);
    LoadValues<kMasked>(stage, valid);
    wgmma::FenceShared();
    ptx::NamedBarrier(Barrier(), 128);
    wgmma::Fence();
#pragma unroll
    for (int i = 0; i < kRank * 4; ++i) {
      wgmma::MmaHalf(out_, value_[i],
                     weight_tile_ + i / 4 * (T::kHeads * 128 >> 4) + i % 4 * wgmma::kColumnStep, 1);
    }
    wgmma::Commit();
  }

  __device__ int Barrier() const { return kConsumerBarrier + 1 + group_; }
  __device__ int Head(int tile, int j) const { return first_head_ + 8 * tile + 2 * (lane_ & 3) + j; }

  // Until the products with values are done.
  __device__ void SettleValues() {
    wgmma::Wait<0>();
    wgmma::Settle(out_);
#pragma unroll
    for (auto& value : value_) wgmma::Settle(value);
  }

  // A of all heads: a word a tile, [head][token] bytes.
  __device__ void LoadHeads(uint32_t stage, int r, uint32_t (&words)[kTiles]) const {
#pragma unroll
    for (int n = 0; n < kTiles; n += 4) {
      const uint32_t at = stage + head_offset_[r] + n * 8 * 64;
      if (n + 4 <= kTiles) {
        ptx::LoadMatricesTransposed(*reinterpret_cast<uint32_t(*)[4]>(&words[n]), at);
      } else {
        ptx::LoadTwoMatricesTransposed(*reinterpret_cast<uint32_t(*)[2]>(&words[n]), at);
      }
    }
  }

  // logit * multiplier of its token = sum over r of a_K,r * (Q B_K,r^T).
  __device__ void Score(uint32_t stage, float (&logit)[kNumbers], float (&multiplier)[2]) {
    uint32_t raw[kRank][2][4];
    float2 scales[kRank];
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
      ptx::LoadShared16Bytes(stage + key_offset_ + r * T::kRankBytes, raw[r][0]);
      ptx::LoadShared16Bytes(stage + (key_offset_ ^ 64) + r * T::kRankBytes, raw[r][1]);
      scales[r] = ptx::LoadSharedFloats(stage + scale_offset_[r]);
    }
    SettleValues();  // their registers are wanted
    uint32_t keys[kRank][4][4];
    WidenKeys(raw, scales, keys, multiplier);
    float score[kRank][kNumbers];
    wgmma::Fence();
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
#pragma unroll
      for (int step = 0; step < 4; ++step)
        wgmma::MmaHalf(score[r], keys[r][step], query_tile_ + step * wgmma::kColumnStep, step > 0);
    }
    wgmma::Commit();
    uint32_t words[kRank][kTiles];
#pragma unroll
    for (int r = 0; r < kRank; ++r) LoadHeads(stage, r, words[r]);
    wgmma::Wait<0>();
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
      wgmma::Settle(score[r]);
#pragma unroll
      for (int step = 0; step < 4; ++step) wgmma::Settle(keys[r][step]);
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int r = 0; r < kRank; ++r) {
        uint32_t half[2];  // of each head, for both tokens
        ptx::Fp8ToHalf(words[r][n], &half[0], &half[1]);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float2 a = ptx::HalvesToFloats(half[j]);
          float &x = logit[4 * n + j], &y = logit[4 * n + 2 + j];
          x = r == 0 ? a.x * score[r][4 * n + j] : fmaf(a.x, score[r][4 * n + j], x);
          y = r == 0 ? a.y * score[r][4 * n + 2 + j] : fmaf(a.y, score[r][4 * n + 2 + j], y);
        }
      }
    }
  }

  // Operands of the scores: a word of four numbers of d is a step's columns 2 c, 2 c + 1, 2 c + 8, 2 c + 9.
  // Terms of a token become relative to its largest scale, which its logits get back.
  __device__ void WidenKeys(const uint32_t (&raw)[kRank][2][4], const float2 (&scales)[kRank],
                            uint32_t (&keys)[kRank][4][4], float (&multiplier)[2]) const {
    uint32_t relative[kRank][2];
    multiplier[0] = scales[0].x, multiplier[1] = scales[0].y;
    if constexpr (kRank > 1) {
#pragma unroll
      for (int r = 1; r < kRank; ++r) {
        multiplier[0] = fmaxf(multiplier[0], scales[r].x), multiplier[1] = fmaxf(multiplier[1], scales[r].y);
      }
      const float to[2] = {kKeyBias * Reciprocal(multiplier[0]), kKeyBias * Reciprocal(multiplier[1])};
#pragma unroll
      for (int r = 0; r < kRank; ++r) {
        relative[r][0] = ptx::PackHalf(scales[r].x * to[0], scales[r].x * to[0]);
        relative[r][1] = ptx::PackHalf(scales[r].y * to[1], scales[r].y * to[1]);
      }
      multiplier[0] *= 1.0f / kKeyBias, multiplier[1] *= 1.0f / kKeyBias;
    }
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t *low = &keys[r][step][i], *high = &keys[r][step][2 + i];
          ptx::Fp8ToHalf(raw[r][i][step], low, high);
          if constexpr (kRank > 1)
            *low = ptx::MultiplyHalf(*low, relative[r][i]), *high = ptx::MultiplyHalf(*high, relative[r][i]);
        }
      }
    }
  }

  // Of a power of two.
  __device__ static float Reciprocal(float x) { return __uint_as_float(0x7f000000u - __float_as_uint(x)); }

  // `valid`: of the lane's tokens.
  __device__ static void Mask(int valid, float (&logit)[kNumbers], float (&multiplier)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i < valid) continue;
      multiplier[i] = 1.0f;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) logit[4 * n + 2 * i] = logit[4 * n + 2 * i + 1] = -INFINITY;
    }
  }

  // more: the weights' sums of each head.
  __device__ void Weigh(const float (&logit)[kNumbers], const float (&multiplier)[2],
                        float (&weight)[kNumbers], float (&more)[2 * kTiles]) const {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      weight[i] = ptx::Exp2(fmaf(logit[i], multiplier[i / 2 % 2], -max_[i / 4 * 2 + i % 2]));
    }
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) more[i] = weight[i / 2 * 4 + i % 2] + weight[i / 2 * 4 + 2 + i % 2];
  }

  // A weight too large for half precision or a scale of V greater than any before, somewhere in the
  // warpgroup: moves its bases.
  __device__ void Raise(const float (&logit)[kNumbers], const float (&multiplier)[2], float largest) {
    auto& own = shared_.OfGroup(group_);
#pragma unroll
    for (int i = 4; i < 32; i *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, i));
    if (lane_ == 0) own.scale[warp_] = largest;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float most[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        most[j] = fmaxf(logit[4 * n + j] * multiplier[0], logit[4 * n + 2 + j] * multiplier[1]);
#pragma unroll
        for (int i = 4; i < 32; i *= 2) most[j] = fmaxf(most[j], __shfl_xor_sync(~0u, most[j], i));
      }
      if (lane_ < 4)
        *reinterpret_cast<float2*>(&own.of_warp[warp_][8 * n + 2 * lane_]) = make_float2(most[0], most[1]);
    }
    ptx::NamedBarrier(Barrier(), 128);
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = fmaxf(largest, own.scale[i]);
    largest = fmaxf(largest, largest_scale_);
    const float shrink = largest_scale_ * Reciprocal(largest);
    largest_scale_ = largest;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float most = own.of_warp[0][8 * n + 2 * (lane_ & 3) + j];
#pragma unroll
        for (int i = 1; i < 4; ++i) most = fmaxf(most, own.of_warp[i][8 * n + 2 * (lane_ & 3) + j]);
        float& max = max_[2 * n + j];
        const float risen = fmaxf(max, most - T::kWeightBits), factor = ptx::Exp2(max - risen);
        max = risen;
        sum_[2 * n + j] *= factor;
        out_[4 * n + j] *= factor * shrink, out_[4 * n + 2 + j] *= factor * shrink;
      }
    }
  }

  // Weight times A_V,r of all heads into the other operand's tile.
  template <bool kMasked>
  __device__ void StoreWeights(uint32_t stage, const float (&weight)[kNumbers], const float2 (&scales)[kRank],
                               int valid) const {
    const float to_relative = kBias * Reciprocal(largest_scale_);
    const uint32_t keep = !kMasked || valid > 1 ? ~0u : valid > 0 ? 0x00ff00ffu : 0u;  // of a word of A
    uint32_t packed[2 * kTiles];
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) packed[i] = ptx::PackHalf(weight[2 * i], weight[2 * i + 1]);
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
      uint32_t words[kTiles];
      LoadHeads(stage, r, words);
      const uint32_t relative[2] = {ptx::PackHalf(scales[r].x * to_relative, scales[r].x * to_relative),
                                    ptx::PackHalf(scales[r].y * to_relative, scales[r].y * to_relative)};
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        uint32_t product[4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t x = words[n + i];
          if constexpr (kMasked) x &= keep;
          uint32_t a[2];  // of each token, for both heads
          ptx::Fp8ToHalf(__byte_perm(x, 0, 0x3120), &a[0], &a[1]);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            product[2 * i + j] =
                ptx::MultiplyHalf(packed[2 * (n + i) + j], ptx::MultiplyHalf(a[j], relative[j]));
          }
        }
        ptx::StoreMatricesTransposed(weight_store_ + r * T::kHeads * 128 + n * 8 * 128, product);
      }
    }
  }

  // Operands of the output: a step's columns are the even tokens of 16, then the odd ones.
  template <bool kMasked>
  __device__ void LoadValues(uint32_t stage, int valid) {
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
#pragma unroll
      for (int step = 0; step < 4; step += 2) {
        uint32_t words[4];
        ptx::LoadMatricesTransposed(words, stage + value_offset_ + r * T::kRankBytes + step * 16 * 64);
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // two numbers of a token, two of the next but one
          uint32_t x = words[i];
          if constexpr (kMasked) {
            const int token = 16 * (step + i / 2) + 4 * (lane_ & 3) + i % 2;
            x &= (token < valid ? 0xffffu : 0u) | (token + 2 < valid ? 0xffff0000u : 0u);
          }
          uint32_t(&to)[4] = value_[r * 4 + step + i / 2];
          ptx::Fp8ToHalf(__byte_perm(x, 0, 0x3120), &to[i % 2 * 2], &to[i % 2 * 2 + 1]);
        }
      }
    }
  }

  __device__ float4* Given(int group, int i) const {
    return reinterpret_cast<float4*>(shared_.Weights(group)) + i * 128 + warp_ * 32 + lane_;
  }
  // Tiles that the other warpgroup writes.
  template <int kBegin, int kEnd>
  __device__ void Give() const {
    const float scale = largest_scale_ / kBias;
#pragma unroll
    for (int n = kBegin; n < kEnd; ++n) {
      const float* o = &out_[4 * n];
      *Given(group_, n - kBegin) = make_float4(o[0] * scale, o[1] * scale, o[2] * scale, o[3] * scale);
    }
  }

  template <int kBegin, int kEnd, bool kJoins>
  __device__ void Write(const DecodeSegment& segment, int index) const {
    const bool writes_output = segment.is_whole && !p_.head_norm;
    const float scale = largest_scale_ / kBias;
    const int number = 16 * warp_ + 2 * (lane_ >> 2);
#pragma unroll
    for (int n = kBegin; n < kEnd; ++n) {
      float given[4] = {};
      if constexpr (kJoins) *reinterpret_cast<float4*>(given) = *Given(group_ ^ 1, n - kBegin);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int own_head = 8 * n + 2 * (lane_ & 3) + j, head = first_head_ + own_head;
        if (head >= p_.n_heads) continue;
        float2 ms = shared_.OfGroup(group_).max_sum[own_head];
        float x = out_[4 * n + j] * scale, y = out_[4 * n + 2 + j] * scale;
        if constexpr (kJoins) {
          const float2 other = shared_.OfGroup(group_ ^ 1).max_sum[own_head];
          const float most = fmaxf(ms.x, other.x);
          const float factor = ptx::Exp2(ms.x - most), others = ptx::Exp2(other.x - most);
          x = fmaf(given[j], others, x * factor), y = fmaf(given[2 + j], others, y * factor);
          ms = make_float2(most, fmaf(other.y, others, ms.y * factor));
        }
        if (writes_output) {
          const float share = 1.0f / (ms.y * kRank);
          p_.out.Store((static_cast<int64_t>(segment.row) * p_.n_heads + head) * T::kDim + number,
                       make_float2(x * share, y * share));
        } else {
          const int64_t slot = static_cast<int64_t>(index) * p_.n_heads + head;
          *reinterpret_cast<float2*>(p_.partials.out + slot * T::kDim + number) = make_float2(x, y);
          if (number == 0) p_.partials.max_sum[slot] = ms;
        }
      }
    }
  }

  const DecodeParams& p_;
  const Fp8Shared<T>& shared_;
  Fp8Ring<T> ring_;
  int group_, warp_, lane_, first_head_;
  uint32_t key_offset_, value_offset_, head_offset_[kRank], scale_offset_[kRank], weight_store_;
  uint64_t query_tile_, weight_tile_;
  float out_[kNumbers];  // [tile][d][head]
  float max_[2 * kTiles], sum_[2 * kTiles];
  float largest_scale_;                // of V, that out_ is relative to
  uint32_t value_[kRank * 4][4] = {};  // operands of products that may be under way
};

}  // namespace t6::cuda

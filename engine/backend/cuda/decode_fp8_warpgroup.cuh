// A warpgroup's work on fp8 pages on Hopper: scores of 64 tokens and all heads, weights, values. A warp makes
// 16 tokens of B_K half precision in registers once, whatever the number of heads, and the query is the other
// operand, in shared memory. Weights times A_V go through shared memory and meet B_V transposed, 16 numbers
// of d a warp.
#pragma once

#include "engine/backend/cuda/decode_fp8_shared.cuh"
#include "engine/backend/cuda/decode_fp8_wgmma.cuh"

namespace t6::cuda {

// A lane's part of a warpgroup's work, all in registers. With g = lane / 4 and c = lane % 4 it has tokens 16
// warp + 2 g and the next, numbers 16 warp + 2 g and the next of d, and heads 8 tile + 2 c and the next.
template <class T>
class Fp8Warpgroup {
  static constexpr int kRank = T::kRank, kTiles = T::kTiles, kNumbers = T::kTiles * 4;
  static constexpr float kBias = 0x1p-8f;      // see Fp8ConsumerWarp
  static constexpr float kKeyBias = 0x1p+7f;   // keeps terms down to 2^-22 of a token's greatest exact
  static constexpr float kTooMuch = 0x1p+15f;  // of a weight, for half precision

 public:
  __device__ Fp8Warpgroup(const DecodeParams& p, const Fp8Shared<T>& shared, Fp8StageReader<T>& ring,
                          int group, int warp, int lane)
      : p_(p), shared_(shared), ring_(ring), group_(group), warp_(warp), lane_(lane) {
    const int g = lane >> 2, c = lane & 3, matrix = lane >> 3, row = lane & 7;
    first_head_ = T::kHeadGroups > 1 ? group * T::kHeads : 0;
    key_offset_ = SwizzledByte((16 * warp + 2 * g) * 64 + 16 * c);
    value_offset_ = SwizzledByte((16 * (matrix >> 1) + 2 * row + (matrix & 1)) * 64 + 16 * warp);
    const int scales = ScalesOffset();
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
    if (Thread() < T::kHeads)
      shared_.OfGroup(group_).max_sum[Thread()].x = first_head_ + Thread() < p_.n_heads ? kNoMax : -kNoMax;
    largest_scale_ = 0x1p-100f;
  }

  // The pages of a segment that are this warpgroup's.
  __device__ void Attend(const DecodeSegment& segment) {
    first_turn_ = turn_;
    for (int page = 0; page < segment.n_pages; ++page) {
      const bool own = T::kPageGroups == 1 || turn_ == group_;
      if (++turn_ == T::kPageGroups) turn_ = 0;
      if (own) AttendPage(page + 1 < segment.n_pages ? 64 : segment.last_tokens);
    }
  }

  // Leaves the results of all heads in shared memory.
  __device__ void Publish() {
    auto& own = shared_.OfGroup(group_);
    Gather(sum_, [](float x, float y) { return x + y; });
    SettleValues();
    ptx::NamedBarrier(Barrier(), 128);  // now the bytes of the weights are free, too
    if (Thread() < T::kHeads) {
      const float4 sums = own.of_warps[Thread()];
      own.max_sum[Thread()].y = sums.x + sums.y + sums.z + sums.w;
    }
    PublishOut();
  }
  // Of the warpgroups: which had the segment's first page.
  __device__ int first_turn() const { return first_turn_; }

 private:
  // The next page, of which `valid` tokens exist.
  __device__ void AttendPage(int valid) {
    float logit[kNumbers], multiplier[2];
    Score(ring_.Next(), logit, multiplier);
    ring_.Release();  // behind the scores' products, that is long after the last load
    if (valid < 64) Mask(valid, logit, multiplier);
    float weight[kNumbers], more[2 * kTiles];
    const float most = Weigh(logit, multiplier, weight, more);

    const uint32_t stage = ring_.Next();
    if (valid < 64) ClearAbsent(stage, valid);
    float2 scales[kRank];
    float largest = 0.0f;
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
      scales[r] = ptx::LoadSharedFloats(stage + scale_offset_[r]);
      largest = fmaxf(largest, fmaxf(scales[r].x, scales[r].y));
    }
    // Behind this barrier the products that read the last page's weights are done.
    const bool raises = most > kTooMuch || largest > largest_scale_;
    if (ptx::NamedBarrierAny(Barrier(), 128, raises)) {
      Raise(logit, multiplier, largest);
      Weigh(logit, multiplier, weight, more);
    }
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) sum_[i] += more[i];
    StoreWeights(stage, weight, scales);
    LoadValues(stage);
    wgmma::FenceShared();
    ptx::NamedBarrier(Barrier(), 128);
    ring_.Release();
    wgmma::Fence();
#pragma unroll
    for (int i = 0; i < kRank * 4; ++i) {
      wgmma::MmaHalf(out_, value_[i],
                     weight_tile_ + i / 4 * (T::kHeads * 128 >> 4) + i % 4 * wgmma::kColumnStep, 1);
    }
    wgmma::Commit();
  }

  // In a stage.
  __device__ int ScalesOffset() const { return T::kHeadOffset + (kRank * p_.n_heads * 64 + 127) / 128 * 128; }
  __device__ int Thread() const { return warp_ * 32 + lane_; }
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
    uint32_t relative[kRank][2];
    MakeRelative(scales, relative, multiplier);
    SettleValues();  // their registers are wanted
    uint32_t keys[kRank][4][4];
    float score[kRank][kNumbers];
    // One rank's products run while the next one's operands are made.
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
      WidenKeys(raw[r], relative[r], keys[r]);
      wgmma::Fence();
#pragma unroll
      for (int step = 0; step < 4; ++step)
        wgmma::MmaHalf(score[r], keys[r][step], query_tile_ + step * wgmma::kColumnStep, step > 0);
      wgmma::Commit();
    }
    uint32_t words[kRank][kTiles];
#pragma unroll
    for (int r = 0; r < kRank; ++r) LoadHeads(stage, r, words[r]);
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
      r + 1 < kRank ? wgmma::Wait<1>() : wgmma::Wait<0>();
      wgmma::Settle(score[r]);
#pragma unroll
      for (int step = 0; step < 4; ++step) wgmma::Settle(keys[r][step]);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
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

  // Terms of a token become relative to its largest scale, which its logits get back.
  __device__ static void MakeRelative(const float2 (&scales)[kRank], uint32_t (&relative)[kRank][2],
                                      float (&multiplier)[2]) {
    multiplier[0] = scales[0].x, multiplier[1] = scales[0].y;
    if constexpr (kRank > 1) {
#pragma unroll
      for (int r = 1; r < kRank; ++r) {
        multiplier[0] = fmaxf(multiplier[0], scales[r].x), multiplier[1] = fmaxf(multiplier[1], scales[r].y);
      }
      const float to[2] = {kKeyBias * PowerReciprocal(multiplier[0]),
                           kKeyBias * PowerReciprocal(multiplier[1])};
#pragma unroll
      for (int r = 0; r < kRank; ++r) {
        relative[r][0] = ptx::PackHalf(scales[r].x * to[0], scales[r].x * to[0]);
        relative[r][1] = ptx::PackHalf(scales[r].y * to[1], scales[r].y * to[1]);
      }
      multiplier[0] *= 1.0f / kKeyBias, multiplier[1] *= 1.0f / kKeyBias;
    }
  }
  // Operands of the scores: a word of four numbers of d is a step's columns 2 c, 2 c + 1, 2 c + 8, 2 c + 9.
  __device__ static void WidenKeys(const uint32_t (&raw)[2][4], const uint32_t (&relative)[2],
                                   uint32_t (&keys)[4][4]) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t *low = &keys[step][i], *high = &keys[step][2 + i];
        ptx::Fp8ToHalf(raw[i][step], low, high);
        if constexpr (kRank > 1)
          *low = ptx::MultiplyHalf(*low, relative[i]), *high = ptx::MultiplyHalf(*high, relative[i]);
      }
    }
  }

  __device__ void Mask(int valid, float (&logit)[kNumbers], float (&multiplier)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (16 * warp_ + 2 * (lane_ >> 2) + i < valid) continue;
      multiplier[i] = 1.0f;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) logit[4 * n + 2 * i] = logit[4 * n + 2 * i + 1] = -INFINITY;
    }
  }

  // V of absent tokens becomes zero, or 0 * NaN would spread.
  __device__ void ClearAbsent(uint32_t stage, int valid) const {
    const uint32_t none[4] = {};
#pragma unroll 1
    for (int i = Thread(); i < kRank * 64 * 4; i += 128) {
      if (i / 4 % 64 >= valid) ptx::StoreShared16Bytes(stage + SwizzledByte(i * 16), none);
    }
#pragma unroll 1
    for (int i = Thread(); i < kRank * p_.n_heads * 4; i += 128) {
      const uint32_t at = stage + T::kHeadOffset + SwizzledByte(i * 16);
      uint32_t words[4];
      ptx::LoadShared16Bytes(at, words);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int exist = valid - i % 4 * 16 - k * 4;
        if (exist < 4) words[k] &= exist > 0 ? (1u << exist * 8) - 1 : 0;
      }
      ptx::StoreShared16Bytes(at, words);
    }
    const int scales = ScalesOffset();
#pragma unroll 1
    for (int i = Thread(); i < kRank * 64; i += 128) {
      if (i % 64 >= valid) ptx::StoreShared32(stage + SwizzledByte(scales + i * 4), 0);
    }
    ptx::FenceSharedForCopies();
    ptx::NamedBarrier(Barrier(), 128);
  }

  // more: the weights' sums of each head. Returns the greatest.
  __device__ float Weigh(const float (&logit)[kNumbers], const float (&multiplier)[2],
                         float (&weight)[kNumbers], float (&more)[2 * kTiles]) const {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      weight[i] = ptx::Exp2(fmaf(logit[i], multiplier[i / 2 % 2], -max_[i / 4 * 2 + i % 2]));
    }
    float most[4] = {};
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      more[i] = weight[i / 2 * 4 + i % 2] + weight[i / 2 * 4 + 2 + i % 2];
      most[i % 4] = fmaxf(most[i % 4], more[i]);
    }
    return fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3]));
  }

  // A weight too large for half precision or a scale of V greater than any before, somewhere in the
  // warpgroup: moves its bases.
  __device__ void Raise(const float (&logit)[kNumbers], const float (&multiplier)[2], float largest) {
    auto& own = shared_.OfGroup(group_);
#pragma unroll
    for (int i = 4; i < 32; i *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, i));
    if (lane_ == 0) own.scale[warp_] = largest;
    float most[2 * kTiles];
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const int x = i / 2 * 4 + i % 2;
      most[i] = fmaxf(logit[x] * multiplier[0], logit[x + 2] * multiplier[1]);
    }
    Gather(most, [](float x, float y) { return fmaxf(x, y); });
    ptx::NamedBarrier(Barrier(), 128);
    const auto risen = [&](int own_head, float max) {
      const float4 x = own.of_warps[own_head];
      return fmaxf(max, fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w)) - T::kWeightBits);
    };
    if (Thread() < T::kHeads) own.max_sum[Thread()].x = risen(Thread(), own.max_sum[Thread()].x);
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = fmaxf(largest, own.scale[i]);
    largest = fmaxf(largest, largest_scale_);
    const float shrink = largest_scale_ * PowerReciprocal(largest);
    largest_scale_ = largest;
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const float before = max_[i];
      max_[i] = risen(i / 2 * 8 + 2 * (lane_ & 3) + i % 2, before);
      const float factor = ptx::Exp2(before - max_[i]);
      sum_[i] *= factor;
      const int x = i / 2 * 4 + i % 2;
      out_[x] *= factor * shrink, out_[x + 2] *= factor * shrink;
    }
  }

  // Joins every head's value over the lanes that have one, for the warpgroup to find in of_warps. Half of the
  // lanes go on with each half of what there is.
  template <typename Join>
  __device__ void Gather(const float (&x)[2 * kTiles], Join join) const {
    const bool odd = (lane_ & 16) != 0, second = (lane_ & 8) != 0;
    const auto exchange = [&](bool keeps_second, float first, float second, int lanes) {
      const float other = __shfl_xor_sync(~0u, keeps_second ? first : second, lanes);
      return join(keeps_second ? second : first, other);
    };
    float half[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) half[n] = exchange(odd, x[2 * n], x[2 * n + 1], 16);
    auto* to = reinterpret_cast<float*>(shared_.OfGroup(group_).of_warps + 2 * (lane_ & 3) + odd) + warp_;
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      const float quarter = exchange(second, half[n], half[n + 1], 8);
      const float all = join(quarter, __shfl_xor_sync(~0u, quarter, 4));
      if ((lane_ & 4) == 0) to[(n + second) * 8 * 4] = all;
    }
  }

  // Weight times A_V,r of all heads into the other operand's tile.
  __device__ void StoreWeights(uint32_t stage, const float (&weight)[kNumbers],
                               const float2 (&scales)[kRank]) const {
    const float to_relative = kBias * PowerReciprocal(largest_scale_);
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
          uint32_t a[2];  // of each token, for both heads
          ptx::Fp8ToHalf(__byte_perm(words[n + i], 0, 0x3120), &a[0], &a[1]);
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
  __device__ void LoadValues(uint32_t stage) {
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
#pragma unroll
      for (int step = 0; step < 4; step += 2) {
        uint32_t words[4];
        ptx::LoadMatricesTransposed(words, stage + value_offset_ + r * T::kRankBytes + step * 16 * 64);
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // two numbers of a token, two of the next but one
          uint32_t(&to)[4] = value_[r * 4 + step + i / 2];
          ptx::Fp8ToHalf(__byte_perm(words[i], 0, 0x3120), &to[i % 2 * 2], &to[i % 2 * 2 + 1]);
        }
      }
    }
  }

  __device__ void PublishOut() const {
    const float scale = largest_scale_ / kBias;
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const float* o = &out_[i / 2 * 4 + i % 2];
      const int own_head = i / 2 * 8 + 2 * (lane_ & 3) + i % 2, number = 16 * warp_ + 2 * (lane_ >> 2);
      *reinterpret_cast<float2*>(shared_.Out(group_, own_head, number)) =
          make_float2(o[0] * scale, o[2] * scale);
    }
  }

  const DecodeParams& p_;
  const Fp8Shared<T>& shared_;
  Fp8StageReader<T>& ring_;
  int group_, warp_, lane_, first_head_;
  int turn_ = 0, first_turn_;  // whose the next page is, and whose the segment's first was
  uint32_t key_offset_, value_offset_, head_offset_[kRank], scale_offset_[kRank], weight_store_;
  uint64_t query_tile_, weight_tile_;
  float out_[kNumbers];  // [tile][d][head]
  float max_[2 * kTiles], sum_[2 * kTiles];
  float largest_scale_;                // of V, that out_ is relative to
  uint32_t value_[kRank * 4][4] = {};  // operands of products that may be under way
};

}  // namespace t6::cuda

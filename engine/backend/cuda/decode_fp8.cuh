// A consumer warp of the decode kernel over fp8 pages. Numbers become half precision in registers, exactly,
// two in an instruction; queries and weights are half precision too. What ldmatrix gives of one-byte numbers
// is four neighbours of a row, where fragments want two and two: so d is numbered otherwise in the query and
// in the output, and tokens otherwise among the columns of the scores, and nothing is shuffled. No number
// pays for a scale but A's own: scores take K's, and V's goes with A.
#pragma once

#include "engine/backend/cuda/decode_consumer.cuh"

namespace t6::cuda {

// Where a stage's numbers lie: rows of one byte each, in lines of 128 bytes that the copy has swizzled.
__device__ inline uint32_t SwizzledByte(int byte) { return byte ^ ((byte >> 3) & 0x70); }

// 1 / x of a power of two.
__device__ inline float PowerReciprocal(float x) { return __uint_as_float(0x7f000000u - __float_as_uint(x)); }

// Of every 16 numbers of d (the same as 8 pairs of columns), the place of number i in an operand: number 4 c
// + m is column 2 c + m of the first eight for m < 2, else 2 c + m - 2 of the others.
__device__ inline int Fp8Column(int i) { return (i & ~15) | (i & 2) << 2 | (i & 12) >> 1 | (i & 1); }

// The same where a lane has 16 neighbouring numbers of d, four for each step of a product, in a row of a
// swizzled tile.
__device__ inline int Fp8TileColumn(int head, int i) {
  const int column = (i & 12) << 2 | (i & 2) << 2 | (i & 48) >> 3 | (i & 1);
  return column ^ (head & 7) << 3;
}

template <class T>
struct Fp8ConsumerWarp : ConsumerWarp<T> {
  using Base = ConsumerWarp<T>;
  using Base::max, Base::out, Base::query, Base::sum, Base::weight;
  static constexpr int kGroups = T::kGroups;
  static_assert(T::kDim == 64);  // 16 tokens are a turn of the swizzle

  // V's scales are taken relative to the largest that the warp has met, so that weights fit half precision:
  // weight 2^15 * A 448 * 2^-8 * 1.
  static constexpr float kBias = 0x1p-8f;
  float largest_scale, to_relative;
  uint32_t token_offset, head_offset[T::kRank], scale_offset[T::kRank];  // in a stage
  uint32_t order;  // of the token pairs in a lane's word of A

  __device__ Fp8ConsumerWarp(const DecodeParams& p, int head_tile, int token_group, int lane)
      : Base(p, head_tile, token_group, lane) {
    const int first = token_group * T::kWarpTokens, row = lane & 7, pair = row >> 1;
    // The first product of two takes tokens 0 1 4 5 10 11 14 15 of 16, the second the others: a lane then has
    // four neighbours, and eight rows lie in different banks.
    const auto token = [&](int product, int c) { return first + 4 * c + 2 * (product ^ (c >> 1)); };
    token_offset = SwizzledByte((token((lane >> 3) & 1, pair) + (row & 1)) * T::kDim + (lane >> 4) * 16);
#pragma unroll
    for (int r = 0; r < T::kRank; ++r) {
      const int head = r * p.n_heads + head_tile * kTileHeads + (lane & 15);
      head_offset[r] = T::kHeadOffset + SwizzledByte(head * 64 + first);
    }
    const int scales = T::kHeadOffset + (T::kRank * p.n_heads * 64 + 127) / 128 * 128;
#pragma unroll
    for (int r = 0; r < T::kRank; ++r)
      scale_offset[r] = SwizzledByte(scales + r * 256 + token(0, lane & 3) * 4);
    order = (lane & 2) != 0 ? 0x1032 : 0x3210;
    // Kept as they are: the compiler would rather have the registers, and forms them anew on every page.
    ptx::Opaque(token_offset), ptx::Opaque(order);
#pragma unroll
    for (int r = 0; r < T::kRank; ++r) ptx::Opaque(head_offset[r]), ptx::Opaque(scale_offset[r]);
  }

  __device__ void Start(uint32_t query_address, int head_tile, int lane, int n_heads) {
    Base::Start(query_address, head_tile, lane, n_heads);
    largest_scale = 0x1p-100f, to_relative = 0x1p100f * kBias;
  }

  // A of 16 heads and a lane's four tokens of a group, by eight heads.
  __device__ void LoadHeads(uint32_t stage, int r, int group, uint32_t (&words)[2]) const {
    ptx::LoadTwoMatrices(words, (stage + head_offset[r]) ^ (group << 4));
  }
  // The same as [product][heads 0..7, 8..15] pairs of tokens.
  __device__ void WidenHeads(const uint32_t (&words)[2], uint32_t keep, uint32_t (&a)[2][2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      ptx::Fp8ToHalf(__byte_perm(words[i], 0, order) & keep, &a[0][i], &a[1][i]);
    }
  }
  // The scales of the pairs of tokens that the products have.
  __device__ void LoadScales(uint32_t stage, int r, int group, float2 (&scales)[2]) const {
    // 64 scales are two lines, and the swizzle depends on the line: undone where a group is half a line
    // further.
    const uint32_t offset = scale_offset[r];
    const uint32_t at = stage + (group == 0 ? offset : SwizzledByte(SwizzledByte(offset) + group * 64));
    scales[0] = ptx::LoadSharedFloats(at), scales[1] = ptx::LoadSharedFloats(at ^ 8);
  }
  // 16 tokens: of 32 numbers of d each, [chunk of 16][product] words of four numbers.
  template <bool kTransposed>
  __device__ void LoadTokens(uint32_t stage, int r, int group, uint32_t (&b)[T::kDim / 32][4]) const {
    const uint32_t further = r * T::kRankBytes + group * 16 * T::kDim;
#pragma unroll
    for (int step = 0; step < T::kDim / 32; ++step) {
      const uint32_t at = stage + (token_offset ^ (step << 5)) + further;
      kTransposed ? ptx::LoadMatricesTransposed(b[step], at) : ptx::LoadMatrices(b[step], at);
    }
  }

  __device__ void Score(uint32_t stage) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      uint32_t b[T::kRank][T::kDim / 32][4], words[T::kRank][2];
#pragma unroll
      for (int r = 0; r < T::kRank; ++r) LoadTokens<false>(stage, r, group, b[r]);
#pragma unroll
      for (int r = 0; r < T::kRank; ++r) LoadHeads(stage, r, group, words[r]);
#pragma unroll
      for (int r = 0; r < T::kRank; ++r) {
        float2 scales[2];
        LoadScales(stage, r, group, scales);
        float s[2][4] = {};
#pragma unroll
        for (int step = 0; step < T::kDim / 32; ++step) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            uint32_t b0, b1;
            ptx::Fp8ToHalf(b[r][step][i], &b0, &b1);
            ptx::MultiplyAddHalf(s[i % 2], query[2 * step + i / 2], b0, b1);
          }
        }
        uint32_t a[2][2];
        WidenHeads(words[r], ~0u, a);
#pragma unroll
        for (int product = 0; product < 2; ++product) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float* l = &weight[group][product][half * 2];
            const float* score = &s[product][half * 2];
            const float2 heads = ptx::HalvesToFloats(a[product][half]);
            const float x = scales[product].x * score[0], y = scales[product].y * score[1];
            l[0] = r == 0 ? heads.x * x : fmaf(heads.x, x, l[0]);
            l[1] = r == 0 ? heads.y * y : fmaf(heads.y, y, l[1]);
          }
        }
      }
    }
  }

  // The first token of a lane's pair in a product, counted from the warp's first.
  __device__ static int PairToken(int group, int product, int lane) {
    const int c = lane & 3;
    return group * 16 + 4 * c + 2 * (product ^ (c >> 1));
  }

  __device__ void Mask(int valid, int lane) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (PairToken(group, i / 4, lane) + i % 2 >= valid) weight[group][i / 4][i % 4] = -INFINITY;
      }
    }
  }

  // A greater scale than any before: what has been summed becomes relative to it.
  __device__ void RaiseScale(float most) {
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(fmaxf(most, __shfl_xor_sync(~0u, most, 2)), largest_scale);
    const float factor = largest_scale * PowerReciprocal(most);
    largest_scale = most, to_relative = kBias * PowerReciprocal(most);
#pragma unroll
    for (int n = 0; n < T::kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] *= factor;
    }
  }

  template <bool kMasked>
  __device__ void Accumulate(uint32_t stage, int valid, int lane) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      uint32_t keep[2] = {~0u, ~0u}, keep_heads = ~0u;  // of pairs of tokens, and of A's four bytes
      float2 scales[T::kRank][2];
      float most = 0.0f;
      uint32_t words[T::kRank][2], b[T::kRank][T::kDim / 32][4];
#pragma unroll
      for (int r = 0; r < T::kRank; ++r) LoadScales(stage, r, group, scales[r]);
#pragma unroll
      for (int r = 0; r < T::kRank; ++r) LoadHeads(stage, r, group, words[r]);
#pragma unroll
      for (int r = 0; r < T::kRank; ++r) LoadTokens<true>(stage, r, group, b[r]);
      if constexpr (kMasked) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int token = PairToken(group, i, lane);
          keep[i] = (token < valid ? 0xffffu : 0u) | (token + 1 < valid ? 0xffff0000u : 0u);
#pragma unroll
          for (int r = 0; r < T::kRank; ++r) {
            if (token >= valid) scales[r][i].x = 0.0f;
            if (token + 1 >= valid) scales[r][i].y = 0.0f;
          }
        }
        keep_heads = __byte_perm(keep[0], keep[1], 0x6420);
      }
#pragma unroll
      for (int r = 0; r < T::kRank; ++r) {
        most =
            fmaxf(most, fmaxf(fmaxf(scales[r][0].x, scales[r][0].y), fmaxf(scales[r][1].x, scales[r][1].y)));
      }
      if (__any_sync(~0u, most > largest_scale)) RaiseScale(most);
      uint32_t p[2][2];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        p[i / 2][i % 2] = ptx::PackHalf(weight[group][i / 2][i % 2 * 2], weight[group][i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int r = 0; r < T::kRank; ++r) {
        uint32_t a[2][2], w[4];
        WidenHeads(words[r], keep_heads, a);
#pragma unroll
        for (int product = 0; product < 2; ++product) {
          const float2 s = scales[r][product];
          const uint32_t relative = ptx::PackHalf(s.x * to_relative, s.y * to_relative);
#pragma unroll
          for (int half = 0; half < 2; ++half)
            w[product * 2 + half] =
                ptx::MultiplyHalf(p[product][half], ptx::MultiplyHalf(a[product][half], relative));
        }
#pragma unroll
        for (int step = 0; step < T::kDim / 32; ++step) {
#pragma unroll
          for (int chunk = 0; chunk < 2; ++chunk) {
            uint32_t even[2], odd[2];  // of d, for each product's tokens
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              uint32_t x = b[r][step][chunk * 2 + i];  // two numbers of a token, two of the next
              if constexpr (kMasked) x &= keep[i];
              ptx::Fp8ToHalf(__byte_perm(x, 0, 0x3120), &even[i], &odd[i]);
            }
            ptx::MultiplyAddHalf(out[4 * step + 2 * chunk], w, even[0], even[1]);
            ptx::MultiplyAddHalf(out[4 * step + 2 * chunk + 1], w, odd[0], odd[1]);
          }
        }
      }
    }
  }

  // Tiles 2 j and 2 j + 1 of the output are even and odd numbers of 16.
  __device__ void Publish(float* merge, float2* max_sum, int lane) {
    const float scale = largest_scale / kBias;
#pragma unroll
    for (int j = 0; j < T::kDim / 16; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float *even = &out[2 * j][2 * half], *odd = &out[2 * j + 1][2 * half];
        float* to = merge + T::MergeOffset((lane >> 2) + 8 * half, 16 * j + (lane & 3) * 4);
        *reinterpret_cast<float4*>(to) =
            make_float4(even[0] * scale, odd[0] * scale, even[1] * scale, odd[1] * scale);
      }
    }
    Base::PublishSums(max_sum, lane);
  }
};

}  // namespace t6::cuda

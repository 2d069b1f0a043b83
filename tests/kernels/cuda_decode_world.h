// Sequences with random factors in pages of a CUDA device, and one decode step over them. Whatever must not
// be read is NaN (free pages, columns not yet written) or absurd (page ids past a sequence's own).
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <vector_functions.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "engine/backend/cuda/decode_attention.h"
#include "engine/backend/cuda/store_factors.h"
#include "engine/backend/page_layout.h"
#include "engine/base/page_tokens.h"
#include "engine/tensor/dtype.h"
#include "tests/support/cuda_on_device.h"
#include "tests/support/reference_attention.h"
#include "tests/support/reference_fp8.h"

namespace t6::testing {

// The current GPU's major number; 0 without one.
inline int ComputeCapability() {
  int n = 0, major = 0;
  if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) return 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess ? major : 0;
}

struct CudaDecodeCase {
  int h, d, rank, rank_q;  // rank_q 0: full query
  std::vector<int> lengths;
  int rotary_dim = -1;  // d
  int fixed_split_pages = 0;
  bool head_norm = false;
  bool overlaps_prior = false;
  bool portable = false;
  float scale = 1.0f;   // of the projections: larger means sharper attention
  int n_blocks = 0;     // 0: as the device has
  bool fp8 = false;     // pages; else bfloat16
  bool stores = false;  // the newest tokens' factors are the kernel's to write: NaN before
};

class CudaDecodeWorld {
 public:
  CudaDecodeWorld(const CudaDecodeCase& c, uint32_t seed)
      : case_(c), random_(seed), layout_(Spec(c), c.fp8 ? DType::kFp8 : DType::kBF16) {
    const AttentionSpec spec = Spec(c);
    reference_.spec = spec;
    reference_.store = [](std::vector<double>& x) {
      for (double& v : x) v = RoundToBf16(static_cast<float>(v));
    };
    if (c.fp8) reference_.store = RoundToFp8;
    const int longest = std::max(1, *std::max_element(c.lengths.begin(), c.lengths.end()));
    std::uniform_real_distribution<float> angle(0.0f, 6.28f);
    for (int i = 0; i < longest * (spec.rotary_dim / 2); ++i) {
      const float a = angle(random_);
      reference_.cos.push_back(RoundToBf16(std::cos(a))), reference_.sin.push_back(RoundToBf16(std::sin(a)));
    }
    for (int i = 0; i < c.d; ++i) reference_.head_norm_weight.push_back(Normal());
    FillPages();
  }

  // One decode step of all sequences: [n_sequences][h * d].
  std::vector<float> Run() {
    const AttentionSpec spec = Spec(case_);
    const int n = static_cast<int>(case_.lengths.size()), capacity = n + 3;
    cuda::DecodeDevice device;
    CudaOk(cuda::DecodeDevice::Query(&device));
    device.portable |= case_.portable;
    const cuda::DecodeShape shape{case_.h,         case_.d,
                                  case_.rank,      case_.rank_q,
                                  spec.rotary_dim, spec.logit_scale(),
                                  spec.head_norm,  spec.head_norm_eps,
                                  case_.fp8};
    auto config = cuda::DecodeAttentionConfig::Make(shape, device);
    if (!config) {
      ADD_FAILURE() << "no kernel for h " << case_.h << " d " << case_.d << " rank " << case_.rank;
      return {};
    }
    if (case_.n_blocks > 0) config->n_blocks = case_.n_blocks;

    std::vector<int32_t> row_begin(n + 1);
    for (int i = 0; i <= n; ++i) row_begin[i] = i;
    const OnDevice<int32_t> n_sequences({n}), lengths(Ints(case_.lengths)), rows(row_begin),
        page_begin(page_begin_), page_ids(page_ids_);
    const OnDevice<uint8_t> pages(case_.stores ? WithoutNewest() : bytes_);
    const OnDevice<float> qkv(qkv_), cos(reference_.cos), sin(reference_.sin),
        weight(reference_.head_norm_weight);
    const int64_t n_segments = cuda::MaxSegments(
        config->n_blocks, capacity, static_cast<int64_t>(page_ids_.size()), case_.fixed_split_pages);
    const OnDevice<cuda::DecodeSegment> segments(
        std::vector<cuda::DecodeSegment>(n_segments, {-1, -1, -1, -1, -1, -1, -1, -1}));
    const OnDevice<cuda::DecodeSequence> sequences(
        std::vector<cuda::DecodeSequence>(capacity, {-1, -1, -1, -1}));
    const OnDevice<cuda::DecodeBlock> blocks(
        std::vector<cuda::DecodeBlock>(config->n_blocks, {-1, -1, {}, {}}));
    const OnDevice<int32_t> units(std::vector<int32_t>(capacity + 1, -1));
    const OnDevice<float> partials(std::vector<float>(n_segments * case_.h * case_.d, NAN));
    const OnDevice<float2> max_sum(std::vector<float2>(n_segments * case_.h, make_float2(NAN, NAN)));
    const OnDevice<float> out(std::vector<float>(static_cast<size_t>(n) * case_.h * case_.d, NAN));

    cuda::PageMaps maps;
    CudaOk(cuda::MakePageMaps(shape, pages.get(), n_pages_, &maps));
    cuda::DecodeCall call;
    call.config = &*config, call.maps = &maps, call.pages = pages.get();
    call.plan = {segments.get(), sequences.get(),  blocks.get(),
                 units.get(),    config->n_blocks, case_.fixed_split_pages};
    call.page_ids = page_ids.get(), call.qkv = qkv.get(), call.cos = cos.get(), call.sin = sin.get();
    call.head_norm_weight = weight.get();
    call.partials = {partials.get(), max_sum.get()};
    call.out = {out.get(), false}, call.max_sequences = capacity, call.overlaps_prior = case_.overlaps_prior;
    call.stores = case_.stores;

    cudaStream_t stream;
    CudaOk(cudaStreamCreate(&stream));
    CudaOk(cuda::LaunchDecodePlan(
        {n_sequences.get(), lengths.get(), rows.get(), page_begin.get(), page_ids.get(), capacity}, call.plan,
        stream));
    if (case_.overlaps_prior) CudaOk(cudaStreamSynchronize(stream));
    CudaOk(cuda::LaunchDecodeAttention(call, stream));
    CudaOk(cudaStreamSynchronize(stream));
    CudaOk(cudaStreamDestroy(stream));
    EXPECT_EQ(0, Mismatches(pages.Read()));
    return out.Read();
  }

  // Writes every token with the store kernel into pages of NaN and compares with what the host wrote: bytes
  // that differ by more than a last place of bfloat16, which a rotation may round either way.
  int StoreMismatches() {
    const AttentionSpec spec = Spec(case_);
    const OnDevice<uint8_t> pages(std::vector<uint8_t>(bytes_.size(), 0xff));
    const OnDevice<float> qkv(all_qkv_), cos(reference_.cos), sin(reference_.sin);
    const OnDevice<int32_t> positions(positions_), slots(slots_);
    cuda::StoreCall call;
    const auto offset = [&](PartName name) { return static_cast<int64_t>(layout_.part(name).offset); };
    call.n_heads = case_.h, call.head_dim = case_.d, call.rotary_dim = spec.rotary_dim;
    call.rank_k = call.rank_v = case_.rank, call.q_elements = spec.q_elements();
    call.page_bytes = static_cast<int64_t>(layout_.page_bytes());
    call.bk = offset(PartName::kBK), call.ak = offset(PartName::kAK);
    call.bv = offset(PartName::kBV), call.av = offset(PartName::kAV);
    call.pages = pages.get(), call.qkv = qkv.get(), call.positions = positions.get(),
    call.slots = slots.get();
    call.cos = cos.get(), call.sin = sin.get(), call.n_rows = static_cast<int>(slots_.size());
    CudaOk(cuda::LaunchStoreFactors(call, nullptr));
    CudaOk(cudaDeviceSynchronize());
    return Mismatches(pages.Read());
  }

  // The relative error of an output against the float64 reference, over all sequences with tokens.
  double Error(const std::vector<float>& out) {
    const size_t width = static_cast<size_t>(case_.h) * case_.d;
    double difference = 0.0, size = 0.0;
    for (size_t s = 0; s < case_.lengths.size(); ++s) {
      if (case_.lengths[s] == 0) continue;
      std::vector<double> norms;
      const std::vector<double> want = reference_.Output(tokens_[s], case_.lengths[s] - 1, &norms);
      for (size_t i = 0; i < width; ++i) {
        difference += std::pow(out[s * width + i] - want[i], 2), size += want[i] * want[i];
      }
    }
    return std::sqrt(difference / size);
  }

  static AttentionSpec Spec(const CudaDecodeCase& c) {
    AttentionSpec spec;
    spec.n_heads = c.h, spec.head_dim = c.d;
    spec.q.rank = c.rank_q, spec.k.rank = spec.v.rank = c.rank;
    spec.full_query = c.rank_q == 0;
    spec.rotary_dim = c.rotary_dim < 0 ? c.d : c.rotary_dim;
    spec.head_norm = c.head_norm;
    return spec;
  }

 private:
  int Mismatches(const std::vector<uint8_t>& stored) const {
    int n = 0;
    for (size_t i = 0; i < stored.size(); i += 2) {
      int16_t want, got;
      std::memcpy(&want, &bytes_[i], 2), std::memcpy(&got, &stored[i], 2);
      n += std::abs(want - got) > 1;
    }
    return n;
  }

  // The pages with NaN for every sequence's last token.
  std::vector<uint8_t> WithoutNewest() {
    const std::vector<uint8_t> all = bytes_;
    const std::vector<float> nothing(reference_.spec.qkv_elements(), NAN);
    for (size_t s = 0; s < case_.lengths.size(); ++s) {
      const int last = case_.lengths[s] - 1;
      if (last >= 0) StoreToken(nothing, last, page_ids_[page_begin_[s] + last / kPageTokens]);
    }
    return std::exchange(bytes_, all);
  }

  static std::vector<int32_t> Ints(const std::vector<int>& x) { return {x.begin(), x.end()}; }
  float Normal() { return std::normal_distribution<float>()(random_) * case_.scale; }

  // Pages in random order, with a free page of NaN for every used one.
  void FillPages() {
    int used = 0;
    for (const int n : case_.lengths) used += (n + kPageTokens - 1) / kPageTokens;
    n_pages_ = 2 * used + 1;
    std::vector<int32_t> free(n_pages_);
    for (int i = 0; i < n_pages_; ++i) free[i] = i;
    std::mt19937 order(7);  // its own, so that equal seeds draw equal factors whatever the batch
    std::shuffle(free.begin(), free.end(), order);
    bytes_.assign(layout_.page_bytes() * n_pages_, 0xff);
    page_begin_.push_back(0);
    for (const int length : case_.lengths) {
      std::vector<ReferenceAttention::Token> tokens;
      std::vector<float> row;
      for (int t = 0; t < length; ++t) {
        if (t % kPageTokens == 0) page_ids_.push_back(free.back()), free.pop_back();
        row.resize(reference_.spec.qkv_elements());
        for (float& x : row) x = Normal();
        StoreToken(row, t, page_ids_.back());
        all_qkv_.insert(all_qkv_.end(), row.begin(), row.end());
        positions_.push_back(t), slots_.push_back(page_ids_.back() * kPageTokens + t % kPageTokens);
        tokens.push_back(reference_.Form(row, t));
      }
      if (length == 0) row.assign(reference_.spec.qkv_elements(), NAN);
      qkv_.insert(qkv_.end(), row.begin(), row.end());
      page_ids_.push_back(std::numeric_limits<int32_t>::max());
      page_begin_.push_back(static_cast<int32_t>(page_ids_.size()));
      tokens_.push_back(std::move(tokens));
    }
  }

  void StoreToken(const std::vector<float>& qkv, int position, int page) {
    const AttentionSpec& spec = reference_.spec;
    const float* key = qkv.data() + spec.q_elements();
    const float* value = key + spec.k_elements();
    StoreFactor(key, spec.k.rank, position, page, PartName::kAK, PartName::kBK, true);
    StoreFactor(value, spec.v.rank, position, page, PartName::kAV, PartName::kBV, false);
  }

  void StoreFactor(const float* ab, int rank, int position, int page, PartName a, PartName b, bool rotates) {
    const int h = case_.h, d = case_.d, column = position % kPageTokens;
    for (int r = 0; r < rank; ++r) {
      const float* x = ab + h * rank + r * d;
      const std::vector<double> row =
          rotates ? reference_.Rotated(x, position) : std::vector<double>(x, x + d);
      if (case_.fp8) {
        PutFp8Term(x, ab, rank, r, position, page, a, b, rotates);
        continue;
      }
      for (int i = 0; i < d; ++i)
        Put(page, b, (r * kPageTokens + column) * d + i, static_cast<float>(row[i]));
      for (int j = 0; j < h; ++j) Put(page, a, (r * h + j) * kPageTokens + column, ab[j * rank + r]);
    }
  }

  void PutFp8Term(const float* x, const float* ab, int rank, int r, int position, int page, PartName a,
                  PartName b, bool rotates) {
    const int h = case_.h, d = case_.d, column = position % kPageTokens;
    std::vector<double> row(x, x + d), heads(h);
    if (rotates) row = reference_.RotatedInF32(x, position);
    for (int j = 0; j < h; ++j) heads[j] = ab[j * rank + r];
    const double a_factor = Fp8Factor(heads), b_factor = Fp8Factor(row);
    uint8_t* base = bytes_.data() + page * layout_.page_bytes();
    const auto byte = [](double v) {
      return static_cast<uint8_t>(NearestFp8(v) | (std::signbit(v) ? 0x80 : 0));
    };
    for (int i = 0; i < d; ++i)
      base[layout_.part(b).offset + (r * kPageTokens + column) * d + i] = byte(row[i] * b_factor);
    for (int j = 0; j < h; ++j)
      base[layout_.part(a).offset + (r * h + j) * kPageTokens + column] = byte(heads[j] * a_factor);
    const auto scale = static_cast<float>(1.0 / (a_factor * b_factor));
    const PartName scales = a == PartName::kAK ? PartName::kSK : PartName::kSV;
    std::memcpy(base + layout_.part(scales).offset + (r * kPageTokens + column) * 4, &scale, 4);
  }

  void Put(int page, PartName part, size_t index, float value) {
    const float rounded = RoundToBf16(value);
    uint32_t bits;
    std::memcpy(&bits, &rounded, 4);
    const uint16_t high = static_cast<uint16_t>(bits >> 16);
    std::memcpy(bytes_.data() + page * layout_.page_bytes() + layout_.part(part).offset + index * 2, &high,
                2);
  }

  CudaDecodeCase case_;
  std::mt19937 random_;
  PageLayout layout_;
  ReferenceAttention reference_;
  int n_pages_ = 0;
  std::vector<uint8_t> bytes_;
  std::vector<int32_t> page_begin_, page_ids_;
  std::vector<float> qkv_;                  // of each sequence's last token
  std::vector<float> all_qkv_;              // of all tokens, with
  std::vector<int32_t> positions_, slots_;  // where they belong
  std::vector<std::vector<ReferenceAttention::Token>> tokens_;
};

}  // namespace t6::testing

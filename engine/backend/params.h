// Parameters of the backend's operations: raw pointers into the device's memory and plain structs.
// Dimension names are docs/factors.md's: h heads, d head_dim, D width, R_Q R_K R_V ranks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/backend/attention_spec.h"
#include "engine/backend/page_layout.h"
#include "engine/schedule/step_plan.h"
#include "engine/tensor/dtype.h"

namespace t6 {

// A weight matrix in the device's own packing, made once at load. Opaque: only its backend knows the bytes.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  int n() const { return n_; }  // output features
  int k() const { return k_; }  // input features

 protected:
  PackedMatrix(int n, int k) : n_(n), k_(k) {}

 private:
  int n_, k_;
};

enum class Epilogue : uint8_t {
  kStore,   // out = product
  kAdd,     // out += product
  kSwiGlu,  // the matrix holds gate and up rows [2m, k]: out [rows, m] = silu(gate) * up
};

struct RmsNorm {
  bool enabled = false;
  float eps = 0.0f;
  const float* weight = nullptr;  // [k], or null for a norm without weight
};

// out = epilogue(norm(in) W^T). in and out must not overlap. The residual stream, projections and logits are
// float32; what one product hands to the next may be Backend::activation_dtype().
struct ProjectParams {
  const void* in = nullptr;  // [n_in_rows, k] of in_dtype
  DType in_dtype = DType::kF32;
  int in_stride = 0;                   // elements between rows; 0: k
  const int32_t* row_index = nullptr;  // [n_rows] rows of `in` to take, or null: the first n_rows
  int n_rows = 0;
  RmsNorm norm;
  const PackedMatrix* weight = nullptr;  // [n, k]
  Epilogue epilogue = Epilogue::kStore;
  void* out = nullptr;  // [n_rows, n], or [n_rows, n / 2] for kSwiGlu, of out_dtype
  DType out_dtype = DType::kF32;
  int out_stride = 0;  // elements between rows; 0: as wide as a row
};

struct EmbedParams {
  const void* table = nullptr;  // [vocab, D]
  DType dtype = DType::kF32;
  int width = 0;         // D
  float* out = nullptr;  // [n_rows, D]; token ids come from the plan
};

// One layer's slice of the cache, and what is needed to find a page in it: base + page id *
// layout.page_bytes().
struct LayerPages {
  uint8_t* base = nullptr;
  const PageLayout* layout = nullptr;
  int32_t n_pages = 0;
};

// Rotates B_K (not B_Q: see TpaAttentionParams) and writes the step's key and value factors to the plan's
// slots.
struct StoreFactorsParams {
  const AttentionSpec* spec = nullptr;
  const float* qkv = nullptr;  // [n_rows, spec.qkv_elements()], order A_Q B_Q A_K B_K A_V B_V
  const float* cos = nullptr;  // [max_positions, rotary_dim / 2]
  const float* sin = nullptr;  // [max_positions, rotary_dim / 2]
  LayerPages pages;
  int qkv_stride = 0;  // elements between qkv's rows; 0: as wide as a row
  // The same rows' TpaAttention comes next, and may store in their place.
  bool attends = true;
};

// out = softmax(Q K^T) V per head, causal by the plan's positions; Q is formed from its factors, B_Q rotated
// here. y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos, over the two halves of rotary_dim.
struct TpaAttentionParams {
  const AttentionSpec* spec = nullptr;
  const float* qkv = nullptr;  // as above
  const float* cos = nullptr;
  const float* sin = nullptr;
  LayerPages pages;
  const float* head_norm_weight = nullptr;  // [d] when spec.head_norm
  void* out = nullptr;                      // [n_rows, h * d] of out_dtype
  DType out_dtype = DType::kF32;
  int qkv_stride = 0;
};

// The step goes on with its output rows, row i of them at i.
struct KeepOutputRowsParams {
  const StepPlan* plan = nullptr;  // of these rows alone, each one in a sequence of its own
  const AttentionSpec* spec = nullptr;
  const float* x = nullptr;  // [n_rows, width]
  float* kept_x = nullptr;   // [n_outputs, width]
  int width = 0;
  const float* qkv = nullptr;  // [n_rows, qkv_stride]
  float* kept_qkv = nullptr;   // [n_outputs, qkv_stride]
  int qkv_stride = 0;
};

struct CopyPagesParams {
  uint8_t* base = nullptr;  // [n_layers][n_pages][page_bytes]
  const PageLayout* layout = nullptr;
  int32_t n_layers = 0;
  int32_t n_pages = 0;
};

struct SampleParams {
  const float* logits = nullptr;  // [n_outputs, vocab]; the plan's sampling rows say what to do with each
  int vocab = 0;
  int n_text_tokens = 0;  // ids from here up have no text and are never sampled
};

}  // namespace t6

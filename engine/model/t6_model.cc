#include "engine/model/t6_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "engine/model/output_rows.h"
#include "engine/model/rope.h"

namespace t6 {
namespace {

size_t RopeBytes(const ModelSpec& spec, int max_context) {
  return static_cast<size_t>(max_context) * (spec.attention.rotary_dim / 2) * sizeof(float);
}

ModelSizes SizesOf(const ModelSpec& spec, DType compute) {
  return {.width = spec.width, .mlp_width = spec.mlp_width, .vocab = spec.vocab_size, .compute = compute};
}

// Of a row that attention or SwiGLU writes.
int HiddenWidth(const ModelSpec& spec, const Backend& backend) {
  return std::max(spec.attention.n_heads * spec.attention.head_dim,
                  backend.activation_stride(spec.mlp_width));
}

// Of a row of attention's factors, as projected.
int QkvStride(const ModelSpec& spec, const Backend& backend) {
  return backend.activation_stride(spec.attention.qkv_elements());
}

}  // namespace

T6Model::~T6Model() = default;

size_t T6Model::WeightBytes(const ModelSpec& spec, DType compute, int max_context) {
  const auto padded = [](size_t n) { return (n + 63) / 64 * 64; };  // packing pads to blocks of 64
  const size_t d_model = padded(spec.width), heads = padded(spec.attention.n_heads * spec.attention.head_dim);
  const size_t mlp = padded(spec.mlp_width), qkv = padded(spec.attention.qkv_elements());
  const size_t per_layer = qkv * d_model + d_model * heads + 2 * mlp * d_model + d_model * mlp;
  const size_t packed = (per_layer * spec.n_layers + padded(spec.vocab_size) * d_model) * SizeOf(compute);
  const size_t embedding = static_cast<size_t>(spec.vocab_size) * spec.width * sizeof(float);
  return packed + embedding + 2 * RopeBytes(spec, max_context);
}

size_t T6Model::WorkspaceBytes(const ModelSpec& spec, const StepLimits& limits, DType compute,
                               const Backend& backend) {
  const size_t row_floats = static_cast<size_t>(spec.width) + QkvStride(spec, backend);
  const size_t row_bytes =
      row_floats * sizeof(float) + HiddenWidth(spec, backend) * SizeOf(backend.activation_dtype(compute));
  return row_bytes * limits.max_rows + row_floats * limits.max_sequences * sizeof(float) +
         static_cast<size_t>(spec.vocab_size) * limits.max_outputs * sizeof(float) +
         backend.WorkspaceBytes(limits, spec.attention, SizesOf(spec, compute));
}

StatusOr<std::unique_ptr<T6Model>> T6Model::Load(Backend* backend, const ModelSpec& spec,
                                                 const TensorSource& tensors, DType compute,
                                                 const StepLimits& limits,
                                                 const std::function<void(double)>& progress) {
  std::unique_ptr<T6Model> model(new T6Model(backend, spec));
  T6_RETURN_IF_ERROR(model->LoadWeights(tensors, compute, progress));
  T6_RETURN_IF_ERROR(model->LoadRope(limits.max_context));
  T6_RETURN_IF_ERROR(backend->Reserve(limits, spec.attention, SizesOf(spec, compute)));
  T6_RETURN_IF_ERROR(model->AllocateActivations(limits, compute));
  return model;
}

Status T6Model::LoadWeights(const TensorSource& tensors, DType compute,
                            const std::function<void(double)>& progress) {
  layers_.resize(spec_.n_layers);
  for (int i = 0; i < spec_.n_layers; ++i) {
    T6_RETURN_IF_ERROR(LoadLayer(tensors, compute, i));
    if (progress) progress(static_cast<double>(i + 1) / (spec_.n_layers + 1));
  }
  T6_ASSIGN_OR_RETURN(const TensorView embedding, tensors.Find("transformer.wte.weight"));
  embedding_dtype_ = embedding.dtype;
  T6_ASSIGN_OR_RETURN(embedding_, backend_->Allocate(embedding.n_bytes()));
  T6_RETURN_IF_ERROR(backend_->Upload(embedding_->data(), embedding.data, embedding.n_bytes()));
  TensorView head = embedding;
  if (!spec_.tied_head) {
    T6_ASSIGN_OR_RETURN(head, tensors.Find("lm_head.weight"));
  }
  T6_ASSIGN_OR_RETURN(head_, backend_->Pack({head}, compute, /*swiglu=*/false));
  if (progress) progress(1.0);
  return {};
}

Status T6Model::LoadLayer(const TensorSource& tensors, DType compute, int index) {
  const std::string prefix = fmt::format("transformer.h.{}.", index);
  Layer& layer = layers_[index];
  const auto pack = [&](std::initializer_list<const char*> names, bool swiglu,
                        std::unique_ptr<PackedMatrix>* out) -> Status {
    std::vector<TensorView> parts;
    for (const char* name : names) {
      T6_ASSIGN_OR_RETURN(TensorView part, tensors.Find(prefix + name + ".weight"));
      parts.push_back(std::move(part));
    }
    T6_ASSIGN_OR_RETURN(*out, backend_->Pack(parts, compute, swiglu));
    return {};
  };
  T6_RETURN_IF_ERROR(pack({"attn.c_qkv.W_A_q", "attn.c_qkv.W_B_q", "attn.c_qkv.W_A_k", "attn.c_qkv.W_B_k",
                           "attn.c_qkv.W_A_v", "attn.c_qkv.W_B_v"},
                          false, &layer.qkv));
  T6_RETURN_IF_ERROR(pack({"attn.c_proj"}, false, &layer.attn_out));
  T6_RETURN_IF_ERROR(pack({"mlp.c_fc1", "mlp.c_fc2"}, true, &layer.gate_up));
  T6_RETURN_IF_ERROR(pack({"mlp.c_proj"}, false, &layer.mlp_out));
  if (spec_.attention.head_norm) {
    T6_ASSIGN_OR_RETURN(const TensorView weight, tensors.Find(prefix + "attn.subln.weight"));
    std::vector<float> values(weight.n_elements());
    ConvertToFloat(weight.data, weight.dtype, weight.n_elements(), values.data());
    T6_ASSIGN_OR_RETURN(layer.head_norm, backend_->Allocate(values.size() * sizeof(float)));
    T6_RETURN_IF_ERROR(
        backend_->Upload(layer.head_norm->data(), values.data(), values.size() * sizeof(float)));
  }
  return {};
}

Status T6Model::LoadRope(int max_context) {
  const RopeTable table =
      MakeRopeTable(max_context, spec_.attention.rotary_dim, spec_.rope_base, spec_.rope_bf16);
  const size_t bytes = RopeBytes(spec_, max_context);
  T6_ASSIGN_OR_RETURN(cos_, backend_->Allocate(bytes));
  T6_ASSIGN_OR_RETURN(sin_, backend_->Allocate(bytes));
  T6_RETURN_IF_ERROR(backend_->Upload(cos_->data(), table.cos.data(), bytes));
  return backend_->Upload(sin_->data(), table.sin.data(), bytes);
}

Status T6Model::AllocateActivations(const StepLimits& limits, DType compute) {
  const auto allocate = [&](size_t rows, size_t width, DType dtype) {
    return backend_->Allocate(rows * width * SizeOf(dtype));
  };
  activation_dtype_ = backend_->activation_dtype(compute);
  T6_ASSIGN_OR_RETURN(x_, allocate(limits.max_rows, spec_.width, DType::kF32));
  T6_ASSIGN_OR_RETURN(qkv_, allocate(limits.max_rows, QkvStride(spec_, *backend_), DType::kF32));
  T6_ASSIGN_OR_RETURN(hidden_, allocate(limits.max_rows, HiddenWidth(spec_, *backend_), activation_dtype_));
  T6_ASSIGN_OR_RETURN(kept_,
                      allocate(limits.max_sequences, spec_.width + QkvStride(spec_, *backend_), DType::kF32));
  T6_ASSIGN_OR_RETURN(logits_, allocate(limits.max_outputs, spec_.vocab_size, DType::kF32));
  return {};
}

// Nobody needs more of the last layer than all rows' factors and what the output rows give.
Status T6Model::Forward(const StepPlan& plan, FactorCache& cache) {
  T6_RETURN_IF_ERROR(cache.CopyAndClear());
  T6_RETURN_IF_ERROR(backend_->Embed({embedding_->data(), embedding_dtype_, spec_.width, x_->as<float>()}));
  const bool keeps = KeepOutputRows(plan, &outputs_);
  Rows rows{.x = x_->as<float>(), .qkv = qkv_->as<float>(), .n = plan.n_rows(), .are_outputs = false};
  for (int i = 0; i < spec_.n_layers; ++i) {
    const bool keeps_now = keeps && i + 1 == spec_.n_layers;
    T6_RETURN_IF_ERROR(StoreLayer(layers_[i], rows, cache.layer(i), !keeps_now));
    if (keeps_now) {
      if (plan.n_outputs() == 0) return {};
      T6_ASSIGN_OR_RETURN(rows, KeepOutputs(rows));
    }
    T6_RETURN_IF_ERROR(AttendLayer(layers_[i], rows, cache.layer(i)));
  }
  return plan.n_outputs() > 0 ? Logits(rows, plan.n_outputs()) : Status();
}

Status T6Model::StoreLayer(const Layer& layer, const Rows& rows, const LayerPages& pages, bool attends) {
  const int stride = QkvStride(spec_, *backend_);
  T6_RETURN_IF_ERROR(backend_->Project({.in = rows.x,
                                        .n_rows = rows.n,
                                        .norm = {.enabled = true, .eps = spec_.norm_eps},
                                        .weight = layer.qkv.get(),
                                        .epilogue = Epilogue::kStore,
                                        .out = rows.qkv,
                                        .out_stride = stride}));
  return backend_->StoreFactors({.spec = &spec_.attention,
                                 .qkv = rows.qkv,
                                 .cos = cos_->as<float>(),
                                 .sin = sin_->as<float>(),
                                 .pages = pages,
                                 .qkv_stride = stride,
                                 .attends = attends});
}

StatusOr<T6Model::Rows> T6Model::KeepOutputs(const Rows& rows) {
  const int stride = QkvStride(spec_, *backend_);
  Rows kept{.x = nullptr, .qkv = kept_->as<float>(), .n = outputs_.n_rows(), .are_outputs = true};
  kept.x = kept.qkv + static_cast<size_t>(kept.n) * stride;
  T6_RETURN_IF_ERROR(backend_->KeepOutputRows({.plan = &outputs_,
                                               .spec = &spec_.attention,
                                               .x = rows.x,
                                               .kept_x = kept.x,
                                               .width = spec_.width,
                                               .qkv = rows.qkv,
                                               .kept_qkv = kept.qkv,
                                               .qkv_stride = stride}));
  return kept;
}

// x += attn(norm(x)), whose factors StoreLayer has formed; x += mlp(norm(x)).
Status T6Model::AttendLayer(const Layer& layer, const Rows& rows, const LayerPages& pages) {
  void* hidden = hidden_->data();
  const int mlp_stride = backend_->activation_stride(spec_.mlp_width);

  T6_RETURN_IF_ERROR(
      backend_->TpaAttention({.spec = &spec_.attention,
                              .qkv = rows.qkv,
                              .cos = cos_->as<float>(),
                              .sin = sin_->as<float>(),
                              .pages = pages,
                              .head_norm_weight = layer.head_norm ? layer.head_norm->as<float>() : nullptr,
                              .out = hidden,
                              .out_dtype = activation_dtype_,
                              .qkv_stride = QkvStride(spec_, *backend_)}));
  T6_RETURN_IF_ERROR(backend_->Project({.in = hidden,
                                        .in_dtype = activation_dtype_,
                                        .n_rows = rows.n,
                                        .norm = {},
                                        .weight = layer.attn_out.get(),
                                        .epilogue = Epilogue::kAdd,
                                        .out = rows.x}));
  T6_RETURN_IF_ERROR(backend_->Project({.in = rows.x,
                                        .n_rows = rows.n,
                                        .norm = {.enabled = true, .eps = spec_.norm_eps},
                                        .weight = layer.gate_up.get(),
                                        .epilogue = Epilogue::kSwiGlu,
                                        .out = hidden,
                                        .out_dtype = activation_dtype_,
                                        .out_stride = mlp_stride}));
  return backend_->Project({.in = hidden,
                            .in_dtype = activation_dtype_,
                            .in_stride = mlp_stride,
                            .n_rows = rows.n,
                            .norm = {},
                            .weight = layer.mlp_out.get(),
                            .epilogue = Epilogue::kAdd,
                            .out = rows.x});
}

Status T6Model::Logits(const Rows& rows, int n_outputs) {
  return backend_->Project({.in = rows.x,
                            .row_index = rows.are_outputs ? nullptr : backend_->output_rows(),
                            .n_rows = n_outputs,
                            .norm = {.enabled = true, .eps = spec_.norm_eps},
                            .weight = head_.get(),
                            .epilogue = Epilogue::kStore,
                            .out = logits_->data()});
}

}  // namespace t6

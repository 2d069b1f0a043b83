#include "engine/backend/cuda/step_graphs.h"

#include <utility>

#include "engine/backend/cuda/cuda_status.h"

namespace t6::cuda {

StepGraphs::~StepGraphs() {
  for (auto& [key, graph] : graphs_) {
    if (graph.graph != nullptr) cudaGraphExecDestroy(graph.graph);
  }
}

Status StepGraphs::Begin(uint64_t key) {
  hash_ = key;
  current_ = nullptr;
  mode_ = Mode::kEager;
  if (key == 0) return absl::OkStatus();
  if (graphs_.size() >= kMostGraphs && graphs_.find(key) == graphs_.end()) return absl::OkStatus();
  current_ = &graphs_[key];
  if (current_->graph != nullptr) {
    mode_ = Mode::kReplay;
  } else if (++current_->times > 1) {
    T6_RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    mode_ = Mode::kCapture;
  }
  return absl::OkStatus();
}

Status StepGraphs::Instantiate() {
  cudaGraph_t graph = nullptr;
  T6_RETURN_IF_CUDA_ERROR(cudaStreamEndCapture(stream_, &graph));
  const cudaError_t error = cudaGraphInstantiate(&current_->graph, graph, 0);
  cudaGraphDestroy(graph);
  T6_RETURN_IF_CUDA_ERROR(error);
  current_->hash = hash_;
  return absl::OkStatus();
}

Status StepGraphs::EndCapture() {
  if (mode_ != Mode::kCapture) return absl::OkStatus();
  mode_ = Mode::kReplay;
  return Instantiate();
}

Status StepGraphs::Replay() {
  if (std::exchange(mode_, Mode::kIdle) != Mode::kReplay) return absl::OkStatus();
  if (current_->hash != hash_) return Internal("a step's operations differ from those of its captured graph");
  T6_RETURN_IF_CUDA_ERROR(cudaGraphLaunch(current_->graph, stream_));
  return absl::OkStatus();
}

void StepGraphs::Abandon() {
  if (mode_ == Mode::kCapture) {
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();  // or the next launch would report it
  }
  mode_ = Mode::kIdle;
}

}  // namespace t6::cuda

#include "engine/backend/cuda/operation_timer.h"

#include "engine/backend/cuda/cuda_status.h"

namespace t6::cuda {

OperationTimer::~OperationTimer() {
  for (cudaEvent_t event : events_) cudaEventDestroy(event);
}

void OperationTimer::Begin() { marks_.clear(); }

Status OperationTimer::Mark(const std::string& name) {
  if (marks_.size() == events_.size()) {
    events_.push_back(nullptr);
    T6_RETURN_IF_CUDA_ERROR(cudaEventCreate(&events_.back()));
  }
  T6_RETURN_IF_CUDA_ERROR(cudaEventRecord(events_[marks_.size()], stream_));
  marks_.push_back(name);
  return absl::OkStatus();
}

StatusOr<std::vector<OperationTime>> OperationTimer::Times(const std::vector<std::string>& names) const {
  std::vector<OperationTime> times;
  if (!names.empty()) {
    std::vector<uint64_t> clocks(names.size() + 1);
    T6_RETURN_IF_CUDA_ERROR(cudaMemcpy(clocks.data(), clocks_.as<void>(), clocks.size() * sizeof(uint64_t),
                                       cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < names.size(); ++i) {
      times.push_back({names[i], static_cast<double>(clocks[i + 1] - clocks[i]) * 1e-9});
    }
    return times;
  }
  for (size_t i = 0; i + 1 < marks_.size(); ++i) {
    float milliseconds = 0.0f;
    T6_RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(&milliseconds, events_[i], events_[i + 1]));
    times.push_back({marks_[i], milliseconds * 1e-3});
  }
  return times;
}

}  // namespace t6::cuda

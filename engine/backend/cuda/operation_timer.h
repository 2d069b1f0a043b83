// What the operations of a step take on the device: by events between launches, or, where a step is one
// kernel, by clocks that the kernel reads between its instructions. One step at a time: with steps in flight
// the times are nobody's. One thread calls it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/backend/cuda/cuda_memory.h"

namespace t6::cuda {

class OperationTimer {
 public:
  explicit OperationTimer(cudaStream_t stream) : stream_(stream) {}
  ~OperationTimer();
  OperationTimer(const OperationTimer&) = delete;
  OperationTimer& operator=(const OperationTimer&) = delete;

  static constexpr int kMostClocks = 4096;
  Status Reserve() { return clocks_.Allocate(kMostClocks * sizeof(uint64_t)); }
  // [kMostClocks] of the device, for the kernel: nanoseconds before the first instruction and after each.
  uint64_t* clocks() const { return clocks_.as<uint64_t>(); }

  void Begin();
  // In front of an operation's launches, and once behind the last with an empty name.
  Status Mark(const std::string& name);
  // After the step is done. `names`: of the instructions of a step that is one kernel; else empty.
  StatusOr<std::vector<OperationTime>> Times(const std::vector<std::string>& names) const;

 private:
  cudaStream_t stream_;
  DeviceMemory clocks_;
  std::vector<cudaEvent_t> events_;  // more than the step has marks, perhaps
  std::vector<std::string> marks_;
};

}  // namespace t6::cuda

// One captured CUDA graph for each kind of step. The backend's operations of such a step are captured the
// second time it comes (the first one loads every kernel), and from then on only counted: the graph does
// them. That the counted ones are the captured ones is checked by a hash of their parameters.
//
// Begin, then Issue for every operation, then End. One thread calls it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <unordered_map>

#include "engine/base/status.h"

namespace t6::cuda {

class StepGraphs {
 public:
  explicit StepGraphs(cudaStream_t stream) : stream_(stream) {}
  ~StepGraphs();
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  static constexpr size_t kBytesEach = size_t{8} << 20;  // of device memory, at most
  static constexpr size_t kMostGraphs = 32;

  // key 0: no graph.
  Status Begin(uint64_t key);
  // Runs `launch`, or leaves it to the graph. `identity`: the pointers that the launch depends on.
  template <typename Launch, typename... Identity>
  Status Issue(Launch&& launch, Identity... identity) {
    (Mix(static_cast<uint64_t>(identity)), ...);
    return mode_ == Mode::kReplay ? absl::OkStatus() : launch();
  }
  // `after_capture`: once, between the capture and the graph's first run.
  template <typename AfterCapture>
  Status End(AfterCapture after_capture) {
    const bool captures = this->captures();
    T6_RETURN_IF_ERROR(EndCapture());
    if (captures) T6_RETURN_IF_ERROR(after_capture());
    return Replay();
  }
  // Between Begin and End: whether operations are being captured.
  bool captures() const { return mode_ == Mode::kCapture; }
  // Gives up a capture, so that the stream can be used again.
  void Abandon();

 private:
  enum class Mode : uint8_t { kIdle, kEager, kCapture, kReplay };
  struct Graph {
    int times = 0;
    cudaGraphExec_t graph = nullptr;
    uint64_t hash = 0;
  };

  void Mix(uint64_t x) { hash_ = (hash_ ^ x) * 0x9e3779b97f4a7c15u + (hash_ >> 29); }
  Status Instantiate();
  Status EndCapture();
  Status Replay();

  cudaStream_t stream_;
  Mode mode_ = Mode::kIdle;
  uint64_t hash_ = 0;
  Graph* current_ = nullptr;
  std::unordered_map<uint64_t, Graph> graphs_;
};

}  // namespace t6::cuda

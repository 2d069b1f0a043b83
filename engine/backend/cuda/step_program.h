// A decode step of few rows as one kernel: a program of products and attention that every multiprocessor runs
// through, in step with the others. Kernel by kernel, memory rests while one kernel's last results reach the
// next; here each multiprocessor streams weights and pages into its ring as fast as it frees room, however
// far its arithmetic has come (docs/gpu_step.md).
//
// Begin, then Add for every operation in order, Launch where something else has to run on the stream, and at
// the end. The instructions lie in memory that Reserve allocated; Upload copies them there after the capture
// of which the launches are part. Errors are CUDA's, so that .cu files need no Abseil. One thread calls it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/backend/cuda/decode_attention.h"
#include "engine/backend/cuda/skinny.h"

namespace t6::cuda {

struct StepInstruction;
struct StepInstance;
struct StepLaunch;

class StepProgram {
 public:
  StepProgram(cudaStream_t stream, int n_sms);
  ~StepProgram();
  StepProgram(const StepProgram&) = delete;
  StepProgram& operator=(const StepProgram&) = delete;

  static constexpr size_t kBytes = size_t{32} << 20;  // of instructions and exchange, in device memory
  static constexpr int kMaxRows = 8;

  // `memory`: kBytes, the caller's. Without `config`, or where no kernel covers it, Begin does nothing.
  // `clocks`: null, or where the kernel notes when it has done each instruction.
  cudaError_t Reserve(const DecodeAttentionConfig* config, void* memory, uint64_t* clocks);

  // Whether operations are collected from now on.
  // `existing`: in device memory, how many of the rows exist.
  bool Begin(int n_rows, const int32_t* existing);
  bool collects() const { return collects_; }
  void AddProduct(const SkinnyCall& call);
  void AddAttention(const DecodeCall& call);  // with `stores`
  // Where the last product, if it has yet to be launched and its rows are chosen, leaves each row's best
  // token of the first n_text: SkinnyCall::best. Else null.
  uint64_t* KeepBest(int n_text);
  // What was added since the last launch, as one kernel.
  cudaError_t Launch();
  // Ends the program.
  cudaError_t Upload();
  void Abandon();
  // Of the instructions of the program that was uploaded last.
  const std::vector<std::string>& names() const { return names_; }

 private:
  void Link(size_t begin, StepLaunch* launch);

  cudaStream_t stream_;
  int n_sms_;
  const StepInstance* instance_ = nullptr;  // none: no kernel for the model
  int ring_bytes_ = 0, shared_bytes_ = 0;
  unsigned char* memory_ = nullptr;  // the barrier's counter, what blocks hand over, instructions
  uint64_t* clocks_ = nullptr;
  size_t used_ = 0;     // instructions of finished programs
  size_t longest_ = 0;  // program so far, in instructions
  bool collects_ = false;
  int n_rows_ = 0;
  const int32_t* existing_ = nullptr;
  std::vector<StepInstruction> instructions_;  // of the program that is being collected
  size_t launched_ = 0;                        // of them
  std::vector<std::string> names_;
};

}  // namespace t6::cuda

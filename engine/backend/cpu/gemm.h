// Products with packed weights on the CPU, one packing for all of them. Our own kernels, except that float32
// of 64 rows and more goes to oneDNN where its brgemm reads this packing. A row's bits never depend on the
// rows beside it in bfloat16; in float32 they do once, between fewer than 64 rows and more (oneDNN sums a
// long k in pieces).
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/backend/cpu/thread_pool.h"

namespace t6::cpu {

// Owns the workspaces of products. One thread calls it.
class Gemm {
 public:
  virtual ~Gemm() = default;
  static std::unique_ptr<Gemm> Make(ThreadPool* pool);

  virtual StatusOr<std::unique_ptr<PackedMatrix>> Pack(const std::vector<TensorView>& parts, DType compute,
                                                       bool swiglu) = 0;
  virtual size_t WorkspaceBytes(int max_rows, int max_k, int max_n) const = 0;
  virtual Status Reserve(int max_rows, int max_k, int max_n) = 0;
  virtual void Project(const ProjectParams& params) = 0;
};

}  // namespace t6::cpu

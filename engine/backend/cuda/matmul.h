// Products by cuBLASLt: row-major out [m, n] = in [m, k] W [n, k]^T (+ out), the algorithm chosen once for
// each shape. Allocates only in Reserve. One thread calls it.
#pragma once

#include <cuda_runtime_api.h>

#include <compare>
#include <functional>
#include <map>
#include <memory>

#include "engine/backend/cuda/cublas_lt.h"
#include "engine/backend/cuda/cuda_memory.h"
#include "engine/tensor/dtype.h"

namespace t6::cuda {

// What an algorithm depends on. Strides in elements.
struct MatmulShape {
  int m = 0, n = 0, k = 0;
  int in_stride = 0, weight_stride = 0, out_stride = 0;
  DType in_dtype = DType::kBF16;  // and the weight's; sums are float32, of float32 factors full float32
  DType out_dtype = DType::kF32;
  bool adds = false;  // to out
  auto operator<=>(const MatmulShape&) const = default;
};

struct MatmulCall {
  MatmulShape shape;
  const void* in = nullptr;
  const void* weight = nullptr;
  void* out = nullptr;
};

class Matmul {
 public:
  // UNAVAILABLE without the library.
  static StatusOr<std::unique_ptr<Matmul>> Make(cudaStream_t stream);
  ~Matmul();

  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;
  Status Reserve();

  Status Run(const MatmulCall& call);
  // Times the algorithms that the library proposes for call(0)'s shape and keeps the fastest. call(i) gives
  // the operands of the i-th run: as different as in a real step, or they would come out of the cache.
  Status Tune(const std::function<MatmulCall(int)>& call);
  std::string version() const;

 private:
  struct Problem;
  Matmul(std::unique_ptr<CublasLt> lt, cudaStream_t stream);
  StatusOr<Problem*> Find(const MatmulShape& shape);
  StatusOr<std::unique_ptr<Problem>> Describe(const MatmulShape& shape) const;
  StatusOr<std::vector<cublasLtMatmulHeuristicResult_t>> Propose(const Problem& problem, int n) const;
  // The tuned algorithm of the next larger m, where it can do this problem.
  bool Inherit(const MatmulShape& shape, Problem* problem) const;
  Status Launch(const Problem& problem, const cublasLtMatmulAlgo_t& algorithm, const MatmulCall& call) const;
  StatusOr<float> Time(const Problem& problem, const cublasLtMatmulAlgo_t& algorithm,
                       const std::function<MatmulCall(int)>& call) const;

  std::unique_ptr<CublasLt> lt_;
  cudaStream_t stream_;
  DeviceMemory workspace_;
  std::map<MatmulShape, std::unique_ptr<Problem>> problems_;
  std::map<MatmulShape, cublasLtMatmulAlgo_t> tuned_;
};

}  // namespace t6::cuda

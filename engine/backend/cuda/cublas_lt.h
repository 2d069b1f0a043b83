// cuBLASLt, opened at run time, so that a program with the CUDA device in it starts where there is neither
// library nor GPU. Only the functions that gemm.cc calls.
#pragma once

#include <cublasLt.h>

#include <memory>

#include "engine/base/status.h"

namespace t6::cuda {

#define T6_CUBLAS_LT_FUNCTIONS(X)         \
  X(cublasLtCreate)                       \
  X(cublasLtDestroy)                      \
  X(cublasLtGetVersion)                   \
  X(cublasLtGetStatusString)              \
  X(cublasLtMatmul)                       \
  X(cublasLtMatmulAlgoCheck)              \
  X(cublasLtMatmulAlgoGetHeuristic)       \
  X(cublasLtMatmulDescCreate)             \
  X(cublasLtMatmulDescDestroy)            \
  X(cublasLtMatmulDescSetAttribute)       \
  X(cublasLtMatmulPreferenceCreate)       \
  X(cublasLtMatmulPreferenceDestroy)      \
  X(cublasLtMatmulPreferenceSetAttribute) \
  X(cublasLtMatrixLayoutCreate)           \
  X(cublasLtMatrixLayoutDestroy)

// One handle on the current device. One thread calls it.
class CublasLt {
 public:
  // UNAVAILABLE names the library that was looked for, and what the loader said.
  static StatusOr<std::unique_ptr<CublasLt>> Open();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  cublasLtHandle_t handle() const { return handle_; }
  Status Check(cublasStatus_t status, const char* what) const;

#define T6_DECLARE(name) decltype(&::name) name = nullptr;
  T6_CUBLAS_LT_FUNCTIONS(T6_DECLARE)
#undef T6_DECLARE

 private:
  CublasLt() = default;
  cublasLtHandle_t handle_ = nullptr;
};

}  // namespace t6::cuda

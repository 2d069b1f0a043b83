// Vectors in a CUDA device's memory, for tests that call its kernels directly. A call that fails fails the
// test.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace t6::testing {

inline void CudaOk(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

// A vector's copy in device memory.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& host) : n_(host.size()) {
    CudaOk(cudaMalloc(reinterpret_cast<void**>(&data_), std::max<size_t>(n_, 1) * sizeof(T)));
    if (n_ > 0) CudaOk(cudaMemcpy(data_, host.data(), n_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~OnDevice() { cudaFree(data_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  T* get() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> host(n_);
    CudaOk(cudaMemcpy(host.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t n_;
};

}  // namespace t6::testing

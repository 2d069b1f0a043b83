#include "engine/backend/cuda/device.h"

#include <cuda_runtime_api.h>

#include "engine/backend/cuda/cuda_status.h"

namespace t6::cuda {
namespace {

// Kernels' code, graphs and the library's own buffers come after the plan of memory.
constexpr size_t kKeptFree = size_t{768} << 20;

size_t MiB(size_t bytes) { return (bytes + (size_t{1} << 20) - 1) >> 20; }

std::string VersionText(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

}  // namespace

Status CheckDriver(int driver_version, int runtime_version) {
  if (driver_version == 0) {
    return Unavailable("there is no NVIDIA driver; --device cuda needs one for CUDA {} or newer",
                       VersionText(runtime_version));
  }
  // Minor versions of one major version are compatible.
  if (driver_version / 1000 < runtime_version / 1000) {
    return Unavailable("the NVIDIA driver is for CUDA {}; --device cuda needs one for CUDA {}.0 or newer",
                       VersionText(driver_version), runtime_version / 1000);
  }
  return absl::OkStatus();
}

Status NoDeviceMemory(size_t bytes, size_t free) {
  return ResourceExhausted(
      "the GPU has {} MiB free and {} MiB are needed: other processes have taken memory since the plan was "
      "made; end them, or set a smaller --cache-bytes",
      free >> 20, MiB(bytes));
}

Status NoPinnedMemory(size_t bytes) {
  return ResourceExhausted(
      "the host cannot pin {} MiB for the GPU's steps: give it more memory, or set a smaller --max-context, "
      "--max-num-seqs or --max-step-rows",
      MiB(bytes));
}

StatusOr<Device> OpenDevice() {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  T6_RETURN_IF_ERROR(CheckDriver(driver, CUDART_VERSION));
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    return Unavailable("there is no GPU that CUDA can use");
  }
  if (error != cudaSuccess) {
    return Unavailable("CUDA does not start: {} ({})", cudaGetErrorString(error), cudaGetErrorName(error));
  }
  Device device;
  T6_RETURN_IF_CUDA_ERROR(cudaSetDevice(device.index));
  cudaDeviceProp properties{};
  T6_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, device.index));
  device.code = CodeForThisChip();
  if (device.code == ChipCode::kNone) {
    return Unimplemented(
        "{} has compute capability {}.{}; this build has code for {} alone (T6_CUDA_ARCHITECTURES)",
        properties.name, properties.major, properties.minor, T6_CUDA_ARCHITECTURES);
  }
  size_t free = 0, total = 0;
  T6_RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free, &total));
  device.n_sms = properties.multiProcessorCount;
  device.is_shared = properties.mpsEnabled != 0;
  device.memory_available = free > kKeptFree ? free - kKeptFree : 0;
  device.description =
      fmt::format("{}, {} GiB{}, driver for CUDA {}", properties.name, (total + (size_t{1} << 29)) >> 30,
                  device.is_shared ? " shared by MPS" : "", VersionText(driver));
  return device;
}

}  // namespace t6::cuda

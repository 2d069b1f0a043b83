#include "engine/backend/cuda/step_kernel.cuh"

template <>
std::span<const t6::cuda::StepInstance> t6::cuda::StepInstances<2>() {
  return MakeStepInstances<2>();
}

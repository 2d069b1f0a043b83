#include "engine/backend/cuda/rows_kernel.cuh"

namespace t6::cuda {

std::span<const RowsInstance> RowsInstancesOfRank1() {
  static const RowsInstance kInstances[] = {
      MakeFactoredInstance<1, 16>(),
      MakeFactoredInstance<1, 32>(),
      MakeExpandedInstance<1, 56, 4>(56),
      MakeExpandedInstance<1, 64, 4>(64),
  };
  return kInstances;
}

}  // namespace t6::cuda

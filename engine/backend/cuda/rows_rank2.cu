#include "engine/backend/cuda/rows_kernel.cuh"

namespace t6::cuda {

std::span<const RowsInstance> RowsInstancesOfRank2() {
  static const RowsInstance kInstances[] = {
      MakeFactoredInstance<2, 16>(),
      MakeFactoredInstance<2, 32>(),
      MakeExpandedInstance<2, 56, 4>(56),
      MakeExpandedInstance<2, 64, 4>(64),
  };
  return kInstances;
}

}  // namespace t6::cuda

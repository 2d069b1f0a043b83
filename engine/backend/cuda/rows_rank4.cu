#include "engine/backend/cuda/rows_kernel.cuh"

namespace t6::cuda {

std::span<const RowsInstance> RowsInstancesOfRank4() {
  static const RowsInstance kInstances[] = {
      MakeRowsInstance<RowsTraits<4, 64, 16, 3, 3>>(),
      MakeRowsInstance<RowsTraits<4, 64, 32, 3, 2>>(),
      MakeRowsInstance<RowsTraits<4, 64, 64, 2, 2>>(),
  };
  return kInstances;
}

}  // namespace t6::cuda

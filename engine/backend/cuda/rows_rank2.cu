#include "engine/backend/cuda/rows_kernel.cuh"

namespace t6::cuda {

std::span<const RowsInstance> RowsInstancesOfRank2() {
  static const RowsInstance kInstances[] = {
      MakeRowsInstance<RowsTraits<2, 64, 16, 2, 6, true>>(),
      MakeRowsInstance<RowsTraits<2, 64, 32, 3, 2>>(),
      MakeRowsInstance<RowsTraits<2, 64, 64, 2, 2>>(),
  };
  return kInstances;
}

}  // namespace t6::cuda

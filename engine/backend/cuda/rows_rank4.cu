#include "engine/backend/cuda/rows_kernel.cuh"

namespace t6::cuda {

// From rank 3 on R times the products cost more than expansion, whatever the rows.
std::span<const RowsInstance> RowsInstancesOfRank4() {
  static const RowsInstance kInstances[] = {
      MakeExpandedInstance<4, 56, 4>(16),
      MakeExpandedInstance<4, 56, 4>(32),
      MakeExpandedInstance<4, 56, 4>(56),
      MakeExpandedInstance<4, 64, 2>(64),
  };
  return kInstances;
}

}  // namespace t6::cuda

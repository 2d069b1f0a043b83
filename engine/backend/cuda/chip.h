// Which of this build's kernels the current GPU runs: asked of the driver, since it depends on the chips that
// the build was compiled for (T6_CUDA_ARCHITECTURES) as much as on the GPU. Any thread.
#pragma once

namespace t6::cuda {

enum class ChipCode {
  kNone,      // the build has no code for this GPU
  kPortable,  // of compute capability 8.0 and up: no tensor maps, no wgmma, no programmatic edges
  kHopper,    // of sm_90a
};

ChipCode CodeForThisChip();

}  // namespace t6::cuda

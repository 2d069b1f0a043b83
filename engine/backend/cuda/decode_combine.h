// The second half of decode attention: adds each sequence's partial results and writes its output.
#pragma once

#include "engine/backend/cuda/decode_attention.h"

namespace t6::cuda {

// Shared memory that a decode kernel leaves to a combining block beside it.
inline constexpr int kCombineShared = 2176;

// On a programmatic edge: its blocks wait on the device for the decode kernel in front of them.
cudaError_t LaunchDecodeCombine(const DecodeCall& call, cudaStream_t stream);

}  // namespace t6::cuda

#include "engine/backend/factory.h"

#include "engine/backend/cpu/cpu_backend.h"
#ifdef T6_CUDA
#include "engine/backend/cuda/cuda_backend.h"
#endif

namespace t6 {
namespace {

#ifdef T6_CUDA
constexpr bool kHasCuda = true;
StatusOr<std::unique_ptr<Backend>> MakeCuda(const BackendOptions& options) {
  return MakeCudaBackend(
      {.portable = options.portable_kernels, .times_operations = options.times_operations});
}
#else
constexpr bool kHasCuda = false;
StatusOr<std::unique_ptr<Backend>> MakeCuda(const BackendOptions& /*options*/) {
  return Unimplemented("device \"cuda\" is not in this build; use --device cpu");
}
#endif

}  // namespace

StatusOr<MadeBackend> MakeBackend(const BackendOptions& options) {
  MadeBackend made;
  if (options.device == "auto" || options.device == "cuda") {
    auto cuda = MakeCuda(options);
    if (cuda.ok() || options.device == "cuda") {
      T6_ASSIGN_OR_RETURN(made.backend, std::move(cuda));
      return made;
    }
    // A build without CUDA has nothing to say about it; one without code for this GPU has.
    if (kHasCuda) made.why_not_cuda = MessageOf(cuda.status());
  } else if (options.device != "cpu") {
    return InvalidArgument("device \"{}\" is unknown; use auto, cpu or cuda", options.device);
  }
  T6_ASSIGN_OR_RETURN(made.backend, MakeCpuBackend(options.threads));
  return made;
}

}  // namespace t6

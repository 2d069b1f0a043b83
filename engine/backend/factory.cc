#include "engine/backend/factory.h"

#include "engine/backend/cpu/cpu_backend.h"

namespace t6 {

StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options) {
  if (options.device == "auto" || options.device == "cpu") return MakeCpuBackend(options.threads);
  if (options.device == "cuda")
    return Unimplemented("device \"cuda\" is not in this build; use --device cpu");
  return InvalidArgument("device \"{}\" is unknown; use auto, cpu or cuda", options.device);
}

}  // namespace t6

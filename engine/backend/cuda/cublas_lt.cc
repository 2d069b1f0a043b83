#include "engine/backend/cuda/cublas_lt.h"

#include <dlfcn.h>

#include <string>

namespace t6::cuda {

StatusOr<std::unique_ptr<CublasLt>> CublasLt::Open() {
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open until the process ends
  if (library == nullptr) {
    return Unavailable("{} is needed for --device cuda and was not found: {}", name, dlerror());
  }
  std::unique_ptr<CublasLt> lt(new CublasLt);
#define T6_FIND(function)                                                             \
  lt->function = reinterpret_cast<decltype(lt->function)>(dlsym(library, #function)); \
  if (lt->function == nullptr) return Unavailable("{} has no {}", name, #function);
  T6_CUBLAS_LT_FUNCTIONS(T6_FIND)
#undef T6_FIND
  T6_RETURN_IF_ERROR(lt->Check(lt->cublasLtCreate(&lt->handle_), "cublasLtCreate"));
  return lt;
}

CublasLt::~CublasLt() {
  if (handle_ != nullptr) cublasLtDestroy(handle_);
}

Status CublasLt::Check(cublasStatus_t status, const char* what) const {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return Internal("{}: {}", what, cublasLtGetStatusString(status));
}

}  // namespace t6::cuda

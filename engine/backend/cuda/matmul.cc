#include "engine/backend/cuda/matmul.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>
#include <vector>

#include "engine/base/check.h"

namespace t6::cuda {
namespace {

constexpr size_t kMostProblems = 4096;  // of them remembered; a server sees prompts of every length
constexpr int kProposals = 8, kRuns = 8;

cudaDataType_t TypeOf(DType dtype) { return dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F; }

}  // namespace

// Column-major, as the library counts: out^T [n, m] = W [n, k] in^T [k, m].
struct Matmul::Problem {
  explicit Problem(const CublasLt* library) : lt(library) {}
  ~Problem() {
    if (operation != nullptr) lt->cublasLtMatmulDescDestroy(operation);
    for (cublasLtMatrixLayout_t layout : {weight, in, out}) {
      if (layout != nullptr) lt->cublasLtMatrixLayoutDestroy(layout);
    }
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  const CublasLt* lt;
  bool adds = false;
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t weight = nullptr, in = nullptr, out = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
};

StatusOr<std::unique_ptr<Matmul>> Matmul::Make(cudaStream_t stream) {
  T6_ASSIGN_OR_RETURN(std::unique_ptr<CublasLt> lt, CublasLt::Open());
  return std::unique_ptr<Matmul>(new Matmul(std::move(lt), stream));
}

Matmul::Matmul(std::unique_ptr<CublasLt> lt, cudaStream_t stream) : lt_(std::move(lt)), stream_(stream) {}
Matmul::~Matmul() = default;

Status Matmul::Reserve() {
  return workspace_.size() > 0 ? absl::OkStatus() : workspace_.Allocate(kWorkspaceBytes);
}

std::string Matmul::version() const {
  const size_t version = lt_->cublasLtGetVersion();
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

StatusOr<std::unique_ptr<Matmul::Problem>> Matmul::Describe(const MatmulShape& s) const {
  auto problem = std::make_unique<Problem>(lt_.get());
  problem->adds = s.adds;
  T6_RETURN_IF_ERROR(lt_->Check(
      lt_->cublasLtMatmulDescCreate(&problem->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor"));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  T6_RETURN_IF_ERROR(
      lt_->Check(lt_->cublasLtMatmulDescSetAttribute(problem->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                                     &transposed, sizeof(transposed)),
                 "transpose"));
  const auto layout = [&](cublasLtMatrixLayout_t* to, DType dtype, int rows, int columns, int stride) {
    return lt_->Check(lt_->cublasLtMatrixLayoutCreate(to, TypeOf(dtype), rows, columns, stride), "layout");
  };
  T6_RETURN_IF_ERROR(layout(&problem->weight, s.in_dtype, s.k, s.n, s.weight_stride));
  T6_RETURN_IF_ERROR(layout(&problem->in, s.in_dtype, s.k, s.m, s.in_stride));
  T6_RETURN_IF_ERROR(layout(&problem->out, s.out_dtype, s.n, s.m, s.out_stride));
  return problem;
}

StatusOr<std::vector<cublasLtMatmulHeuristicResult_t>> Matmul::Propose(const Problem& problem, int n) const {
  cublasLtMatmulPreference_t preference = nullptr;
  T6_RETURN_IF_ERROR(lt_->Check(lt_->cublasLtMatmulPreferenceCreate(&preference), "preference"));
  const size_t bytes = kWorkspaceBytes;
  lt_->cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                            sizeof(bytes));
  std::vector<cublasLtMatmulHeuristicResult_t> results(n);
  int found = 0;
  const cublasStatus_t status =
      lt_->cublasLtMatmulAlgoGetHeuristic(lt_->handle(), problem.operation, problem.weight, problem.in,
                                          problem.out, problem.out, preference, n, results.data(), &found);
  lt_->cublasLtMatmulPreferenceDestroy(preference);
  T6_RETURN_IF_ERROR(lt_->Check(status, "cublasLtMatmulAlgoGetHeuristic"));
  results.resize(found);
  std::erase_if(results, [](const auto& r) { return r.state != CUBLAS_STATUS_SUCCESS; });
  return results;
}

bool Matmul::Inherit(const MatmulShape& shape, Problem* problem) const {
  for (auto [larger, algorithm] : tuned_) {  // ascending m
    MatmulShape same = larger;
    same.m = shape.m;
    if (larger.m < shape.m || same != shape) continue;
    cublasLtMatmulHeuristicResult_t checked{};
    const cublasStatus_t status =
        lt_->cublasLtMatmulAlgoCheck(lt_->handle(), problem->operation, problem->weight, problem->in,
                                     problem->out, problem->out, &algorithm, &checked);
    if (status != CUBLAS_STATUS_SUCCESS || checked.workspaceSize > kWorkspaceBytes) return false;
    problem->algorithm = algorithm;
    return true;
  }
  return false;
}

StatusOr<Matmul::Problem*> Matmul::Find(const MatmulShape& shape) {
  const auto known = problems_.find(shape);
  if (known != problems_.end()) return known->second.get();
  if (problems_.size() >= kMostProblems) problems_.clear();
  T6_ASSIGN_OR_RETURN(std::unique_ptr<Problem> problem, Describe(shape));
  if (!Inherit(shape, problem.get())) {
    T6_ASSIGN_OR_RETURN(const auto proposals, Propose(*problem, 1));
    if (proposals.empty()) {
      return Unimplemented("cuBLASLt has no product of [{}, {}] and [{}, {}], {}", shape.m, shape.k, shape.n,
                           shape.k, NameOf(shape.in_dtype));
    }
    problem->algorithm = proposals.front().algo;
  }
  return (problems_[shape] = std::move(problem)).get();
}

Status Matmul::Launch(const Problem& problem, const cublasLtMatmulAlgo_t& algorithm,
                      const MatmulCall& call) const {
  const float one = 1.0f, beta = problem.adds ? 1.0f : 0.0f;
  return lt_->Check(
      lt_->cublasLtMatmul(lt_->handle(), problem.operation, &one, call.weight, problem.weight, call.in,
                          problem.in, &beta, call.out, problem.out, call.out, problem.out, &algorithm,
                          workspace_.as<void>(), kWorkspaceBytes, stream_),
      "cublasLtMatmul");
}

Status Matmul::Run(const MatmulCall& call) {
  if (call.shape.m == 0) return absl::OkStatus();
  T6_ASSIGN_OR_RETURN(const Problem* problem, Find(call.shape));
  return Launch(*problem, problem->algorithm, call);
}

// Of kRuns in a graph, for the host takes as long to launch a small product as the device to multiply it.
StatusOr<float> Matmul::Time(const Problem& problem, const cublasLtMatmulAlgo_t& algorithm,
                             const std::function<MatmulCall(int)>& call) const {
  float milliseconds = std::numeric_limits<float>::infinity();
  cudaGraph_t graph = nullptr;
  T6_RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  Status status;
  for (int i = 0; i < kRuns && status.ok(); ++i) status = Launch(problem, algorithm, call(i));
  cudaError_t error = cudaStreamEndCapture(stream_, &graph);
  cudaGraphExec_t runs = nullptr;
  if (status.ok() && error == cudaSuccess) error = cudaGraphInstantiate(&runs, graph, 0);
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (!status.ok() || error != cudaSuccess) {  // an algorithm that is none for this shape, or for a graph
    cudaGetLastError();
    return milliseconds;
  }
  std::array<cudaEvent_t, 2> events{};
  for (cudaEvent_t& event : events) {
    if (error == cudaSuccess) error = cudaEventCreate(&event);
  }
  if (error == cudaSuccess) error = cudaGraphLaunch(runs, stream_);
  if (error == cudaSuccess) error = cudaEventRecord(events[0], stream_);
  if (error == cudaSuccess) error = cudaGraphLaunch(runs, stream_);
  if (error == cudaSuccess) error = cudaEventRecord(events[1], stream_);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream_);
  if (error == cudaSuccess) error = cudaEventElapsedTime(&milliseconds, events[0], events[1]);
  for (cudaEvent_t event : events) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  cudaGraphExecDestroy(runs);
  T6_RETURN_IF_CUDA_ERROR(error);
  return milliseconds;
}

Status Matmul::Tune(const std::function<MatmulCall(int)>& call) {
  const MatmulShape shape = call(0).shape;
  T6_ASSIGN_OR_RETURN(const std::unique_ptr<Problem> problem, Describe(shape));
  T6_ASSIGN_OR_RETURN(const auto proposals, Propose(*problem, kProposals));
  float fastest = std::numeric_limits<float>::infinity();
  for (const auto& proposal : proposals) {
    T6_ASSIGN_OR_RETURN(const float time, Time(*problem, proposal.algo, call));
    if (time >= fastest) continue;
    fastest = time;
    tuned_[shape] = proposal.algo;
  }
  problems_.erase(shape);
  return absl::OkStatus();
}

}  // namespace t6::cuda

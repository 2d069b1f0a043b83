// Float32 products of many rows by oneDNN's brgemm, straight from our packing (gemm_tile.h): on Intel it is a
// tenth faster than our kernel. For bfloat16 our own tiles are faster (by half with AMX, equal without), so
// they do not come here.
#pragma once

#include <map>
#include <memory>
#include <tuple>

#include "engine/backend/cpu/gemm_tile.h"

namespace t6::cpu {

// One shape's primitive, with arguments of its own for each worker: Run may be called by all workers at once.
class OnednnProduct {
 public:
  virtual ~OnednnProduct() = default;
  // c [n_rows, n_columns] = a [n_rows, k_padded] b, all of them dense; b is n_columns / 64 blocks.
  virtual void Run(const float* a, const void* b, float* c, int worker) const = 0;
};

// Owns the primitives made so far. Find is for one thread. Creates no threads: oneDNN runs on the caller's.
class OnednnProducts {
 public:
  explicit OnednnProducts(int n_workers) : n_workers_(n_workers) {}
  // Null when oneDNN has no fast kernel for this packing on this CPU. n_rows: a multiple of kRowStep.
  const OnednnProduct* Find(int n_rows, int k_padded, int n_columns);

 private:
  int n_workers_;
  std::map<std::tuple<int, int, int>, std::unique_ptr<OnednnProduct>> products_;
};

}  // namespace t6::cpu

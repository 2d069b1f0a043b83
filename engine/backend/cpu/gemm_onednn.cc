#include "engine/backend/cpu/gemm_onednn.h"

#include <omp.h>

#include <oneapi/dnnl/dnnl.hpp>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace t6::cpu {
namespace {

// oneDNN asks OpenMP how many threads it may use; the answer is kept per thread, and ours are all the threads
// there are.
void UseThisThreadOnly() {
  thread_local const bool done = (omp_set_num_threads(1), true);
  (void)done;
}

struct Arguments {
  dnnl::memory a, b, c, scratchpad;
  std::unordered_map<int, dnnl::memory> all;
};

class Product final : public OnednnProduct {
 public:
  Product(const dnnl::matmul::primitive_desc& desc, const dnnl::engine& engine, int n_workers)
      : primitive_(desc), stream_(engine), workers_(n_workers) {
    for (Arguments& w : workers_) {
      w.a = dnnl::memory(desc.src_desc(), engine, nullptr);
      w.b = dnnl::memory(desc.weights_desc(), engine, nullptr);
      w.c = dnnl::memory(desc.dst_desc(), engine, nullptr);
      w.scratchpad =
          dnnl::memory(desc.scratchpad_desc(), engine);  // oneDNN's own would be one for all workers
      w.all = {{DNNL_ARG_SRC, w.a},
               {DNNL_ARG_WEIGHTS, w.b},
               {DNNL_ARG_DST, w.c},
               {DNNL_ARG_SCRATCHPAD, w.scratchpad}};
    }
  }

  void Run(const float* a, const void* b, float* c, int worker) const override {
    UseThisThreadOnly();
    const Arguments& w = workers_[worker];
    w.a.set_data_handle(const_cast<float*>(a));
    w.b.set_data_handle(const_cast<void*>(b));
    w.c.set_data_handle(c);
    primitive_.execute(stream_, w.all);
  }

 private:
  dnnl::matmul primitive_;
  dnnl::stream stream_;
  std::vector<Arguments> workers_;
};

std::unique_ptr<OnednnProduct> MakeProduct(int n_rows, int k_padded, int n_columns, int n_workers) {
  using dnnl::memory;
  UseThisThreadOnly();
  try {
    static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    const auto f32 = memory::data_type::f32;
    const memory::desc a({n_rows, k_padded}, f32, memory::format_tag::ab);
    const memory::desc b({k_padded, n_columns}, f32, memory::format_tag::BA16a64b);
    const memory::desc c({n_rows, n_columns}, f32, memory::format_tag::ab);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const dnnl::matmul::primitive_desc desc({a, b, c}, attributes, engine);
    // Anything but brgemm reads this packing number by number, a thousand times slower.
    if (std::string_view(desc.impl_info_str()).substr(0, 3) != "brg") return nullptr;
    return std::make_unique<Product>(desc, engine, n_workers);
  } catch (const dnnl::error&) {
    return nullptr;  // our own kernel does it
  }
}

}  // namespace

const OnednnProduct* OnednnProducts::Find(int n_rows, int k_padded, int n_columns) {
  const auto [found, is_new] = products_.try_emplace({n_rows, k_padded, n_columns});
  if (is_new) found->second = MakeProduct(n_rows, k_padded, n_columns, n_workers_);
  return found->second.get();
}

}  // namespace t6::cpu

// From run-time arguments to template arguments, and from elements to blocks.
#pragma once

#include <algorithm>
#include <type_traits>

#include "activation.cuh"
#include "kernels.h"

namespace stylegan2_ada {

constexpr int THREADS = 256;
constexpr int64_t MAX_BLOCKS = 1 << 30;  // the kernels loop over what is left

inline unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>(std::min((threads + THREADS - 1) / THREADS, MAX_BLOCKS));
}

template <int VALUE>
using Constant = std::integral_constant<int, VALUE>;

// f(element, values per thread)
template <typename F>
void with_type(Type type, bool vectors, F f) {
  const auto with_values = [&](auto element) {
    if (vectors)
      f(element, Constant<16 / sizeof(element)>{});
    else
      f(element, Constant<1>{});
  };
  if (type == Type::FLOAT32) with_values(float{});
  if (type == Type::FLOAT16) with_values(__half{});
  if (type == Type::BFLOAT16) with_values(__nv_bfloat16{});
}

// f(activation) for the one of that number
template <int ACT = 0, typename F>
void with_activation(int activation, F f) {
  if constexpr (ACT < ACTIVATIONS) {
    if (activation == ACT)
      f(Constant<ACT>{});
    else
      with_activation<ACT + 1>(activation, f);
  }
}

}  // namespace stylegan2_ada

// What all kernels share. Everything marked HOST_DEVICE compiles for the host as well, where the tests run it.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif

namespace stylegan2_ada {

HOST_DEVICE float to_float(float value) { return value; }
HOST_DEVICE void from_float(float value, float* out) { *out = value; }
#ifdef __CUDACC__
HOST_DEVICE float to_float(__half value) { return __half2float(value); }
HOST_DEVICE float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
HOST_DEVICE void from_float(float value, __half* out) { *out = __float2half_rn(value); }
HOST_DEVICE void from_float(float value, __nv_bfloat16* out) { *out = __float2bfloat16_rn(value); }
#endif

// V neighbouring values, moved 128 bits at a time.
template <typename T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Vector {
  T values[V];
};

template <int V, typename T>
HOST_DEVICE void load(const T* from, float (&to)[V]) {
  const auto vector = *reinterpret_cast<const Vector<T, V>*>(from);
  for (int k = 0; k < V; k++) to[k] = to_float(vector.values[k]);
}

template <int V, typename T>
HOST_DEVICE void store(const float (&from)[V], T* to) {
  Vector<T, V> vector;
  for (int k = 0; k < V; k++) from_float(from[k], &vector.values[k]);
  *reinterpret_cast<Vector<T, V>*>(to) = vector;
}

template <int V>
HOST_DEVICE void fill(float value, float (&to)[V]) {
  for (int k = 0; k < V; k++) to[k] = value;
}

// Rounds towards minus infinity; divisor > 0.
HOST_DEVICE int64_t floor_divide(int64_t value, int64_t divisor) {
  return value / divisor - (value % divisor < 0);
}

}  // namespace stylegan2_ada

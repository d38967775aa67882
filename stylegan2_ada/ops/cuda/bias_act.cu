#include "bias_act.cuh"

#include "launch.cuh"

namespace stylegan2_ada {

template <typename T, int V, int ACT>
__global__ void __launch_bounds__(THREADS) bias_act_kernel(const BiasAct p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS * V;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) * V; i < p.elements; i += step)
    bias_act<T, V, ACT>(p, i);
}

void launch_bias_act(const BiasAct& p, int activation, Type type, bool vectors, cudaStream_t stream) {
  with_type(type, vectors, [&](auto element, auto values) {
    with_activation(activation, [&](auto act) {
      bias_act_kernel<decltype(element), values(), act()>
          <<<blocks_for(p.elements / values()), THREADS, 0, stream>>>(p);
    });
  });
}

bool kernels_fit() {
  cudaFuncAttributes attributes;
  const bool fit = cudaFuncGetAttributes(&attributes, bias_act_kernel<float, 1, LINEAR>) == cudaSuccess;
  cudaGetLastError();  // a failure here is an answer, not an error for the next call to find
  return fit;
}

}  // namespace stylegan2_ada

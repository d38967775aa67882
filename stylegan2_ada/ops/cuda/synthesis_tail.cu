#include "synthesis_tail.cuh"

#include "launch.cuh"

namespace stylegan2_ada {

template <typename T, int V, int ACT>
__global__ void __launch_bounds__(THREADS) synthesis_tail_kernel(const SynthesisTail p, int64_t elements) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS * V;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) * V; i < elements; i += step)
    synthesis_tail<T, V, ACT>(p, i);
}

void launch_synthesis_tail(const SynthesisTail& p, int activation, Type type, bool vectors, cudaStream_t stream) {
  const int64_t elements = p.batch * p.channels * p.pixels;
  with_type(type, vectors, [&](auto element, auto values) {
    with_activation(activation, [&](auto act) {
      synthesis_tail_kernel<decltype(element), values(), act()>
          <<<blocks_for(elements / values()), THREADS, 0, stream>>>(p, elements);
    });
  });
}

}  // namespace stylegan2_ada

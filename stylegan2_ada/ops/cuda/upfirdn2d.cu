#include "upfirdn2d.cuh"

#include "launch.cuh"

namespace stylegan2_ada {

template <typename T, int V, int UP, int DOWN, int TAPS>
__global__ void __launch_bounds__(THREADS) upfirdn2d_kernel(const Upfirdn2d p, int64_t threads) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < threads; i += step)
    upfirdn2d<T, V, UP, DOWN, TAPS>(p, i);
}

void launch_upfirdn2d(const Upfirdn2d& p, Type type, bool vectors, cudaStream_t stream) {
  const auto is = [&](int up, int down, int taps) {
    return p.up_x == up && p.up_y == up && p.down_x == down && p.down_y == down && p.filter_width == taps &&
           p.filter_height == taps;
  };
  with_type(type, vectors, [&](auto element, auto values) {
    using T = decltype(element);
    constexpr int V = values();
    const int64_t threads = upfirdn2d_threads(p, V);
    const unsigned blocks = blocks_for(threads);
    // The three that StyleGAN2 lives on, and any other.
    if (is(1, 1, 4))
      upfirdn2d_kernel<T, V, 1, 1, 4><<<blocks, THREADS, 0, stream>>>(p, threads);
    else if (is(2, 1, 4))
      upfirdn2d_kernel<T, V, 2, 1, 4><<<blocks, THREADS, 0, stream>>>(p, threads);
    else if (is(1, 2, 4))
      upfirdn2d_kernel<T, V, 1, 2, 4><<<blocks, THREADS, 0, stream>>>(p, threads);
    else
      upfirdn2d_kernel<T, V, 0, 0, 0><<<blocks, THREADS, 0, stream>>>(p, threads);
  });
}

}  // namespace stylegan2_ada

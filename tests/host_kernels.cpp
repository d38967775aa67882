// The device functions of the CUDA kernels, compiled for the host and run thread by thread; see test_ops_build.py.
#include "activation.cuh"
#include "bias_act.cuh"
#include "synthesis_tail.cuh"
#include "upfirdn2d.cuh"

using namespace stylegan2_ada;

template <int V, int ACT = 0>
void run(const BiasAct& p, int activation) {
  if constexpr (ACT < ACTIVATIONS) {
    if (activation != ACT) return run<V, ACT + 1>(p, activation);
    for (int64_t i = 0; i < p.elements; i += V) bias_act<float, V, ACT>(p, i);
  }
}

template <int V, int ACT = 0>
void run(const SynthesisTail& p, int activation) {
  if constexpr (ACT < ACTIVATIONS) {
    if (activation != ACT) return run<V, ACT + 1>(p, activation);
    for (int64_t i = 0; i < p.batch * p.channels * p.pixels; i += V) synthesis_tail<float, V, ACT>(p, i);
  }
}

template <int V>
void run(const Upfirdn2d& p, int up, int down) {  // 0, 0: the kernel for any factors and filters
  for (int64_t i = 0; i < upfirdn2d_threads(p, V); i++) {
    if (up == 1 && down == 1) upfirdn2d<float, V, 1, 1, 4>(p, i);
    if (up == 2 && down == 1) upfirdn2d<float, V, 2, 1, 4>(p, i);
    if (up == 1 && down == 2) upfirdn2d<float, V, 1, 2, 4>(p, i);
    if (up == 0 && down == 0) upfirdn2d<float, V, 0, 0, 0>(p, i);
  }
}

#define RUN(...) (values == 8 ? run<8>(__VA_ARGS__) : values == 4 ? run<4>(__VA_ARGS__) : run<1>(__VA_ARGS__))

extern "C" {
void run_bias_act(const BiasAct* p, int values, int activation) { RUN(*p, activation); }
void run_synthesis_tail(const SynthesisTail* p, int values, int activation) { RUN(*p, activation); }
void run_upfirdn2d(const Upfirdn2d* p, int values, int up, int down) { RUN(*p, up, down); }
}

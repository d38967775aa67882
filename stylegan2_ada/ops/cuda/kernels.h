// What the bindings and the kernels agree on. Pointers are device memory of the element type, unless a type is given.
#pragma once

#include <cuda_runtime_api.h>

#include "parameters.h"

namespace stylegan2_ada {

enum class Type { FLOAT32, FLOAT16, BFLOAT16 };

// All run on the current device. `vectors` moves 128 bits per thread; see the parameters for what that needs.
void launch_bias_act(const BiasAct& p, int activation, Type type, bool vectors, cudaStream_t stream);
void launch_upfirdn2d(const Upfirdn2d& p, Type type, bool vectors, cudaStream_t stream);
void launch_synthesis_tail(const SynthesisTail& p, int activation, Type type, bool vectors, cudaStream_t stream);

// Whether the current device can run what was compiled.
bool kernels_fit();

}  // namespace stylegan2_ada

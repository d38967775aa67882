// Arguments of the kernels; plain data, so that the tests can fill them in.
#pragma once

#include <cstdint>

namespace stylegan2_ada {

// Element i of the storage has bias element (i / inner) % size. With V values per thread, V divides `inner`, or
// `inner` is 1 and V divides `size`.
struct BiasAct {
  const void* x;          // order 0: the input; else what is multiplied by the derivative
  const void* reference;  // order > 0: the input of the forward pass, or its output
  const void* b;          // (size,), or null
  void* y;
  int64_t elements, size, inner;
  int32_t order;        // 0: clamp(gain * act(x + b)); 1, 2: x * gain * first, second derivative at the reference
  int32_t from_output;  // the reference is the output: for activations that keep signs and have gain > 0
  float alpha, gain, limit;  // limit < 0: no clamp
};

// Contiguous, or channels-last. With V values per thread, V divides the channels, which are last.
struct Upfirdn2d {
  const void* x;   // (batch, channels, in_height, in_width)
  const float* f;  // (filter_height, filter_width)
  void* y;         // (batch, channels, out_height, out_width), laid out as x
  int64_t batch, channels, in_height, in_width, out_height, out_width;
  int32_t filter_height, filter_width, up_x, up_y, down_x, down_y, left, top;
  int32_t flip_filter, channels_last;
  float gain;
};

// Contiguous, or channels-last. With V values per thread, V divides the pixels, or the channels if those are last.
struct SynthesisTail {
  const void* x;              // (batch, channels, pixels)
  const float* coefficients;  // (batch, channels)
  const float* noise;         // (batch, pixels) or (pixels,), or null
  const float* b;             // (channels,)
  void* y;
  int64_t batch, channels, pixels;
  int32_t noise_per_sample, channels_last;
  float alpha, gain, limit;
};

}  // namespace stylegan2_ada

#pragma once

#include "activation.cuh"
#include "parameters.h"

namespace stylegan2_ada {

// clamp(gain * act(x * coefficients + noise + b)), elements i to i + V - 1.
template <typename T, int V, int ACT>
HOST_DEVICE void synthesis_tail(const SynthesisTail& p, int64_t i) {
  const int64_t inner = p.channels_last ? p.channels : p.pixels;
  const int64_t outer = i / inner;  // sample and pixel, or sample and channel
  const int64_t sample = outer / (p.channels_last ? p.pixels : p.channels);
  const int64_t channel = p.channels_last ? i % inner : outer % p.channels;
  const int64_t pixel = p.channels_last ? outer % p.pixels : i % inner;
  const float* coefficients = p.coefficients + sample * p.channels + channel;
  const float* noise = p.noise == nullptr ? nullptr : p.noise + (p.noise_per_sample ? sample * p.pixels : 0) + pixel;

  float x[V], scale[V], shift[V], added[V] = {}, y[V];
  load(static_cast<const T*>(p.x) + i, x);
  if (p.channels_last) {
    load(coefficients, scale);
    load(p.b + channel, shift);
    if (noise != nullptr) fill(*noise, added);
  } else {
    fill(*coefficients, scale);
    fill(p.b[channel], shift);
    if (noise != nullptr) load(noise, added);
  }
  for (int k = 0; k < V; k++)
    y[k] = clamp(p.gain * activate<ACT>(x[k] * scale[k] + added[k] + shift[k], p.alpha), p.limit);
  store(y, static_cast<T*>(p.y) + i);
}

}  // namespace stylegan2_ada

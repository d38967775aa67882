#pragma once

#include "activation.cuh"
#include "parameters.h"

namespace stylegan2_ada {

// Elements i to i + V - 1.
template <typename T, int V, int ACT>
HOST_DEVICE void bias_act(const BiasAct& p, int64_t i) {
  float x[V], b[V] = {}, y[V];
  load(static_cast<const T*>(p.x) + i, x);
  if (p.b != nullptr) {
    const T* bias = static_cast<const T*>(p.b);
    if (p.inner == 1)
      load(bias + i % p.size, b);
    else
      fill(to_float(bias[i / p.inner % p.size]), b);
  }
  if (p.order == 0) {
    for (int k = 0; k < V; k++) y[k] = clamp(p.gain * activate<ACT>(x[k] + b[k], p.alpha), p.limit);
  } else {
    float reference[V];
    load(static_cast<const T*>(p.reference) + i, reference);
    for (int k = 0; k < V; k++) {
      const float t = p.from_output ? reference[k] : reference[k] + b[k];
      const float value = p.from_output ? reference[k] : p.gain * activate<ACT>(t, p.alpha);
      const float derivative = p.order == 1 ? slope<ACT>(t, p.alpha) : curvature<ACT>(t);
      y[k] = p.limit < 0 || fabsf(value) < p.limit ? x[k] * p.gain * derivative : 0.0f;
    }
  }
  store(y, static_cast<T*>(p.y) + i);
}

}  // namespace stylegan2_ada

// The activations with their first and second derivatives, in float.
#pragma once

#include "common.cuh"

namespace stylegan2_ada {

enum Activation : int { LINEAR, RELU, LRELU, TANH, SIGMOID, ELU, SELU, SOFTPLUS, SWISH, ACTIVATIONS };

constexpr float SELU_SCALE = 1.0507009873554805f;  // Klambauer et al., arXiv 1706.02515
constexpr float SELU_ALPHA = 1.6732632423543772f;
constexpr float SOFTPLUS_LINEAR_FROM = 20.0f;  // as in torch

HOST_DEVICE float sigmoid(float t) { return 1.0f / (1.0f + expf(-t)); }

// Comparisons are written so that NaN passes through.
template <int ACT>
HOST_DEVICE float activate(float t, float alpha) {
  if constexpr (ACT == RELU) return t < 0 ? 0.0f : t;
  if constexpr (ACT == LRELU) return t > 0 ? t : alpha * t;
  if constexpr (ACT == TANH) return tanhf(t);
  if constexpr (ACT == SIGMOID) return sigmoid(t);
  if constexpr (ACT == ELU) return t > 0 ? t : expm1f(t);
  if constexpr (ACT == SELU) return SELU_SCALE * (t > 0 ? t : SELU_ALPHA * expm1f(t));
  if constexpr (ACT == SOFTPLUS) return t > SOFTPLUS_LINEAR_FROM ? t : log1pf(expf(t));
  if constexpr (ACT == SWISH) return t * sigmoid(t);
  return t;
}

template <int ACT>
HOST_DEVICE float slope(float t, float alpha) {
  if constexpr (ACT == RELU) return t > 0 ? 1.0f : 0.0f;
  if constexpr (ACT == LRELU) return t > 0 ? 1.0f : alpha;
  if constexpr (ACT == TANH) return 1.0f - tanhf(t) * tanhf(t);
  if constexpr (ACT == SIGMOID) return sigmoid(t) * (1.0f - sigmoid(t));
  if constexpr (ACT == ELU) return t > 0 ? 1.0f : expf(t);
  if constexpr (ACT == SELU) return SELU_SCALE * (t > 0 ? 1.0f : SELU_ALPHA * expf(t));
  if constexpr (ACT == SOFTPLUS) return sigmoid(t);
  if constexpr (ACT == SWISH) return sigmoid(t) * (1.0f + t * (1.0f - sigmoid(t)));
  return 1.0f;
}

template <int ACT>
HOST_DEVICE float curvature(float t) {
  if constexpr (ACT == TANH) return -2.0f * tanhf(t) * (1.0f - tanhf(t) * tanhf(t));
  if constexpr (ACT == SIGMOID) return sigmoid(t) * (1.0f - sigmoid(t)) * (1.0f - 2.0f * sigmoid(t));
  if constexpr (ACT == ELU) return t > 0 ? 0.0f : expf(t);
  if constexpr (ACT == SELU) return t > 0 ? 0.0f : SELU_SCALE * SELU_ALPHA * expf(t);
  if constexpr (ACT == SOFTPLUS) return sigmoid(t) * (1.0f - sigmoid(t));
  if constexpr (ACT == SWISH)
    return sigmoid(t) * (1.0f - sigmoid(t)) * (2.0f + t * (1.0f - 2.0f * sigmoid(t)));
  return 0.0f;
}

// Within [-limit, limit]; a negative limit is none.
HOST_DEVICE float clamp(float value, float limit) {
  if (limit < 0) return value;
  return value > limit ? limit : (value < -limit ? -limit : value);
}

}  // namespace stylegan2_ada

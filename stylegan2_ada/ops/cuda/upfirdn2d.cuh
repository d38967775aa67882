#pragma once

#include "common.cuh"
#include "parameters.h"

namespace stylegan2_ada {

constexpr int ROWS = 4;  // output rows per thread, which share the input they read

HOST_DEVICE int64_t upfirdn2d_threads(const Upfirdn2d& p, int values) {
  return p.batch * (p.channels / values) * ((p.out_height + ROWS - 1) / ROWS) * p.out_width;
}

// Column x, ROWS rows and V channels of the output. UP, DOWN and TAPS hold for both axes; 0 reads them from p.
//
// In one dimension, with k the offset from an output sample o on the padded upsampled grid,
//   y[o] = sum_k w[k] * grid[o * down + k],  grid[i * up + padding] = x[i] and 0 elsewhere,
// and w is the filter (correlation) or the flipped filter (convolution). `first` is the first input sample that
// the thread can reach and `phase` its k for the first output.
template <typename T, int V, int UP, int DOWN, int TAPS>
HOST_DEVICE void upfirdn2d(const Upfirdn2d& p, int64_t thread) {
  const int up_x = UP ? UP : p.up_x, up_y = UP ? UP : p.up_y;
  const int down_x = DOWN ? DOWN : p.down_x, down_y = DOWN ? DOWN : p.down_y;
  const int width = TAPS ? TAPS : p.filter_width, height = TAPS ? TAPS : p.filter_height;

  const int64_t strips = (p.out_height + ROWS - 1) / ROWS;
  int64_t rest = thread, channel = 0;
  if (p.channels_last) {
    channel = rest % (p.channels / V) * V;
    rest /= p.channels / V;
  }
  const int64_t x = rest % p.out_width;
  rest /= p.out_width;
  const int64_t y = rest % strips * ROWS;
  rest /= strips;
  if (!p.channels_last) {
    channel = rest % p.channels;
    rest /= p.channels;
  }
  const int64_t sample = rest;

  const int64_t step_x = p.channels_last ? p.channels : 1;  // from pixel to pixel
  const int64_t plane = p.channels_last ? sample * p.channels * p.in_height * p.in_width + channel
                                        : (sample * p.channels + channel) * p.in_height * p.in_width;
  const T* input = static_cast<const T*>(p.x) + plane;

  const int64_t first_x = -floor_divide(p.left - x * down_x, up_x), first_y = -floor_divide(p.top - y * down_y, up_y);
  const int phase_x = UP == 1 ? 0 : static_cast<int>(first_x * up_x + p.left - x * down_x);
  const int phase_y = UP == 1 ? 0 : static_cast<int>(first_y * up_y + p.top - y * down_y);
  const int columns = (width - 1) / up_x + 1, rows = ((ROWS - 1) * down_y + height - 1) / up_y + 1;
  const int filter_start = p.flip_filter ? 0 : height * width - 1, filter_step = p.flip_filter ? 1 : -1;

  const auto tap = [&](int tap_y, int tap_x) {
    const bool inside = tap_y >= 0 && tap_y < height && tap_x < width;
    return inside ? p.f[filter_start + filter_step * (tap_y * width + tap_x)] : 0.0f;
  };
  // The taps of a filter of known size wait in registers.
  constexpr int KEPT_ROWS = TAPS ? TAPS + UP - 1 : 1, KEPT_COLUMNS = TAPS ? (TAPS - 1) / UP + 1 : 1;
  float kept[KEPT_ROWS][KEPT_COLUMNS];
  if constexpr (TAPS > 0) {
#pragma unroll
    for (int i = 0; i < KEPT_ROWS; i++)
#pragma unroll
      for (int j = 0; j < KEPT_COLUMNS; j++) kept[i][j] = tap(phase_y + i - (UP - 1), phase_x + j * UP);
  }

  float sums[ROWS][V] = {};
#pragma unroll
  for (int i = 0; i < rows; i++) {
    const int64_t in_y = first_y + i;
    if (in_y < 0 || in_y >= p.in_height) continue;
#pragma unroll
    for (int j = 0; j < columns; j++) {
      const int64_t in_x = first_x + j;
      if (in_x < 0 || in_x >= p.in_width) continue;
      float value[V];
      load(input + (in_y * p.in_width + in_x) * step_x, value);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const int offset = i * up_y - r * down_y;  // from the tap of the first row and the first input
        if (offset <= -up_y || offset >= height) continue;
        float weight;
        if constexpr (TAPS > 0)
          weight = kept[offset + UP - 1][j];
        else
          weight = tap(phase_y + offset, phase_x + j * up_x);
        for (int k = 0; k < V; k++) sums[r][k] += weight * value[k];
      }
    }
  }

  const int64_t out_plane = p.channels_last ? sample * p.channels * p.out_height * p.out_width + channel
                                            : (sample * p.channels + channel) * p.out_height * p.out_width;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (y + r >= p.out_height) continue;
    for (int k = 0; k < V; k++) sums[r][k] *= p.gain;
    store(sums[r], static_cast<T*>(p.y) + out_plane + ((y + r) * p.out_width + x) * step_x);
  }
}

}  // namespace stylegan2_ada

// The CUDA side of the operators that Python defines (stylegan2_ada/ops): checks, layouts, launches.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "kernels.h"

namespace stylegan2_ada {
namespace {

using at::Tensor;
using std::optional;

// In the order of the enumeration in activation.cuh.
constexpr std::array<std::string_view, 9> ACTIVATION_NAMES = {"linear", "relu", "lrelu",    "tanh", "sigmoid",
                                                              "elu",    "selu", "softplus", "swish"};

int find_activation(std::string_view name) {
  const auto found = std::find(ACTIVATION_NAMES.begin(), ACTIVATION_NAMES.end(), name);
  TORCH_CHECK_VALUE(found != ACTIVATION_NAMES.end(), "act is '", name, "', which has no kernel");
  return static_cast<int>(found - ACTIVATION_NAMES.begin());
}

Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return Type::FLOAT32;
    case at::kHalf:
      return Type::FLOAT16;
    case at::kBFloat16:
      return Type::BFLOAT16;
    default:
      TORCH_CHECK_VALUE(false, "x is ", x.scalar_type(), "; the kernels take float32, float16 and bfloat16");
  }
}

// Whether 16 bytes of x make a vector: `run` elements lie together, and every tensor starts at a multiple of 16 bytes.
bool vectors_fit(const Tensor& x, int64_t run, std::initializer_list<const void*> pointers) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return run % (16 / x.element_size()) == 0 && std::all_of(pointers.begin(), pointers.end(), aligned);
}

bool is_channels_last(const Tensor& x) {
  return x.is_contiguous(at::MemoryFormat::ChannelsLast) && !x.is_contiguous();
}

// x with the strides of y, which has its shape.
Tensor laid_out_as(const Tensor& y, const Tensor& x) {
  return x.strides() == y.strides() ? x : at::empty_like(y).copy_(x);
}

float limit_of(optional<double> clamp) { return clamp ? static_cast<float>(*clamp) : -1.0f; }

// Both public forms: order 0 without a reference, 1 and 2 with one.
Tensor run_bias_act(const Tensor& x_in, const optional<Tensor>& reference_in, const optional<Tensor>& b_in, int64_t dim,
                    std::string_view act, double alpha, double gain, optional<double> clamp, bool from_output,
                    int64_t order) {
  const int activation = find_activation(act);
  const Type type = type_of(x_in);
  const c10::cuda::CUDAGuard guard(x_in.device());
  Tensor y = at::empty_like(x_in);  // dense, whatever x is
  const Tensor x = laid_out_as(y, x_in);

  BiasAct p{};
  p.elements = p.inner = x.numel();
  p.size = 1;
  Tensor reference, b;
  if (reference_in) {
    TORCH_CHECK_VALUE(reference_in->sizes() == x.sizes() && reference_in->scalar_type() == x.scalar_type() &&
                          reference_in->device() == x.device(),
                      "the reference must be like the gradient");
    reference = laid_out_as(y, *reference_in);
  }
  if (b_in) {
    dim = dim < 0 ? dim + x.dim() : dim;
    TORCH_CHECK_VALUE(dim >= 0 && dim < x.dim() && b_in->dim() == 1 && b_in->size(0) == x.size(dim) &&
                          b_in->scalar_type() == x.scalar_type() && b_in->device() == x.device(),
                      "b ", b_in->sizes(), " does not fit x ", x.sizes());
    b = b_in->contiguous();
    p.size = x.size(dim);
    p.inner = p.size == 1 ? x.numel() : y.stride(dim);
  }
  if (p.elements == 0) return y;
  p.x = x.const_data_ptr();
  p.reference = reference.defined() ? reference.const_data_ptr() : nullptr;
  p.b = b.defined() ? b.const_data_ptr() : nullptr;
  p.y = y.mutable_data_ptr();
  p.order = static_cast<int32_t>(order);
  p.from_output = from_output;
  p.alpha = static_cast<float>(alpha);
  p.gain = static_cast<float>(gain);
  p.limit = limit_of(clamp);
  const bool vectors = vectors_fit(x, p.inner == 1 ? p.size : p.inner, {p.x, p.reference, p.b, p.y});
  launch_bias_act(p, activation, type, vectors, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_CHECK(cudaGetLastError());
  return y;
}

Tensor bias_act(const Tensor& x, const optional<Tensor>& b, int64_t dim, c10::string_view act, double alpha,
                double gain, optional<double> clamp) {
  return run_bias_act(x, {}, b, dim, act, alpha, gain, clamp, false, 0);
}

Tensor bias_act_grad(const Tensor& grad, const Tensor& reference, const optional<Tensor>& b, int64_t dim,
                     c10::string_view act, double alpha, double gain, optional<double> clamp, bool from_output,
                     int64_t order) {
  TORCH_CHECK_NOT_IMPLEMENTED(order == 1 || order == 2, "bias_act has two derivatives, not ", order);
  return run_bias_act(grad, reference, b, dim, act, alpha, gain, clamp, from_output, order);
}

int32_t to_int32(int64_t value) {
  TORCH_CHECK_VALUE(value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max(),
                    value, " is too large");
  return static_cast<int32_t>(value);
}

Tensor upfirdn2d(const Tensor& x_in, const Tensor& f_in, at::IntArrayRef up, at::IntArrayRef down,
                 at::IntArrayRef padding, bool flip_filter, double gain) {
  const Type type = type_of(x_in);
  TORCH_CHECK_VALUE(x_in.dim() == 4 && f_in.dim() == 2 && f_in.numel() > 0 && f_in.scalar_type() == at::kFloat &&
                        f_in.device() == x_in.device(),
                    "x ", x_in.sizes(), " and a float32 filter ", f_in.sizes(), " on one device are needed");
  TORCH_CHECK_VALUE(up.size() == 2 && down.size() == 2 && padding.size() == 4 &&
                        std::min({up[0], up[1], down[0], down[1]}) >= 1,
                    "two factors of at least 1 and four paddings are needed");
  const c10::cuda::CUDAGuard guard(x_in.device());
  const bool channels_last = is_channels_last(x_in);
  const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  const Tensor x = x_in.contiguous(format), f = f_in.contiguous();

  Upfirdn2d p{};
  p.batch = x.size(0), p.channels = x.size(1), p.in_height = x.size(2), p.in_width = x.size(3);
  p.filter_height = to_int32(f.size(0)), p.filter_width = to_int32(f.size(1));
  p.up_x = to_int32(up[0]), p.up_y = to_int32(up[1]), p.down_x = to_int32(down[0]), p.down_y = to_int32(down[1]);
  p.left = to_int32(padding[0]), p.top = to_int32(padding[2]);
  const int64_t height = p.in_height * p.up_y + padding[2] + padding[3] - p.filter_height;
  const int64_t width = p.in_width * p.up_x + padding[0] + padding[1] - p.filter_width;
  TORCH_CHECK_VALUE(height >= 0 && width >= 0, "padding ", padding, " leaves less of the image than the filter needs");
  p.out_height = height / p.down_y + 1, p.out_width = width / p.down_x + 1;
  Tensor y = at::empty({p.batch, p.channels, p.out_height, p.out_width}, x.options().memory_format(format));
  if (y.numel() == 0) return y;
  p.x = x.const_data_ptr();
  p.f = f.const_data_ptr<float>();
  p.y = y.mutable_data_ptr();
  p.flip_filter = flip_filter;
  p.channels_last = channels_last;
  p.gain = static_cast<float>(gain);
  const bool vectors = channels_last && vectors_fit(x, p.channels, {p.x, p.y});
  launch_upfirdn2d(p, type, vectors, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_CHECK(cudaGetLastError());
  return y;
}

Tensor synthesis_tail(const Tensor& x_in, const Tensor& coefficients_in, const optional<Tensor>& noise_in,
                      const Tensor& b_in, c10::string_view act, double alpha, double gain, optional<double> clamp) {
  const int activation = find_activation(act);
  const Type type = type_of(x_in);
  TORCH_CHECK_VALUE(x_in.dim() == 4, "x ", x_in.sizes(), " must have four dimensions");
  const int64_t batch = x_in.size(0), channels = x_in.size(1), pixels = x_in.size(2) * x_in.size(3);
  TORCH_CHECK_VALUE(coefficients_in.sizes() == at::IntArrayRef({batch, channels}) &&
                        b_in.sizes() == at::IntArrayRef({channels}) && coefficients_in.device() == x_in.device() &&
                        b_in.device() == x_in.device(),
                    "coefficients ", coefficients_in.sizes(), " and b ", b_in.sizes(), " do not fit x ", x_in.sizes());
  const c10::cuda::CUDAGuard guard(x_in.device());
  const bool channels_last = is_channels_last(x_in);
  const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  const Tensor x = x_in.contiguous(format), coefficients = coefficients_in.to(at::kFloat).contiguous(),
               b = b_in.to(at::kFloat).contiguous();
  Tensor y = at::empty(x.sizes(), x.options().memory_format(format)), noise;

  SynthesisTail p{};
  if (noise_in) {
    const at::IntArrayRef shape = noise_in->sizes();
    p.noise_per_sample = shape.size() == 4;
    TORCH_CHECK_VALUE((shape == at::IntArrayRef({batch, 1, x.size(2), x.size(3)}) ||
                       shape == at::IntArrayRef({x.size(2), x.size(3)})) &&
                          noise_in->device() == x.device(),
                      "noise ", shape, " does not fit x ", x.sizes());
    noise = noise_in->to(at::kFloat).contiguous();
  }
  if (y.numel() == 0) return y;
  p.batch = batch, p.channels = channels, p.pixels = pixels;
  p.x = x.const_data_ptr();
  p.coefficients = coefficients.const_data_ptr<float>();
  p.noise = noise.defined() ? noise.const_data_ptr<float>() : nullptr;
  p.b = b.const_data_ptr<float>();
  p.y = y.mutable_data_ptr();
  p.channels_last = channels_last;
  p.alpha = static_cast<float>(alpha);
  p.gain = static_cast<float>(gain);
  p.limit = limit_of(clamp);
  const bool vectors = vectors_fit(x, channels_last ? channels : pixels, {p.x, p.coefficients, p.noise, p.b, p.y});
  launch_synthesis_tail(p, activation, type, vectors, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_CHECK(cudaGetLastError());
  return y;
}

bool kernels_fit_device(int64_t device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  return kernels_fit();
}

}  // namespace
}  // namespace stylegan2_ada

TORCH_LIBRARY_FRAGMENT(stylegan2_ada, m) {
  m.def("kernels_fit(int device) -> bool", &stylegan2_ada::kernels_fit_device);
  m.def("compiled_for() -> str", [] { return std::string(STYLEGAN2_ADA_ARCHITECTURES); });
}

TORCH_LIBRARY_IMPL(stylegan2_ada, CUDA, m) {
  m.impl("bias_act", &stylegan2_ada::bias_act);
  m.impl("bias_act_grad", &stylegan2_ada::bias_act_grad);
  m.impl("upfirdn2d", &stylegan2_ada::upfirdn2d);
  m.impl("synthesis_tail", &stylegan2_ada::synthesis_tail);
}

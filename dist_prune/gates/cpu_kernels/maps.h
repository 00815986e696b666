// Operations on channels_last maps on CPUs for which torch needs several passes, or copies: the mean over pixels, the
// sum of maps and a value per sample and channel, maps times such a value, and relu(shortcut + gate * branch), with
// their backwards. ops.py has the plain expressions. Operations of every gated block are autograd functions here: in
// Python these cost more than they compute.
//
// Maps are (B, C, H, W), channels_last, fp32 or bf16, all of one dtype; gates and gradients of means are fp32, as is all
// arithmetic.
#pragma once
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

using bf16 = uint16_t;  // the bits: loops over at::BFloat16 do not become vector loops

float load(float x) { return x; }
float load(bf16 x) { return c10::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

template <typename T>
T store(float x) {
  if constexpr (std::is_same_v<T, float>) return x;
  const uint32_t bits = c10::bit_cast<uint32_t>(x), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return x == x ? static_cast<T>(rounded) : T(0x7fc0);  // to nearest, ties to even; NaN stays NaN
}

int64_t sample_size(const at::Tensor& map) { return map.numel() / map.size(0); }

// The first element of a sample, of a map (B, C, H, W) or values (B, C).
template <typename T>
T* sample(const at::Tensor& map, int64_t n) {
  return static_cast<T*>(map.data_ptr()) + n * sample_size(map);
}

// Calls pass(n, zero) for each sample of a map, on all threads; zero is of the type of its elements.
template <typename Pass>
void for_samples(const at::Tensor& map, const Pass& pass) {
  at::parallel_for(0, map.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) map.scalar_type() == at::kBFloat16 ? pass(n, bf16()) : pass(n, float());
  });
}

// Calls step(i, i % width) for all i below size, as vector loops over width.
template <typename Step>
void in_rows(int64_t width, int64_t size, const Step& step) {
  const int64_t whole = size / width * width;
  for (int64_t row = 0; row < whole; row += width) {
    for (int64_t i = 0; i < width; ++i) step(row + i, i);
  }
  for (int64_t i = whole; i < size; ++i) step(i, i - whole);
}

// Few channels: several pixels side by side make a row worth a vector loop.
int64_t row_width(int64_t channels) {
  constexpr int64_t kRow = 128;
  return channels < kRow ? kRow / channels * channels : channels;
}

}  // namespace

at::Tensor pixel_mean(const at::Tensor& map) {
  const int64_t channels = map.size(1), width = row_width(channels);
  const float pixels = static_cast<float>(map.size(2) * map.size(3));
  const at::Tensor mean = at::zeros({map.size(0), channels}, map.options().dtype(at::kFloat));
  for_samples(map, [&](int64_t n, auto zero) {
    const auto* x = sample<decltype(zero)>(map, n);
    std::vector<float> row(width);
    float *partial = row.data(), *sum = sample<float>(mean, n);
    in_rows(width, sample_size(map), [=](int64_t i, int64_t lane) { partial[lane] += load(x[i]); });
    for (int64_t i = 0; i < width; i += channels) {
      for (int64_t c = 0; c < channels; ++c) sum[c] += partial[i + c];
    }
    for (int64_t c = 0; c < channels; ++c) sum[c] /= pixels;
  });
  return mean;
}

// gate: (B, C). gate * map.
at::Tensor scale_forward(const at::Tensor& map, const at::Tensor& gate) {
  TORCH_CHECK(gate.is_contiguous(), "gate must be contiguous");
  const at::Tensor out = at::empty_like(map);
  for_samples(map, [&](int64_t n, auto zero) {
    using T = decltype(zero);
    const T* x = sample<T>(map, n);
    const float* open = sample<float>(gate, n);
    T* z = sample<T>(out, n);
    in_rows(map.size(1), sample_size(map), [=](int64_t i, int64_t c) { z[i] = store<T>(load(x[i]) * open[c]); });
  });
  return out;
}

// Gradients of map and gate (B, C); that of the map is the given one if all gates are open.
std::tuple<at::Tensor, at::Tensor> scale_backward(const at::Tensor& grad, const at::Tensor& map,
                                                  const at::Tensor& gate, bool all_open) {
  TORCH_CHECK(gate.is_contiguous(), "gate must be contiguous");
  const at::Tensor grad_gate = at::zeros_like(gate), grad_map = all_open ? grad : at::empty_like(grad);
  const int64_t channels = map.size(1), size = sample_size(map);
  for_samples(map, [&](int64_t n, auto zero) {
    using T = decltype(zero);
    const T *g = sample<T>(grad, n), *x = sample<T>(map, n);
    const float* open = sample<float>(gate, n);
    float* sum = sample<float>(grad_gate, n);
    T* z = sample<T>(grad_map, n);
    // Pixel by pixel, so that what the second loop reads is still in the cache.
    for (int64_t p = 0; p < size; p += channels) {
      for (int64_t i = p; i < p + channels; ++i) sum[i - p] += load(g[i]) * load(x[i]);
      for (int64_t i = p; i < p + channels && !all_open; ++i) z[i] = store<T>(load(g[i]) * open[i - p]);
    }
  });
  return {grad_map, grad_gate};
}

namespace {

// a + b + mean_grad / pixels; b may be undefined.
at::Tensor add_with_mean(const at::Tensor& a, const at::Tensor& b, const at::Tensor& mean_grad) {
  const int64_t channels = a.size(1), size = sample_size(a), width = row_width(channels);
  const float pixels = static_cast<float>(a.size(2) * a.size(3));
  const at::Tensor out = at::empty_like(a);
  for_samples(a, [&](int64_t n, auto zero) {
    using T = decltype(zero);
    const float* grad = sample<float>(mean_grad, n);
    std::vector<float> row(width);
    for (int64_t i = 0; i < width; ++i) row[i] = grad[i % channels] / pixels;
    const float* share = row.data();
    const T *x = sample<T>(a, n), *y = b.defined() ? sample<T>(b, n) : nullptr;
    T* z = sample<T>(out, n);
    if (y == nullptr) {
      in_rows(width, size, [=](int64_t i, int64_t lane) { z[i] = store<T>(load(x[i]) + share[lane]); });
    } else {
      in_rows(width, size, [=](int64_t i, int64_t lane) { z[i] = store<T>(load(x[i]) + load(y[i]) + share[lane]); });
    }
  });
  return out;
}

// Gradients come in any layout; undefined ones stay so.
at::Tensor as_map(const at::Tensor& grad, at::ScalarType dtype) {
  return grad.defined() ? grad.to(dtype).contiguous(at::MemoryFormat::ChannelsLast) : grad;
}

void refuse_second_derivatives() {
  TORCH_CHECK(!at::GradMode::is_enabled(), "gates are once_differentiable: second derivatives are not known");
}

// (map, map, mean over pixels); backward sums all three gradients, of which each may be undefined, in one pass.
struct FanOut : torch::autograd::Function<FanOut> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& map) {
    ctx->set_materialize_grads(false);  // often only one of the three is used
    ctx->saved_data["shape"] = map.sizes().vec();
    ctx->saved_data["dtype"] = map.scalar_type();
    return {map.view_as(map), map.view_as(map), pixel_mean(map)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    refuse_second_derivatives();
    const at::ScalarType dtype = ctx->saved_data["dtype"].toScalarType();
    at::Tensor first = as_map(grads[0], dtype), second = as_map(grads[1], dtype);
    if (!first.defined()) std::swap(first, second);
    if (!grads[2].defined()) return {second.defined() ? first + second : first};
    if (first.defined()) return {add_with_mean(first, second, grads[2].to(at::kFloat).contiguous())};
    const std::vector<int64_t> shape = ctx->saved_data["shape"].toIntVector();
    const at::Tensor share = (grads[2] / (shape[2] * shape[3])).to(dtype);
    return {share.view({shape[0], shape[1], 1, 1}).expand(shape)};
  }
};

// shortcut + gate * branch, and a ReLU where relu is true; gate: (B, 1).
struct AddGated : torch::autograd::Function<AddGated> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& shortcut, const at::Tensor& gate,
                            const at::Tensor& branch, bool relu) {
    const float floor = relu ? 0.0f : -std::numeric_limits<float>::infinity();
    const at::Tensor factor = gate.to(at::kFloat).contiguous(), out = at::empty_like(shortcut);
    for_samples(shortcut, [&](int64_t n, auto zero) {
      using T = decltype(zero);
      const T *x = sample<T>(shortcut, n), *f = sample<T>(branch, n);
      T* z = sample<T>(out, n);
      const float open = *sample<float>(factor, n);
      for (int64_t i = 0, size = sample_size(out); i < size; ++i) {
        const float sum = load(x[i]) + open * load(f[i]);
        z[i] = store<T>(sum < floor ? floor : sum);  // NaN passes
      }
    });
    ctx->saved_data["relu"] = relu;
    ctx->saved_data["dtype"] = gate.scalar_type();
    ctx->save_for_backward({factor, branch, relu ? out : at::Tensor()});
    return out;
  }

  // The gradients of shortcut and branch are one tensor if all gates are open.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    refuse_second_derivatives();
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &gate = saved[0], &branch = saved[1], &out = saved[2];
    const at::Tensor grad = as_map(grads[0], branch.scalar_type()), grad_gate = at::empty_like(gate);
    const bool relu = ctx->saved_data["relu"].toBool();
    const float* opened = gate.data_ptr<float>();
    const bool all_open = std::all_of(opened, opened + gate.numel(), [](float g) { return g == 1.0f; });
    const at::Tensor grad_sum = relu ? at::empty_like(grad) : grad;
    const at::Tensor grad_branch = all_open ? grad_sum : at::empty_like(grad);
    for_samples(grad, [&](int64_t n, auto zero) {
      using T = decltype(zero);
      const T *g = sample<T>(grad, n), *f = sample<T>(branch, n), *y = relu ? sample<T>(out, n) : nullptr;
      T *of_sum = sample<T>(grad_sum, n), *of_branch = sample<T>(grad_branch, n);
      const float open = *sample<float>(gate, n);
      constexpr int64_t kLanes = 32;  // partial sums, so that the additions run side by side
      float sums[kLanes] = {};
      // Known when compiled, both choices leave a vector loop.
      const auto pass = [&](auto has_relu, auto is_open) {
        in_rows(kLanes, sample_size(grad), [&, g, f, y, of_sum, of_branch, open](int64_t i, int64_t lane) {
          const T passed = has_relu && load(y[i]) <= 0.0f ? T(0) : g[i];
          if (has_relu) of_sum[i] = passed;
          sums[lane] += load(passed) * load(f[i]);
          if (!is_open) of_branch[i] = store<T>(load(passed) * open);
        });
      };
      const std::true_type yes;
      const std::false_type no;
      relu ? (all_open ? pass(yes, yes) : pass(yes, no)) : (all_open ? pass(no, yes) : pass(no, no));
      *sample<float>(grad_gate, n) = std::accumulate(sums, sums + kLanes, 0.0f);
    });
    return {grad_sum, grad_gate.to(ctx->saved_data["dtype"].toScalarType()), grad_branch, at::Tensor()};
  }
};

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> fan_out(const at::Tensor& map) {
  const variable_list out = FanOut::apply(map);
  return {out[0], out[1], out[2]};
}

at::Tensor add_gated(const at::Tensor& shortcut, const at::Tensor& gate, const at::Tensor& branch, bool relu) {
  return AddGated::apply(shortcut, gate, branch, relu);
}

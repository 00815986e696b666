// Passes over channels_last maps on CPUs that torch needs several for, or copies: the mean over
// pixels, the sum of maps and a value per sample and channel, maps times such a value, and
// relu(kept + gate * branch), with their backwards.
// All arithmetic is fp32. Compiled on request (kernels.py); ops.py has the plain expressions.
// What every gated block needs knows its own gradient here: a Function in Python costs more than it computes.
#include <torch/extension.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

namespace {

struct Float32 {
  using Storage = float;
  static float load(float x) { return x; }
  static float store(float x) { return x; }
};

struct BFloat16 {
  using Storage = uint16_t;
  static float load(uint16_t x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  static uint16_t store(float x) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return x == x ? static_cast<uint16_t>(rounded) : 0x7fc0;
  }
};

struct Shape {
  int64_t batch, pixels, channels;
  explicit Shape(const at::Tensor& map) : batch(map.size(0)), pixels(map.size(2) * map.size(3)), channels(map.size(1)) {}
  int64_t sample() const { return pixels * channels; }
};

// Few channels: several pixels side by side make a row worth a vector loop.
int64_t row_width(Shape shape) {
  constexpr int64_t kRow = 128;
  return shape.channels < kRow ? kRow / shape.channels * shape.channels : shape.channels;
}

template <typename Format>
void mean_rows(const void* map, float* mean, Shape shape) {
  using T = typename Format::Storage;
  const int64_t width = row_width(shape);
  at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> row(width);
    for (int64_t n = begin; n < end; ++n) {
      const T* x = static_cast<const T*>(map) + n * shape.sample();
      std::fill(row.begin(), row.end(), 0.0f);
      float* partial = row.data();
      const int64_t whole = shape.sample() / width * width;
      for (int64_t at = 0; at < whole; at += width) {
        for (int64_t i = 0; i < width; ++i) partial[i] += Format::load(x[at + i]);
      }
      for (int64_t i = whole; i < shape.sample(); ++i) partial[i - whole] += Format::load(x[i]);
      float* sum = mean + n * shape.channels;
      for (int64_t i = 0; i < width; ++i) sum[i % shape.channels] += partial[i];
      for (int64_t c = 0; c < shape.channels; ++c) sum[c] /= static_cast<float>(shape.pixels);
    }
  });
}

template <typename Format, bool kTwo>
void add_rows(const void* a, const void* b, const float* share, void* out, Shape shape) {
  using T = typename Format::Storage;
  const int64_t width = row_width(shape);
  at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> row(width);
    for (int64_t n = begin; n < end; ++n) {
      const T* x = static_cast<const T*>(a) + n * shape.sample();
      const T* y = kTwo ? static_cast<const T*>(b) + n * shape.sample() : nullptr;
      T* z = static_cast<T*>(out) + n * shape.sample();
      for (int64_t i = 0; i < width; ++i) row[i] = share[n * shape.channels + i % shape.channels];
      const float* add = row.data();
      const auto at = [&](int64_t i, int64_t lane) {
        z[i] = Format::store(Format::load(x[i]) + (kTwo ? Format::load(y[i]) : 0.0f) + add[lane]);
      };
      const int64_t whole = shape.sample() / width * width;
      for (int64_t start = 0; start < whole; start += width) {
        for (int64_t i = 0; i < width; ++i) at(start + i, i);
      }
      for (int64_t i = whole; i < shape.sample(); ++i) at(i, i - whole);
    }
  });
}

template <typename Format>
void gated_forward_rows(const void* kept, const float* gate, const void* branch, void* out, bool relu, Shape shape) {
  using T = typename Format::Storage;
  at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T* k = static_cast<const T*>(kept) + n * shape.sample();
      const T* f = static_cast<const T*>(branch) + n * shape.sample();
      T* z = static_cast<T*>(out) + n * shape.sample();
      const float open = gate[n], floor = relu ? 0.0f : -std::numeric_limits<float>::infinity();
      for (int64_t i = 0; i < shape.sample(); ++i) {
        const float sum = Format::load(k[i]) + open * Format::load(f[i]);
        z[i] = Format::store(sum < floor ? floor : sum);  // NaN passes
      }
    }
  });
}

// One sample of gated_backward_rows, in one pass; returns the gradient of its gate. kRelu: grad is cut where out is 0.
template <typename Format, bool kRelu, bool kAllOpen, typename T = typename Format::Storage>
float gated_backward_row(const T* grad, const T* out, const T* branch, float open, T* grad_sum, T* grad_branch,
                         int64_t size) {
  constexpr int64_t kLanes = 32;  // partial sums, so that the additions run side by side
  float sums[kLanes] = {};
  const auto at = [&](int64_t i, int64_t lane) {
    const T passed = kRelu && Format::load(out[i]) <= 0.0f ? T(0) : grad[i];
    if (kRelu) grad_sum[i] = passed;
    sums[lane] += Format::load(passed) * Format::load(branch[i]);
    if (!kAllOpen) grad_branch[i] = Format::store(Format::load(passed) * open);
  };
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) at(i + lane, lane);
  }
  for (int64_t i = whole; i < size; ++i) at(i, i - whole);
  return std::accumulate(sums, sums + kLanes, 0.0f);
}

// grad_sum: gradient of kept + gate * branch, if out, the result after ReLU, cuts it (else both are null).
// grad_branch: null if all gates are open, where it is grad_sum.
template <typename Format>
void gated_backward_rows(const void* grad, const void* out, const void* branch, const float* gate, void* grad_sum,
                         float* grad_gate, void* grad_branch, Shape shape) {
  using T = typename Format::Storage;
  const bool relu = out != nullptr, all_open = grad_branch == nullptr;
  const auto row = relu ? (all_open ? gated_backward_row<Format, true, true> : gated_backward_row<Format, true, false>)
                        : (all_open ? gated_backward_row<Format, false, true> : gated_backward_row<Format, false, false>);
  at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t start = n * shape.sample();
      grad_gate[n] = row(static_cast<const T*>(grad) + start, relu ? static_cast<const T*>(out) + start : nullptr,
                         static_cast<const T*>(branch) + start, gate[n],
                         relu ? static_cast<T*>(grad_sum) + start : nullptr,
                         all_open ? nullptr : static_cast<T*>(grad_branch) + start, shape.sample());
    }
  });
}

// gate has a value per sample and channel.
template <typename Format>
void scale_rows(const void* map, const float* gate, void* out, Shape shape) {
  using T = typename Format::Storage;
  at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* open = gate + n * shape.channels;
      for (int64_t p = 0; p < shape.pixels; ++p) {
        const int64_t row = (n * shape.pixels + p) * shape.channels;
        const T* x = static_cast<const T*>(map) + row;
        T* z = static_cast<T*>(out) + row;
        for (int64_t c = 0; c < shape.channels; ++c) z[c] = Format::store(Format::load(x[c]) * open[c]);
      }
    }
  });
}

template <typename Format>
void scale_backward_rows(const void* grad, const void* map, const float* gate, void* grad_map, float* grad_gate,
                         Shape shape) {
  using T = typename Format::Storage;
  at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* open = gate + n * shape.channels;
      float* sum = grad_gate + n * shape.channels;
      for (int64_t p = 0; p < shape.pixels; ++p) {
        const int64_t row = (n * shape.pixels + p) * shape.channels;
        const T* g = static_cast<const T*>(grad) + row;
        const T* x = static_cast<const T*>(map) + row;
        for (int64_t c = 0; c < shape.channels; ++c) sum[c] += Format::load(g[c]) * Format::load(x[c]);
        if (grad_map == nullptr) continue;
        T* z = static_cast<T*>(grad_map) + row;
        for (int64_t c = 0; c < shape.channels; ++c) z[c] = Format::store(Format::load(g[c]) * open[c]);
      }
    }
  });
}

bool is_bf16(const at::Tensor& map) { return map.scalar_type() == at::kBFloat16; }

}  // namespace

// Maps are (B, C, H, W), channels_last, fp32 or bf16, all of one dtype; share and gates are fp32.

at::Tensor pixel_mean(const at::Tensor& map) {
  at::Tensor out = at::zeros({map.size(0), map.size(1)}, map.options().dtype(at::kFloat));
  (is_bf16(map) ? mean_rows<BFloat16> : mean_rows<Float32>)(map.data_ptr(), out.data_ptr<float>(), Shape(map));
  return out;
}

// b may be undefined.
at::Tensor add_with_share(const at::Tensor& a, const at::Tensor& b, const at::Tensor& share) {
  at::Tensor out = at::empty_like(a);
  const auto add = b.defined() ? (is_bf16(a) ? add_rows<BFloat16, true> : add_rows<Float32, true>)
                               : (is_bf16(a) ? add_rows<BFloat16, false> : add_rows<Float32, false>);
  add(a.data_ptr(), b.defined() ? b.data_ptr() : nullptr, share.data_ptr<float>(), out.data_ptr(), Shape(a));
  return out;
}

// gate: (B, C). gate * map.
at::Tensor scale_forward(const at::Tensor& map, const at::Tensor& gate) {
  TORCH_CHECK(gate.is_contiguous(), "gate must be contiguous");
  at::Tensor out = at::empty_like(map);
  (is_bf16(map) ? scale_rows<BFloat16> : scale_rows<Float32>)(map.data_ptr(), gate.data_ptr<float>(), out.data_ptr(),
                                                              Shape(map));
  return out;
}

// Gradients of map and gate (B, C); that of the map is the given one if all gates are open.
std::tuple<at::Tensor, at::Tensor> scale_backward(const at::Tensor& grad, const at::Tensor& map,
                                                  const at::Tensor& gate, bool all_open) {
  TORCH_CHECK(gate.is_contiguous(), "gate must be contiguous");
  at::Tensor grad_gate = at::zeros_like(gate);
  at::Tensor grad_map = all_open ? grad : at::empty_like(grad);
  (is_bf16(grad) ? scale_backward_rows<BFloat16> : scale_backward_rows<Float32>)(
      grad.data_ptr(), map.data_ptr(), gate.data_ptr<float>(), all_open ? nullptr : grad_map.data_ptr(),
      grad_gate.data_ptr<float>(), Shape(grad));
  return {grad_map, grad_gate};
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

// Gradients come in any layout; undefined ones stay so.
at::Tensor as_map(const at::Tensor& grad, at::ScalarType dtype) {
  return grad.defined() ? grad.to(dtype).contiguous(at::MemoryFormat::ChannelsLast) : grad;
}

void refuse_second_derivatives() {
  TORCH_CHECK(!at::GradMode::is_enabled(), "gates are once_differentiable: second derivatives are not known");
}

// (map, map, mean over pixels), and what all three send back, added up in one pass.
struct FanOut : torch::autograd::Function<FanOut> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& map) {
    ctx->set_materialize_grads(false);  // often there is one user only
    ctx->saved_data["shape"] = map.sizes().vec();
    ctx->saved_data["dtype"] = map.scalar_type();
    return {map.view_as(map), map.view_as(map), pixel_mean(map)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    refuse_second_derivatives();
    const std::vector<int64_t> shape = ctx->saved_data["shape"].toIntVector();
    const at::ScalarType dtype = ctx->saved_data["dtype"].toScalarType();
    at::Tensor first = as_map(grads[0], dtype), second = as_map(grads[1], dtype);
    if (!first.defined()) std::swap(first, second);
    if (!grads[2].defined()) return {second.defined() ? first + second : first};
    const at::Tensor share = (grads[2].to(at::kFloat) / (shape[2] * shape[3])).contiguous();
    if (!first.defined()) return {share.to(dtype).view({shape[0], shape[1], 1, 1}).expand(shape)};
    return {add_with_share(first, second, share)};
  }
};

// kept + gate * branch, through ReLU if asked for; gate: (B, 1).
struct AddGated : torch::autograd::Function<AddGated> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& kept, const at::Tensor& gate,
                            const at::Tensor& branch, bool relu) {
    const at::Tensor factor = gate.to(at::kFloat).contiguous();
    at::Tensor out = at::empty_like(kept);
    (is_bf16(kept) ? gated_forward_rows<BFloat16> : gated_forward_rows<Float32>)(
        kept.data_ptr(), factor.data_ptr<float>(), branch.data_ptr(), out.data_ptr(), relu, Shape(kept));
    ctx->saved_data["relu"] = relu;
    ctx->saved_data["dtype"] = gate.scalar_type();
    ctx->save_for_backward({factor, branch, relu ? out : at::Tensor()});
    return out;
  }

  // The gradients of kept and branch are one tensor if all gates are open.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    refuse_second_derivatives();
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &gate = saved[0], &branch = saved[1], &out = saved[2];
    const at::Tensor grad = as_map(grads[0], branch.scalar_type());
    const float* opened = gate.data_ptr<float>();
    const bool relu = ctx->saved_data["relu"].toBool();
    const bool all_open = std::all_of(opened, opened + gate.numel(), [](float g) { return g == 1.0f; });
    at::Tensor grad_sum = relu ? at::empty_like(grad) : grad;
    at::Tensor grad_gate = at::empty_like(gate);
    at::Tensor grad_branch = all_open ? grad_sum : at::empty_like(grad);
    (is_bf16(grad) ? gated_backward_rows<BFloat16> : gated_backward_rows<Float32>)(
        grad.data_ptr(), relu ? out.data_ptr() : nullptr, branch.data_ptr(), opened,
        relu ? grad_sum.data_ptr() : nullptr, grad_gate.data_ptr<float>(), all_open ? nullptr : grad_branch.data_ptr(),
        Shape(grad));
    return {grad_sum, grad_gate.to(ctx->saved_data["dtype"].toScalarType()), grad_branch, at::Tensor()};
  }
};

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> fan_out(const at::Tensor& map) {
  const variable_list out = FanOut::apply(map);
  return {out[0], out[1], out[2]};
}

at::Tensor add_gated(const at::Tensor& kept, const at::Tensor& gate, const at::Tensor& branch, bool relu) {
  return AddGated::apply(kept, gate, branch, relu);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("pixel_mean", &pixel_mean);
  module.def("fan_out", &fan_out);
  module.def("add_gated", &add_gated);
  module.def("scale_forward", &scale_forward);
  module.def("scale_backward", &scale_backward);
}

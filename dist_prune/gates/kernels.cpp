// Passes over channels_last maps on CPUs that torch needs several for, or copies: the mean over
// pixels, the sum of maps and a value per sample and channel, maps times such a value, and
// relu(kept + gate * branch), with their backwards.
// All arithmetic is fp32. Compiled on request (kernels.py); ops.py has the plain expressions.
#include <torch/extension.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
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

template <typename Format>
void mean_rows(const void* map, float* mean, Shape shape) {
  using T = typename Format::Storage;
  constexpr int64_t kRow = 128;  // few channels: several pixels side by side make a row worth a vector loop
  const int64_t abreast = shape.channels < kRow ? kRow / shape.channels : 1, width = abreast * shape.channels;
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

template <typename Format>
void add_rows(const void* a, const void* b, const float* share, void* out, Shape shape) {
  using T = typename Format::Storage;
  at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* add = share + n * shape.channels;
      for (int64_t p = 0; p < shape.pixels; ++p) {
        const int64_t row = (n * shape.pixels + p) * shape.channels;
        const T* x = static_cast<const T*>(a) + row;
        T* z = static_cast<T*>(out) + row;
        if (b == nullptr) {
          for (int64_t c = 0; c < shape.channels; ++c) z[c] = Format::store(Format::load(x[c]) + add[c]);
          continue;
        }
        const T* y = static_cast<const T*>(b) + row;
        for (int64_t c = 0; c < shape.channels; ++c) {
          z[c] = Format::store(Format::load(x[c]) + Format::load(y[c]) + add[c]);
        }
      }
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

at::Tensor mean(const at::Tensor& map) {
  at::Tensor out = at::zeros({map.size(0), map.size(1)}, map.options().dtype(at::kFloat));
  (is_bf16(map) ? mean_rows<BFloat16> : mean_rows<Float32>)(map.data_ptr(), out.data_ptr<float>(), Shape(map));
  return out;
}

// b may be left out.
at::Tensor add_with_share(const at::Tensor& a, const std::optional<at::Tensor>& b, const at::Tensor& share) {
  TORCH_CHECK(share.is_contiguous(), "share must be contiguous");
  at::Tensor out = at::empty_like(a);
  (is_bf16(a) ? add_rows<BFloat16> : add_rows<Float32>)(a.data_ptr(), b ? b->data_ptr() : nullptr,
                                                        share.data_ptr<float>(), out.data_ptr(), Shape(a));
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

// gate: (B, 1). kept + gate * branch, through ReLU if asked for.
at::Tensor gated_forward(const at::Tensor& kept, const at::Tensor& gate, const at::Tensor& branch, bool relu) {
  TORCH_CHECK(gate.is_contiguous(), "gate must be contiguous");
  at::Tensor out = at::empty_like(kept);
  (is_bf16(kept) ? gated_forward_rows<BFloat16> : gated_forward_rows<Float32>)(
      kept.data_ptr(), gate.data_ptr<float>(), branch.data_ptr(), out.data_ptr(), relu, Shape(kept));
  return out;
}

// Gradients of kept, gate (B, 1) and branch; those of kept and branch are one tensor if all gates are open.
std::tuple<at::Tensor, at::Tensor, at::Tensor> gated_backward(const at::Tensor& grad, const at::Tensor& out,
                                                              const at::Tensor& branch, const at::Tensor& gate,
                                                              bool relu, bool all_open) {
  TORCH_CHECK(gate.is_contiguous(), "gate must be contiguous");
  at::Tensor grad_sum = relu ? at::empty_like(grad) : grad;
  at::Tensor grad_gate = at::zeros_like(gate);
  at::Tensor grad_branch = all_open ? grad_sum : at::empty_like(grad);
  (is_bf16(grad) ? gated_backward_rows<BFloat16> : gated_backward_rows<Float32>)(
      grad.data_ptr(), relu ? out.data_ptr() : nullptr, branch.data_ptr(), gate.data_ptr<float>(),
      relu ? grad_sum.data_ptr() : nullptr, grad_gate.data_ptr<float>(), all_open ? nullptr : grad_branch.data_ptr(),
      Shape(grad));
  return {grad_sum, grad_gate, grad_branch};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("mean", &mean);
  module.def("add_with_share", &add_with_share);
  module.def("scale_forward", &scale_forward);
  module.def("scale_backward", &scale_backward);
  module.def("gated_forward", &gated_forward);
  module.def("gated_backward", &gated_backward);
}

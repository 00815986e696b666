// Passes over the rows of channels_last maps in memory; all arithmetic is fp32. maps.h has them work on tensors.
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
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
      for (int64_t i = 0; i < width; i += shape.channels) {
        for (int64_t c = 0; c < shape.channels; ++c) sum[c] += partial[i + c];
      }
      for (int64_t c = 0; c < shape.channels; ++c) sum[c] /= static_cast<float>(shape.pixels);
    }
  });
}

// a + b + mean_grad / pixels, where kTwo; else without b.
template <typename Format, bool kTwo>
void add_rows(const void* a, const void* b, const float* mean_grad, void* out, Shape shape) {
  using T = typename Format::Storage;
  const float pixels = static_cast<float>(shape.pixels);
  const int64_t width = row_width(shape);
  at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> row(width);
    for (int64_t n = begin; n < end; ++n) {
      const T* x = static_cast<const T*>(a) + n * shape.sample();
      const T* y = kTwo ? static_cast<const T*>(b) + n * shape.sample() : nullptr;
      T* z = static_cast<T*>(out) + n * shape.sample();
      for (int64_t i = 0; i < width; i += shape.channels) {
        for (int64_t c = 0; c < shape.channels; ++c) row[i + c] = mean_grad[n * shape.channels + c] / pixels;
      }
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
void gated_forward_rows(const void* shortcut, const float* gate, const void* branch, void* out, bool relu,
                        Shape shape) {
  using T = typename Format::Storage;
  at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T* x = static_cast<const T*>(shortcut) + n * shape.sample();
      const T* f = static_cast<const T*>(branch) + n * shape.sample();
      T* z = static_cast<T*>(out) + n * shape.sample();
      const float open = gate[n], floor = relu ? 0.0f : -std::numeric_limits<float>::infinity();
      for (int64_t i = 0; i < shape.sample(); ++i) {
        const float sum = Format::load(x[i]) + open * Format::load(f[i]);
        z[i] = Format::store(sum < floor ? floor : sum);  // NaN passes
      }
    }
  });
}

// One sample of gated_backward_rows, in one pass; returns the gradient of its gate. kRelu: grad is 0 where out is 0.
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

// grad_sum: gradient of shortcut + gate * branch, if out, the result after ReLU, masks it (else both are null).
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

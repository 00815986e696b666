// Passes over channels_last maps in memory, T = float or bf16; all arithmetic is fp32. maps.h makes operations
// of them.
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

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

template <typename T>
T* data(const at::Tensor& map, int64_t start) {
  return static_cast<T*>(map.data_ptr()) + start;
}

struct Shape {
  int64_t batch, pixels, channels, sample;
  explicit Shape(const at::Tensor& map)
      : batch(map.size(0)), pixels(map.size(2) * map.size(3)), channels(map.size(1)), sample(pixels * channels) {}
};

// Calls pass(n, start) for each sample, on all threads; start is the place of the sample's first element.
template <typename Pass>
void for_samples(Shape shape, const Pass& pass) {
  at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) pass(n, n * shape.sample);
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
int64_t row_width(Shape shape) {
  constexpr int64_t kRow = 128;
  return shape.channels < kRow ? kRow / shape.channels * shape.channels : shape.channels;
}

// mean: (B, C), zeros.
template <typename T>
void mean_rows(const at::Tensor& map, const at::Tensor& mean) {
  const Shape shape(map);
  const int64_t width = row_width(shape);
  for_samples(shape, [&](int64_t n, int64_t start) {
    std::vector<float> row(width);
    const T* x = data<T>(map, start);
    float *partial = row.data(), *sum = mean.data_ptr<float>() + n * shape.channels;
    in_rows(width, shape.sample, [=](int64_t i, int64_t lane) { partial[lane] += load(x[i]); });
    for (int64_t i = 0; i < width; i += shape.channels) {
      for (int64_t c = 0; c < shape.channels; ++c) sum[c] += partial[i + c];
    }
    for (int64_t c = 0; c < shape.channels; ++c) sum[c] /= static_cast<float>(shape.pixels);
  });
}

// a + b + mean_grad / pixels, where kTwo; else without b.
template <typename T, bool kTwo>
void add_rows(const at::Tensor& a, const at::Tensor& b, const at::Tensor& mean_grad, const at::Tensor& out) {
  const Shape shape(a);
  const int64_t width = row_width(shape);
  for_samples(shape, [&](int64_t n, int64_t start) {
    std::vector<float> row(width);
    const float* grad = mean_grad.data_ptr<float>() + n * shape.channels;
    for (int64_t i = 0; i < width; ++i) row[i] = grad[i % shape.channels] / static_cast<float>(shape.pixels);
    const float* add = row.data();
    const T *x = data<T>(a, start), *y = kTwo ? data<T>(b, start) : nullptr;
    T* z = data<T>(out, start);
    in_rows(width, shape.sample, [=](int64_t i, int64_t lane) {
      z[i] = store<T>(load(x[i]) + (kTwo ? load(y[i]) : 0.0f) + add[lane]);
    });
  });
}

// gate: (B, 1).
template <typename T>
void gated_forward_rows(const at::Tensor& shortcut, const at::Tensor& gate, const at::Tensor& branch,
                        const at::Tensor& out, bool relu) {
  const float floor = relu ? 0.0f : -std::numeric_limits<float>::infinity();
  const Shape shape(shortcut);
  for_samples(shape, [&](int64_t n, int64_t start) {
    const T *x = data<T>(shortcut, start), *f = data<T>(branch, start);
    T* z = data<T>(out, start);
    const float open = gate.data_ptr<float>()[n];
    for (int64_t i = 0; i < shape.sample; ++i) {
      const float sum = load(x[i]) + open * load(f[i]);
      z[i] = store<T>(sum < floor ? floor : sum);  // NaN passes
    }
  });
}

// One sample of gated_backward_rows, in one pass; returns the gradient of its gate. kRelu: grad is 0 where out is 0.
template <typename T, bool kRelu, bool kAllOpen>
float gated_backward_row(const T* grad, const T* out, const T* branch, float open, T* grad_sum, T* grad_branch,
                         int64_t size) {
  constexpr int64_t kLanes = 32;  // partial sums, so that the additions run side by side
  float sums[kLanes] = {};
  in_rows(kLanes, size, [&](int64_t i, int64_t lane) {
    const T passed = kRelu && load(out[i]) <= 0.0f ? T(0) : grad[i];
    if (kRelu) grad_sum[i] = passed;
    sums[lane] += load(passed) * load(branch[i]);
    if (!kAllOpen) grad_branch[i] = store<T>(load(passed) * open);
  });
  return std::accumulate(sums, sums + kLanes, 0.0f);
}

// out: the result after a ReLU, which masks grad; undefined without one. grad_sum: of shortcut + gate * branch: grad
// itself without a ReLU. grad_branch: the same tensor if all gates are open.
template <typename T>
void gated_backward_rows(const at::Tensor& grad, const at::Tensor& out, const at::Tensor& branch,
                         const at::Tensor& gate, const at::Tensor& grad_sum, const at::Tensor& grad_gate,
                         const at::Tensor& grad_branch) {
  const bool relu = out.defined(), all_open = grad_branch.is_same(grad_sum);
  const auto row = relu ? (all_open ? gated_backward_row<T, true, true> : gated_backward_row<T, true, false>)
                        : (all_open ? gated_backward_row<T, false, true> : gated_backward_row<T, false, false>);
  const Shape shape(grad);
  for_samples(shape, [&](int64_t n, int64_t start) {
    grad_gate.data_ptr<float>()[n] =
        row(data<T>(grad, start), relu ? data<T>(out, start) : nullptr, data<T>(branch, start),
            gate.data_ptr<float>()[n], data<T>(grad_sum, start), data<T>(grad_branch, start), shape.sample);
  });
}

// gate: (B, C).
template <typename T>
void scale_rows(const at::Tensor& map, const at::Tensor& gate, const at::Tensor& out) {
  const Shape shape(map);
  for_samples(shape, [&](int64_t n, int64_t start) {
    const float* open = gate.data_ptr<float>() + n * shape.channels;
    const T* x = data<T>(map, start);
    T* z = data<T>(out, start);
    in_rows(shape.channels, shape.sample,
            [=](int64_t i, int64_t c) { z[i] = store<T>(load(x[i]) * open[c]); });
  });
}

// grad_map: of map, grad itself if all gates are open.
template <typename T>
void scale_backward_rows(const at::Tensor& grad, const at::Tensor& map, const at::Tensor& gate,
                         const at::Tensor& grad_map, const at::Tensor& grad_gate) {
  const Shape shape(grad);
  const bool all_open = grad_map.is_same(grad);
  for_samples(shape, [&](int64_t n, int64_t start) {
    const float* open = gate.data_ptr<float>() + n * shape.channels;
    float* sum = grad_gate.data_ptr<float>() + n * shape.channels;
    const T *g = data<T>(grad, start), *x = data<T>(map, start);
    T* z = data<T>(grad_map, start);
    // Pixel by pixel, so that what the second loop reads is still in the cache.
    for (int64_t p = 0; p < shape.sample; p += shape.channels) {
      const int64_t end = p + shape.channels;
      for (int64_t i = p; i < end; ++i) sum[i - p] += load(g[i]) * load(x[i]);
      for (int64_t i = p; i < end && !all_open; ++i) z[i] = store<T>(load(g[i]) * open[i - p]);
    }
  });
}

bool is_bf16(const at::Tensor& map) { return map.scalar_type() == at::kBFloat16; }

}  // namespace

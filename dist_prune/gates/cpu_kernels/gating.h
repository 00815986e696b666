// A gating module in training from features to decisions (modules.py: Linear, BatchNorm1d, ReLU, Linear,
// straight-through head, random drop), as one operation that knows its own gradient. The arithmetic is next to nothing:
// a dozen of torch's operations cost ten times as much, and every gated block has them.
#pragma once
#include <torch/extension.h>

#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "maps.h"

namespace {

// BatchNorm1d in training, and ReLU: normal (B, H), the norm's input, is replaced by its normalized values, and the
// running statistics follow (sums are of double precision). Returns relu(weight * normal + bias), (B, H), and
// 1 / deviation, (H,).
std::tuple<at::Tensor, at::Tensor> normalize(at::Tensor& normal, const at::Tensor& weight, const at::Tensor& bias,
                                             const at::Tensor& running_mean, const at::Tensor& running_var,
                                             double momentum, double eps) {
  const int64_t batch = normal.size(0), width = normal.size(1);
  const at::Tensor hidden = at::empty_like(normal), inverse = at::empty({width}, normal.options());
  float *x = normal.data_ptr<float>(), *y = hidden.data_ptr<float>(), *inv = inverse.data_ptr<float>();
  float *mean = running_mean.data_ptr<float>(), *var = running_var.data_ptr<float>();
  const float *w = weight.data_ptr<float>(), *b = bias.data_ptr<float>();
  std::vector<double> center(width), square(width);
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t j = 0, i = n * width; j < width; ++j, ++i) center[j] += x[i];
  }
  for (int64_t j = 0; j < width; ++j) center[j] /= static_cast<double>(batch);
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t j = 0, i = n * width; j < width; ++j, ++i) square[j] += (x[i] - center[j]) * (x[i] - center[j]);
  }
  for (int64_t j = 0; j < width; ++j) {
    inv[j] = static_cast<float>(1 / std::sqrt(square[j] / static_cast<double>(batch) + eps));
    mean[j] += static_cast<float>(momentum * (center[j] - mean[j]));
    var[j] += static_cast<float>(momentum * (square[j] / static_cast<double>(batch - 1) - var[j]));
  }
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t j = 0, i = n * width; j < width; ++j, ++i) {
      x[i] = (x[i] - static_cast<float>(center[j])) * inv[j];
      y[i] = w[j] * x[i] + b[j];
      y[i] = y[i] < 0 ? 0.0f : y[i];  // NaN passes
    }
  }
  return {hidden, inverse};
}

// The reverse: grad (B, H), of hidden, is replaced by that of what normalize() was given. Returns gradients (H,): of
// weight, of bias, and the sum over samples of the replaced ones.
std::tuple<at::Tensor, at::Tensor, at::Tensor> normalize_backward(at::Tensor& grad, const at::Tensor& hidden,
                                                                  const at::Tensor& normal, const at::Tensor& inverse,
                                                                  const at::Tensor& weight) {
  const int64_t batch = grad.size(0), width = grad.size(1);
  const at::Tensor of_weight = at::zeros({width}, grad.options()), of_bias = at::zeros({width}, grad.options());
  const at::Tensor of_input = at::zeros({width}, grad.options());
  float *g = grad.data_ptr<float>(), *total = of_input.data_ptr<float>();
  float *along = of_weight.data_ptr<float>(), *sum = of_bias.data_ptr<float>();
  const float *y = hidden.data_ptr<float>(), *x = normal.data_ptr<float>();
  const float *inv = inverse.data_ptr<float>(), *w = weight.data_ptr<float>();
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t j = 0, i = n * width; j < width; ++j, ++i) {
      g[i] = y[i] <= 0 ? 0.0f : g[i];  // NaN passes
      along[j] += g[i] * x[i];
      sum[j] += g[i];
    }
  }
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t j = 0, i = n * width; j < width; ++j, ++i) {
      g[i] = w[j] * inv[j] * (g[i] - (sum[j] + x[i] * along[j]) / static_cast<float>(batch));
      total[j] += g[i];
    }
  }
  return {of_weight, of_bias, of_input};
}

// Equations 4 and 5 of arXiv 2302.10798 for x = (logit - threshold) / window, logits (B, units), thresholds (units,):
// decisions, and what their gradient is multiplied with to be that of the logits.
std::tuple<at::Tensor, at::Tensor> straight_through(const at::Tensor& logits, const at::Tensor& threshold,
                                                    float window) {
  const at::Tensor decisions = at::empty_like(logits), passes = at::empty_like(logits);
  const int64_t batch = logits.size(0), units = logits.size(1);
  const float *logit = logits.data_ptr<float>(), *least = threshold.data_ptr<float>();
  float *open = decisions.data_ptr<float>(), *factor = passes.data_ptr<float>();
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t u = 0, i = n * units; u < units; ++u, ++i) {
      const float x = (logit[i] - least[u]) / window;
      open[i] = x > 0 ? 1.0f : 0.0f;
      factor[i] = std::abs(x) <= 1 ? 1 / window : 0.0f;
    }
  }
  return {decisions, passes};
}

// A draw from [0, 1], as noise.py makes it: SplitMix64 (Steele et al., OOPSLA 2014).
float uniform(uint64_t counter, uint64_t key) {
  uint64_t x = counter * 0x9E3779B97F4A7C15 + key;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  x ^= x >> 31;
  return static_cast<float>((static_cast<double>(x >> 11) + 0.5) * 0x1p-53);
}

// random_drop of noise.py: in a share of the samples, units are dropped at random, (B, units).
// Returns decisions without the dropped units, and 1 where a unit was dropped.
std::tuple<at::Tensor, at::Tensor> drop_units(const at::Tensor& decisions, float share, uint64_t key,
                                           uint64_t first_sample) {
  const at::Tensor applied = at::empty_like(decisions), dropped = at::empty_like(decisions);
  const int64_t batch = decisions.size(0), units = decisions.size(1);
  const float* open = decisions.data_ptr<float>();
  float *left = applied.data_ptr<float>(), *gone = dropped.data_ptr<float>();
  for (int64_t n = 0; n < batch; ++n) {
    const uint64_t counter = (first_sample + n) * (units + 2);
    const bool chosen = uniform(counter, key) < share;
    const float part = uniform(counter + 1, key);
    for (int64_t u = 0, i = n * units; u < units; ++u, ++i) {
      gone[i] = chosen && uniform(counter + 2 + u, key) < part ? 1.0f : 0.0f;
      left[i] = open[i] * (1 - gone[i]);
    }
  }
  return {applied, dropped};
}

// The loops above read memory as it lies.
void expect(const at::Tensor& given, const char* name, int64_t size, at::ScalarType dtype = at::kFloat) {
  TORCH_CHECK(given.scalar_type() == dtype && given.is_cpu() && given.is_contiguous() && given.numel() == size, name,
              " of a gating module: expected ", size, " contiguous elements of ", dtype, " on the CPU, found ",
              given.sizes(), " of ", given.scalar_type());
}

struct Decide : torch::autograd::Function<Decide> {
  // Decisions, logits, and with random drop the decisions that are applied.
  static variable_list forward(AutogradContext* ctx, const at::Tensor& features, const at::Tensor& first_weight,
                               const at::Tensor& first_bias, const at::Tensor& norm_weight, const at::Tensor& norm_bias,
                               const at::Tensor& last_weight, const at::Tensor& last_bias,
                               const at::Tensor& running_mean, const at::Tensor& running_var,
                               const at::Tensor& batches, const at::Tensor& threshold, const at::Tensor& ste_window,
                               const at::Tensor& logit_scale, double momentum, double eps, double random_drop,
                               int64_t key, int64_t first_sample) {
    ctx->set_materialize_grads(false);
    at::AutoDispatchBelowAutograd plain;
    const double scale = *logit_scale.data_ptr<float>();
    at::Tensor normal = at::addmm(first_bias, features, first_weight.t());
    const auto [hidden, inverse] = normalize(normal, norm_weight, norm_bias, running_mean, running_var, momentum, eps);
    *batches.data_ptr<int64_t>() += 1;
    const at::Tensor logits = at::addmm(last_bias, hidden, last_weight.t(), 1, scale);
    const auto [decisions, passes] = straight_through(logits, threshold, *ste_window.data_ptr<float>());
    variable_list out = {decisions, logits};
    at::Tensor dropped;
    if (random_drop > 0) {
      out.emplace_back();
      std::tie(out[2], dropped) = drop_units(decisions, static_cast<float>(random_drop), key, first_sample);
    }
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["backprop_to_input"] = features.requires_grad();
    ctx->save_for_backward(
        {first_weight, norm_weight, last_weight, features, normal, inverse, hidden, passes, dropped});
    ctx->mark_non_differentiable({logits});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    refuse_second_derivatives();
    const c10::impl::ExcludeDispatchKeyGuard without_autocast(c10::autocast_dispatch_keyset);
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &first_weight = saved[0], &norm_weight = saved[1], &last_weight = saved[2], &features = saved[3];
    const at::Tensor &normal = saved[4], &inverse = saved[5], &hidden = saved[6];
    const at::Tensor &passes = saved[7], &dropped = saved[8];
    at::Tensor decision_grad = grads[0];
    if (dropped.defined() && grads[2].defined()) {  // a dropped unit learns what bringing it back does
      const at::Tensor learned = grads[2] * dropped;
      decision_grad = decision_grad.defined() ? decision_grad + learned : learned;
    }
    variable_list back(18);
    if (!decision_grad.defined()) return back;
    const double scale = ctx->saved_data["scale"].toDouble();
    const at::Tensor logit_grad = decision_grad * passes;
    at::Tensor grad = logit_grad.mm(last_weight).mul_(scale);
    std::tie(back[3], back[4], back[2]) = normalize_backward(grad, hidden, normal, inverse, norm_weight);
    if (ctx->saved_data["backprop_to_input"].toBool()) back[0] = grad.mm(first_weight);
    back[1] = grad.t().mm(features);
    back[5] = logit_grad.t().mm(hidden).mul_(scale);
    back[6] = logit_grad.sum(0);
    return back;
  }
};

}  // namespace

// features: (B, F), fp32, B above 1 -> (B, units): decisions that are applied (with random drop), decisions, logits.
// The running statistics of the norm are updated in place.
std::tuple<at::Tensor, at::Tensor, at::Tensor> decide(
    const at::Tensor& features, const at::Tensor& first_weight, const at::Tensor& first_bias,
    const at::Tensor& norm_weight, const at::Tensor& norm_bias, const at::Tensor& last_weight,
    const at::Tensor& last_bias, const at::Tensor& running_mean, const at::Tensor& running_var,
    const at::Tensor& batches, const at::Tensor& threshold, const at::Tensor& ste_window, const at::Tensor& logit_scale,
    double momentum, double eps, double random_drop, int64_t key, int64_t first_sample) {
  const int64_t width = first_weight.size(0), units = last_weight.size(0);
  expect(first_bias, "bias of the first layer", width);
  expect(norm_weight, "weight of the norm", width);
  expect(norm_bias, "bias of the norm", width);
  expect(running_mean, "running mean", width);
  expect(running_var, "running variance", width);
  expect(batches, "count of batches", 1, at::kLong);
  expect(last_bias, "bias of the last layer", units);
  expect(threshold, "thresholds", units);
  expect(ste_window, "straight-through window", 1);
  expect(logit_scale, "logit scale", 1);
  const variable_list out = Decide::apply(features, first_weight, first_bias, norm_weight, norm_bias, last_weight,
                                          last_bias, running_mean, running_var, batches, threshold, ste_window,
                                          logit_scale, momentum, eps, random_drop, key, first_sample);
  return {out.size() > 2 ? out[2] : out[0], out[0], out[1]};
}

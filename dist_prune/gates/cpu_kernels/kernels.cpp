// The CPU kernels of gates, compiled on request (build.py): operations on maps (maps.h), and the gating module.
//
// A gating module in training from features to decisions (gate.py: Linear, BatchNorm1d, ReLU, Linear,
// straight-through head, random drop), as one operation that knows its own gradient. The arithmetic is next to nothing:
// calling a dozen of torch's operations from Python costs ten times as much, and every gated block has them.
// Not torch/extension.h, which takes half as long again to compile.
#include <ATen/ATen.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "maps.h"

namespace {

// A draw from [0, 1], as noise.py makes it: SplitMix64 (Steele et al., OOPSLA 2014).
float uniform(uint64_t counter, uint64_t key) {
  uint64_t x = counter * 0x9E3779B97F4A7C15 + key;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  x ^= x >> 31;
  return static_cast<float>((static_cast<double>(x >> 11) + 0.5) * 0x1p-53);
}

// Equations 4 and 5 of arXiv 2302.10798, then random_drop of noise.py: one pass over x (B, units), logits above their
// thresholds. Returns decisions; what their gradient is multiplied with to be that of the logits; and with random drop
// the decisions that are applied, and 1 where a unit is dropped.
variable_list decide_units(const at::Tensor& x, float window, float share, uint64_t key, uint64_t first_sample) {
  variable_list out(4);
  for (size_t i = 0; i < (share > 0 ? 4 : 2); ++i) out[i] = at::empty_like(x);
  const int64_t batch = x.size(0), units = x.size(1);
  const float* above = x.data_ptr<float>();
  float *open = out[0].data_ptr<float>(), *factor = out[1].data_ptr<float>();
  for (int64_t i = 0; i < batch * units; ++i) {
    open[i] = above[i] > 0 ? 1.0f : 0.0f;
    factor[i] = std::abs(above[i] / window) <= 1 ? 1 / window : 0.0f;
  }
  for (int64_t n = 0; n < batch && share > 0; ++n) {
    const uint64_t counter = (first_sample + n) * (units + 2);
    const bool chosen = uniform(counter, key) < share;
    const float part = uniform(counter + 1, key);
    for (int64_t u = 0, i = n * units; u < units; ++u, ++i) {
      const float drop = chosen && uniform(counter + 2 + u, key) < part ? 1.0f : 0.0f;
      out[2].data_ptr<float>()[i] = open[i] * (1 - drop);
      out[3].data_ptr<float>()[i] = drop;
    }
  }
  return out;
}

struct Decide : torch::autograd::Function<Decide> {
  // Decisions, logits, and with random drop the decisions that are applied.
  static variable_list forward(AutogradContext* ctx, at::TensorList tensors, double momentum, double eps,
                               double random_drop, int64_t key, int64_t first_sample) {
    const at::Tensor &features = tensors[0], &first_weight = tensors[1], &first_bias = tensors[2];
    const at::Tensor &norm_weight = tensors[3], &norm_bias = tensors[4];
    const at::Tensor &last_weight = tensors[5], &last_bias = tensors[6];
    const at::Tensor &running_mean = tensors[7], &running_var = tensors[8], &batches = tensors[9];
    const at::Tensor &threshold = tensors[10], &ste_window = tensors[11], &logit_scale = tensors[12];
    ctx->set_materialize_grads(false);
    at::AutoDispatchBelowAutograd plain;
    const double window = *ste_window.data_ptr<float>(), scale = *logit_scale.data_ptr<float>();
    const at::Tensor input = at::addmm(first_bias, features, first_weight.t());
    // Not native_batch_norm, which checks no shapes: wrong ones would end the process.
    auto [hidden, mean, inverse, reserve, implementation] =
        at::_batch_norm_impl_index(input, norm_weight, norm_bias, running_mean, running_var, true, momentum, eps, false);
    *batches.data_ptr<int64_t>() += 1;
    hidden.relu_();
    const at::Tensor logits = at::addmm(last_bias, hidden, last_weight.t(), 1, scale);
    const variable_list decided = decide_units(logits - threshold, window, random_drop, key, first_sample);
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["eps"] = eps;
    ctx->save_for_backward(
        {first_weight, norm_weight, last_weight, features, input, mean, inverse, hidden, decided[1], decided[3]});
    ctx->mark_non_differentiable({logits});
    variable_list out = {decided[0], logits};
    if (random_drop > 0) out.push_back(decided[2]);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    refuse_second_derivatives();
    const c10::impl::ExcludeDispatchKeyGuard without_autocast(c10::autocast_dispatch_keyset);
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &first_weight = saved[0], &norm_weight = saved[1], &last_weight = saved[2], &features = saved[3];
    const at::Tensor &input = saved[4], &mean = saved[5], &inverse = saved[6], &hidden = saved[7];
    const at::Tensor &passes = saved[8], &dropped = saved[9];
    at::Tensor decision_grad = grads[0];
    if (dropped.defined() && grads[2].defined()) {  // a dropped unit learns what bringing it back does
      const at::Tensor learned = grads[2] * dropped;
      decision_grad = decision_grad.defined() ? decision_grad + learned : learned;
    }
    variable_list back(18);  // one for each argument, in the order of ``tensors``
    if (!decision_grad.defined()) return back;
    const double scale = ctx->saved_data["scale"].toDouble();
    const at::Tensor logit_grad = decision_grad * passes;
    at::Tensor grad = at::threshold_backward(logit_grad.mm(last_weight).mul_(scale), hidden, 0);
    std::tie(grad, back[3], back[4]) = at::native_batch_norm_backward(
        grad, input, norm_weight, {}, {}, mean, inverse, true, ctx->saved_data["eps"].toDouble(), {true, true, true});
    if (ctx->needs_input_grad(0)) back[0] = grad.mm(first_weight);
    back[1] = grad.t().mm(features);
    back[2] = grad.sum(0);
    back[5] = logit_grad.t().mm(hidden).mul_(scale);
    back[6] = logit_grad.sum(0);
    return back;
  }
};

}  // namespace

// tensors: features (B, F), fp32, B above 1, and those of the gate as ``Decide::forward`` names them.
// Returns (B, units): decisions that are applied (with random drop), decisions, logits. The running statistics of the
// norm are updated in place.
std::tuple<at::Tensor, at::Tensor, at::Tensor> decide(const std::vector<at::Tensor>& tensors, double momentum,
                                                      double eps, double random_drop, int64_t key,
                                                      int64_t first_sample) {
  const variable_list out =
      Decide::apply(at::TensorList(tensors), momentum, eps, random_drop, key, first_sample);
  return {out.size() > 2 ? out[2] : out[0], out[0], out[1]};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("pixel_mean", &pixel_mean);
  module.def("fan_out", &fan_out);
  module.def("add_gated", &add_gated);
  module.def("decide", &decide);
  module.def("scale_forward", &scale_forward);
  module.def("scale_backward", &scale_backward);
}

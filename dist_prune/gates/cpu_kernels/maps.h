// Operations on channels_last maps on CPUs for which torch needs several passes, or copies: the mean over pixels, the
// sum of maps and a value per sample and channel, maps times such a value, and relu(shortcut + gate * branch), with
// their backwards. ops.py has the plain expressions. Operations of every gated block are autograd functions here: in
// Python these cost more than they compute.
#pragma once
#include <torch/extension.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "passes.h"

// Maps are (B, C, H, W), channels_last, fp32 or bf16, all of one dtype; gates and gradients of means are fp32.

at::Tensor pixel_mean(const at::Tensor& map) {
  at::Tensor out = at::zeros({map.size(0), map.size(1)}, map.options().dtype(at::kFloat));
  (is_bf16(map) ? mean_rows<bf16> : mean_rows<float>)(map, out);
  return out;
}

// a + b + mean_grad / pixels; b may be undefined.
at::Tensor add_with_mean(const at::Tensor& a, const at::Tensor& b, const at::Tensor& mean_grad) {
  at::Tensor out = at::empty_like(a);
  const auto add = b.defined() ? (is_bf16(a) ? add_rows<bf16, true> : add_rows<float, true>)
                               : (is_bf16(a) ? add_rows<bf16, false> : add_rows<float, false>);
  add(a, b, mean_grad, out);
  return out;
}

// gate: (B, C). gate * map.
at::Tensor scale_forward(const at::Tensor& map, const at::Tensor& gate) {
  TORCH_CHECK(gate.is_contiguous(), "gate must be contiguous");
  at::Tensor out = at::empty_like(map);
  (is_bf16(map) ? scale_rows<bf16> : scale_rows<float>)(map, gate, out);
  return out;
}

// Gradients of map and gate (B, C); that of the map is the given one if all gates are open.
std::tuple<at::Tensor, at::Tensor> scale_backward(const at::Tensor& grad, const at::Tensor& map,
                                                  const at::Tensor& gate, bool all_open) {
  TORCH_CHECK(gate.is_contiguous(), "gate must be contiguous");
  at::Tensor grad_gate = at::zeros_like(gate);
  at::Tensor grad_map = all_open ? grad : at::empty_like(grad);
  (is_bf16(grad) ? scale_backward_rows<bf16> : scale_backward_rows<float>)(grad, map, gate, grad_map, grad_gate);
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

// Sum of the gradients of both copies of a map and of its mean over pixels, in one pass; each may be undefined.
at::Tensor add_up(const at::Tensor& first_grad, const at::Tensor& second_grad, const at::Tensor& mean_grad,
                  const std::vector<int64_t>& shape, at::ScalarType dtype) {
  at::Tensor first = as_map(first_grad, dtype), second = as_map(second_grad, dtype);
  if (!first.defined()) std::swap(first, second);
  if (!mean_grad.defined()) return second.defined() ? first + second : first;
  if (first.defined()) return add_with_mean(first, second, mean_grad.to(at::kFloat).contiguous());
  const at::Tensor share = (mean_grad / (shape[2] * shape[3])).to(dtype);
  return share.view({shape[0], shape[1], 1, 1}).expand(shape);
}

// (map, map, mean over pixels); backward sums all three gradients in one pass.
struct FanOut : torch::autograd::Function<FanOut> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& map) {
    ctx->set_materialize_grads(false);  // often only one of the three is used
    ctx->saved_data["shape"] = map.sizes().vec();
    ctx->saved_data["dtype"] = map.scalar_type();
    return {map.view_as(map), map.view_as(map), pixel_mean(map)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    refuse_second_derivatives();
    const std::vector<int64_t> shape = ctx->saved_data["shape"].toIntVector();
    const at::ScalarType dtype = ctx->saved_data["dtype"].toScalarType();
    return {add_up(grads[0], grads[1], grads[2], shape, dtype)};
  }
};

// shortcut + gate * branch, and a ReLU where relu is true; gate: (B, 1).
struct AddGated : torch::autograd::Function<AddGated> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& shortcut, const at::Tensor& gate,
                            const at::Tensor& branch, bool relu) {
    const at::Tensor factor = gate.to(at::kFloat).contiguous();
    at::Tensor out = at::empty_like(shortcut);
    const auto add = is_bf16(shortcut) ? gated_forward_rows<bf16> : gated_forward_rows<float>;
    add(shortcut, factor, branch, out, relu);
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
    const at::Tensor grad = as_map(grads[0], branch.scalar_type());
    const float* opened = gate.data_ptr<float>();
    const bool relu = ctx->saved_data["relu"].toBool();
    const bool all_open = std::all_of(opened, opened + gate.numel(), [](float g) { return g == 1.0f; });
    at::Tensor grad_sum = relu ? at::empty_like(grad) : grad;
    at::Tensor grad_gate = at::empty_like(gate);
    at::Tensor grad_branch = all_open ? grad_sum : at::empty_like(grad);
    const auto pass = is_bf16(grad) ? gated_backward_rows<bf16> : gated_backward_rows<float>;
    pass(grad, out, branch, gate, grad_sum, grad_gate, grad_branch);
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

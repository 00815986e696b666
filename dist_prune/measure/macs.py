"""MACs of a network, counted by fvcore on a trace of its eval mode.

fvcore counts multiply-accumulates (and calls them flops): convolution, linear, matrix products, 2 per batch-norm
element, other norms, pooling. Attention is added here. Element-wise operations, reductions and copies count nothing.
"""

import copy
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

with warnings.catch_warnings():  # fvcore scripts functions on import, which torch deprecates
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

# Operators that multiply and accumulate nothing, beside those that torch tags as element-wise or as reductions.
_FREE = {
    "_softmax", "alias", "as_strided", "avg_pool1d", "avg_pool2d", "avg_pool3d", "col2im", "concat", "cumsum",
    "dropout_", "expand_as", "feature_dropout", "fill_", "flip", "hardswish_", "hardswish", "im2col", "index_add",
    "index_copy", "index_select", "layout", "log_softmax", "masked_fill_", "max_pool1d", "max_pool2d", "max_pool3d",
    "meshgrid", "movedim", "new_ones", "numel", "numpy_T", "pad", "pixel_shuffle", "pixel_unshuffle", "repeat",
    "repeat_interleave", "reshape_as", "resolve_conj", "scatter", "scatter_", "softmax", "sort", "swapaxes", "tile",
    "topk", "tril", "triu", "unflatten", "unfold", "view_as", "zero_",
}  # fmt: skip


@dataclass(frozen=True)
class MacsCount:
    """MACs of one image through a network."""

    total: int
    # By qualified name, those of the modules inside included; the whole network is ``""``.
    by_module: dict[str, int]
    # Operators that neither fvcore nor this project can count.
    not_counted: tuple[str, ...]


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the MACs of one image of ``input_shape`` (C, H, W); ``analyze_macs`` also names what this leaves out."""
    return analyze_macs(model, input_shape).total


def analyze_macs(model: nn.Module, input_shape: Sequence[int]) -> MacsCount:
    """Count the MACs of one image of ``input_shape`` (C, H, W), by module, and name what cannot be counted.

    The module is counted in eval mode and stays as it is.
    """
    # The unknown operators are returned; fvcore's own warning also lists every one that counts nothing.
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    model = copy.deepcopy(model).float().cpu().eval()
    analysis = FlopCountAnalysis(model, torch.zeros(1, *input_shape))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    analysis.set_op_handle("aten::baddbmm", _baddbmm_macs)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # Without gradients torch runs a whole attention layer as one operator, which hides the modules inside.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        by_module = {name: int(macs) for name, macs in analysis.by_module().items()}
        unknown = sorted(name for name in analysis.unsupported_ops() if not _is_free(name))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return MacsCount(by_module[""], by_module, tuple(unknown))


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, trainable or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def _attention_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """MACs of query x key and of weights x value, causal or not, as torch's FlopCounterMode counts them."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _baddbmm_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """MACs of (B, N, K) x (B, K, M), which are added to the first input."""
    left, right = (get_shape(tensor) for tensor in inputs[1:3])
    return math.prod(left) * right[-1]


def _is_free(name: str) -> bool:
    """Return True if an operator (``aten::add_``) is known to multiply and accumulate nothing."""
    namespace, _, operator = name.partition("::")
    if namespace != "aten":  # an extension, or a Python function
        return False
    if operator in _FREE:
        return True
    packet = getattr(torch.ops.aten, operator.removesuffix("_"), None)
    tags = {tag for overload in packet.overloads() for tag in getattr(packet, overload).tags} if packet else set()
    return bool(tags & {torch.Tag.pointwise, getattr(torch.Tag, "reduction", torch.Tag.pointwise)})

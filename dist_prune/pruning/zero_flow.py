"""Where a zero stays a zero: the effect of closed units on what lies behind them."""

import re

import torch
from torch.utils._pytree import tree_map_only

from dist_prune.pruning.trace import Node, Ref, is_pointwise

_KEEPS_ZERO = re.compile(
    r"mean|sum|\w*pool\dd|upsample_\w+|\w*view|reshape|\w*flatten|permute|transpose|t|movedim|swapaxes|\w*squeeze|expand|"
    r"select|slice|narrow|split\w*|chunk|unbind|tensor_split|roll|flip|clone|contiguous|alias|detach|repeat|pixel_\w+|"
    r"channel_shuffle|numpy_T|tile|expand_as|view_as|reshape_as|to|_to_copy|\w*dropout"
)


def stays_zero(node: Node, zero: set[int], carrying: set[int]) -> bool:
    """Return True if the entries of a site are zero in the outputs of a node; ``zero``: values in which they are."""
    if node.op in ("cat", "concat"):
        return carrying <= zero
    if _KEEPS_ZERO.fullmatch(node.op):
        return node.inputs[0] in zero
    if node.op in ("pad", "constant_pad_nd"):
        return node.inputs[0] in zero and not any(float(v or 0) for v in node.args[3 if node.op == "pad" else 2 :])
    if node.op in ("matmul", "bmm"):
        return bool(set(node.inputs) & zero)
    if node.op == "scaled_dot_product_attention":
        return node.inputs[2] in zero
    if node.op.startswith("conv"):  # depthwise and grouped ones: others end a site
        return node.inputs[0] in zero and len(node.inputs) == 2
    # Norms, among others, make constants of zeros.
    return is_pointwise(node.func) and bool(carrying & zero) and _pointwise_zero(node, zero)


def _pointwise_zero(node: Node, zero: set[int]) -> bool:
    """Evaluate a pointwise operation: is it zero whatever those inputs are that are not?"""
    zeros, others = torch.zeros(3), torch.tensor([0.7, -1.3, 4.0])

    def example(ref: Ref) -> torch.Tensor:
        # An operation in place would change the examples.
        return (zeros if ref.value in zero else others).clone()

    try:
        args, options = tree_map_only(Ref, example, (node.args, node.options))
        return not node.func(*args, **options).any()
    except (RuntimeError, TypeError, AttributeError):
        return False

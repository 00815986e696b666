"""Fold batch norms that only scale and shift the output of one convolution into that convolution."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_eval


def foldable_norms(program: ExportedProgram, model: nn.Module) -> dict[str, str]:
    """Return the batch norms of ``model`` that can be folded exactly, each with its convolution, by qualified name.

    Args:
        program: the model as ``torch.export`` recorded it, in eval mode.
        model: the model itself; only ``nn.Conv2d`` and ``nn.BatchNorm2d`` count, not their subclasses.
    """
    names = program.graph_signature.inputs_to_parameters
    found = {}
    for node in program.graph.nodes:
        if node.target is not torch.ops.aten.batch_norm.default:
            continue
        # The data flow decides, not the order of modules: only the norm reads the convolution's output.
        source, scale = node.args[:2]
        if source.target is not torch.ops.aten.conv2d.default or len(source.users) != 1:
            continue
        weight = source.args[1]
        # A module that is called twice would be scaled for both calls.
        if scale is None or any(len(tensor.users) != 1 for tensor in (weight, scale)):
            continue
        conv, norm = (names[tensor.name].rpartition(".")[0] for tensor in (weight, scale))
        # A subclass may compute something else as well.
        if type(model.get_submodule(conv)) is nn.Conv2d and type(model.get_submodule(norm)) is nn.BatchNorm2d:
            found[norm] = conv
    return found


def fold_batch_norms(model: nn.Module, norms: Mapping[str, str]) -> nn.Module:
    """Fold batch norms (name of the norm -> name of its convolution), in place; returns the model, in eval mode.

    The convolutions get biases, the norms become ``nn.Identity``. The model remembers ``norms`` for its sliced
    checkpoint.
    """
    model.eval()
    there = dict(model.named_modules())
    for norm, conv in norms.items():
        # Slicing may have removed the block of a norm.
        if norm in there:
            model.set_submodule(conv, fuse_conv_bn_eval(there[conv], there[norm]))
            model.set_submodule(norm, nn.Identity())
    model.dist_prune_folded = {**getattr(model, "dist_prune_folded", {}), **norms}  # type: ignore[assignment]
    return model

"""Gated modules: a module of the network, untouched, with the gate of one site; how to find and recompute them."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dist_prune.gates.gate import Gate
from dist_prune.gates.noise import NoiseKey
from dist_prune.gates.ops import add_gated, scale_channels
from dist_prune.gates.recompute import without_norm_updates
from dist_prune.pruning.residual import form_of, residual_form
from dist_prune.pruning.sites import Site


class Gated(nn.Module):
    """Base class of gated modules. With the gate open the wrapper computes what ``inner`` does."""

    def __init__(self, inner: nn.Module, gate: Gate, site: Site) -> None:
        super().__init__()
        self.inner = inner
        self.gate = gate
        self.site = site


class GatedBlock(Gated):
    """act(shortcut(x) + g(x) * F(x)): a ResNet block whose branch a gate opens or closes per sample."""

    def __init__(self, inner: nn.Module, gate: Gate, site: Site) -> None:
        super().__init__(inner, gate, site)
        self.form = form_of(inner)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the block, (B, C_in, H, W) -> (B, C_out, H', W')."""
        for_branch, for_shortcut, decisions = self.gate(x)
        shortcut = getattr(self.inner, self.form.shortcut)
        activation = getattr(self.inner, self.form.activation)
        x = for_shortcut if shortcut is None else shortcut(for_shortcut)
        if self.gate.constant == 0:
            # Without a branch the block's input reaches the activation, which must not change it in place.
            return torch.relu(x) if type(activation) is nn.ReLU else activation(x.clone())
        branch = self.form.branch(self.inner, for_branch)
        if self.gate.constant == 1:
            return activation(x + branch)
        # Sum and ReLU are one pass over memory.
        if type(activation) is nn.ReLU:
            return add_gated(x, decisions, branch, relu=True)
        return activation(add_gated(x, decisions, branch))


class GatedBranch(Gated):
    """g(x) * F(x): the branch of a block that adds it to x itself; also attention, which takes x three times."""

    def forward(self, *inputs: Tensor, **options: Any) -> Any:
        """Return what ``inner`` returns; inputs: x (B, C, H, W) or (B, T, C), as often as ``inner`` takes it."""
        x, _, decisions = self.gate(inputs[0])
        if self.gate.constant == 0:
            # F(x) has the shape of x, to which it is added. Attention returns its weights as well.
            nothing = torch.zeros_like(x)
            return (nothing, None) if isinstance(self.inner, nn.MultiheadAttention) else nothing
        out = self.inner(*(x for _ in inputs), **options)
        branch, *rest = out if isinstance(out, tuple) else (out,)
        gated = branch * decisions.to(branch.dtype).view(-1, *[1] * (branch.dim() - 1))
        return (gated, *rest) if isinstance(out, tuple) else gated


class GatedChannels(Gated):
    """Maps that a gate opens or closes channel by channel, in front of ``inner`` or behind it."""

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Tensor:
        """Return what ``inner`` returns for the open channels, or its open channels; they are ``site.axis`` of x."""
        if self.site.behind:
            return self._gated(self.inner(x, *others, **options))
        return self.inner(self._gated(x), *others, **options)

    def _gated(self, x: Tensor) -> Tensor:
        maps, _, decisions = self.gate(as_maps(x, self.site.axis))
        if self.gate.constant == 1:
            return x
        if self.site.channels:
            # Several channels are one unit: those of a head, or of a group of a convolution.
            decisions = decisions[:, list(self.site.channels)]
        # Behind the last norm of a residual block, ``out += shortcut`` changes the result in place.
        maps = scale_channels(maps, decisions, may_alias=self.site.position != "after")
        return maps.reshape(x.movedim(self.site.axis, 1).shape).movedim(1, self.site.axis)


def as_maps(x: Tensor, axis: int) -> Tensor:
    """Return values with channels along ``axis`` as feature maps (B, C, H, W); a view for all usual layouts."""
    x = x.movedim(axis, 1)
    return x if x.dim() == 4 else x.flatten(2).unsqueeze(3) if x.dim() > 2 else x[:, :, None, None]


def gated_modules(model: nn.Module) -> Iterator[tuple[str, Gated]]:
    """Yield all gated modules with their qualified names, in the order of the network; none is within another."""
    # Every step walks the network several times. Unlike ``named_modules`` this skips the inside of gated modules,
    # which is most of the network.
    stack: list[tuple[str, nn.Module]] = [("", model)]
    seen: set[nn.Module] = set()
    while stack:
        name, module = stack.pop()
        if module in seen:
            continue
        seen.add(module)
        if isinstance(module, Gated):
            yield name, module
        else:
            prefix = f"{name}." if name else ""
            stack += [(prefix + part, child) for part, child in module.named_children()][::-1]


def gates_of(model: nn.Module) -> dict[str, Gate]:
    """Return the gates by the names of the modules that they gate. Raises RuntimeError if there is none."""
    gates = {name: gated.gate for name, gated in gated_modules(model)}
    if not gates:
        raise RuntimeError("this model has no gates: call attach_gates first")
    return gates


def sites(model: nn.Module) -> tuple[Site, ...]:
    """Return the sites that the gates of ``model`` control, in the order of the network."""
    return tuple(module.site for _, module in gated_modules(model))


def set_noise_key(model: nn.Module, noise_key: NoiseKey) -> None:
    """Set the key of the gate noise in the next forward pass."""
    # Compiled code is specialized to the numbers that it reads, but not to what tensors hold.
    step, first_sample = torch.as_tensor(noise_key.step), torch.as_tensor(noise_key.first_sample)
    noise_key = replace(noise_key, step=step, first_sample=first_sample)
    for gate in gates_of(model).values():
        gate.noise_key = noise_key


def checkpoint_blocks(model: nn.Module) -> int:
    """Keep only the inputs of residual blocks and gated modules in training; backward recomputes the rest.

    In place; names and outputs stay. Copies for evaluation or slicing must be made before.

    Returns:
        The number of blocks, 0 where the network has none.
    """
    if isinstance(model, Gated) or residual_form(model) is not None:
        _checkpoint(model)
        # What lies within is recomputed with it; checkpointing it again would compute it a third time.
        return 1
    return sum(checkpoint_blocks(child) for child in model.children())


def _checkpoint(block: nn.Module) -> None:
    plain_forward = block.forward

    def forward(*inputs: Any, **options: Any) -> Any:
        # Without backward there is nothing to recompute, and nothing to save memory for.
        if not (block.training and torch.is_grad_enabled()):
            return plain_forward(*inputs, **options)
        options["context_fn"] = lambda: (contextlib.nullcontext(), without_norm_updates(block))
        return checkpoint(plain_forward, *inputs, use_reentrant=False, **options)

    block.forward = forward

"""Weight masks: the single weights that stay (unstructured pruning)."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_prune.errors import UserError
from dist_prune.pruning.costs import Costs


class _MaskedConv2d(nn.Conv2d):
    weight_mask: Tensor
    # Masks are equal on all ranks: averaging their buffers would only cost time.
    is_replicated = True

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.weight_mask, self.bias)


class _MaskedLinear(nn.Linear):
    weight_mask: Tensor
    is_replicated = True

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight_mask, self.bias)


_MASKED: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: _MaskedConv2d, nn.Linear: _MaskedLinear}
_PLAIN = {masked: plain for plain, masked in _MASKED.items()}


@dataclass(frozen=True)
class WeightMask:
    """The weights that stay, for some parameters of a network; all others stay whole. Equal on all ranks.

    kept: by parameter name, a bool tensor of the parameter's shape on the CPU, True where the weight stays.
    """

    kept: Mapping[str, Tensor]
    kind: ClassVar[str] = "weights"

    @property
    def density(self) -> float:
        """Share of the masked parameters' weights that stay, in [0, 1]."""
        sizes = sum(kept.numel() for kept in self.kept.values())
        return sum(int(kept.sum()) for kept in self.kept.values()) / sizes if sizes else 1.0

    def attach(self, module: nn.Module) -> nn.Module:
        """Make the layers of ``module`` compute with weight * mask, in place; parameters keep their names.

        The mask is a factor inside the forward pass, so it holds at every ZeRO stage, and pruned weights get no
        gradient.

        Raises:
            UserError: a parameter is not the weight of a convolution or linear layer, or has another shape.
        """
        for layer, kept in self._layers(module):
            layer.register_buffer("weight_mask", kept.to(layer.weight), persistent=False)
            # The class changes, not the object: parameters stay where optimizers and checkpoints know them.
            layer.__class__ = _MASKED.get(type(layer), type(layer))
        return module

    def masked(self, module: nn.Module) -> nn.Module:
        """Return a copy of ``module`` that computes with weight * mask; eval mode."""
        return self.attach(copy.deepcopy(module)).eval()

    def sliced(self, module: nn.Module) -> nn.Module:
        """Return a plain copy of ``module`` whose pruned weights are zero; eval mode."""
        return without_masks(self.masked(module)).eval()

    def macs(self, costs: Costs, kept: Mapping[str, Collection[int]]) -> int:
        """Return the MACs of the network: zero weights are still multiplied by dense kernels."""
        return costs.of(kept)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of mask.json: counts; the bits themselves are in ``tensors``."""
        weights = [
            {"name": name, "shape": list(kept.shape), "kept": int(kept.sum()), "weights": kept.numel()}
            for name, kept in self.kept.items()
        ]
        return {"sites": [], "weights": weights, "totals": {"density": self.density}}

    def tensors(self) -> dict[str, Tensor]:
        """Return the bits of each parameter's mask, packed, (ceil(weights / 8),), uint8."""
        return {name: torch.from_numpy(np.packbits(kept.numpy().reshape(-1))) for name, kept in self.kept.items()}

    def figures(self) -> dict[str, Any]:
        """Return the figures for the records of a run."""
        return {"density": self.density}

    @classmethod
    def restore(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> WeightMask:
        """Return the mask of ``as_dict`` and ``tensors``; raises UserError if they are not those of one."""
        try:
            kept = {}
            for entry in data["weights"]:
                # The last byte is padded: only the shape tells how many of its bits count.
                bits = np.unpackbits(tensors[entry["name"]].numpy(), count=int(np.prod(entry["shape"])))
                kept[entry["name"]] = torch.from_numpy(bits).bool().reshape(entry["shape"])
            return cls(kept)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"that is no weight mask: {error}") from error

    def _layers(self, module: nn.Module) -> Iterator[tuple[Any, Tensor]]:
        modules = dict(module.named_modules())
        for name, kept in self.kept.items():
            layer: Any = modules.get(name.removesuffix(".weight"))
            if type(layer) not in _MASKED | _PLAIN or not name.endswith("weight"):
                raise UserError(f"no weight of a convolution or linear layer is called '{name}'")
            # ZeRO 3 partitions weights: the shape of the whole one is an attribute of its own.
            shape = getattr(layer.weight, "ds_shape", layer.weight.shape)
            if shape != kept.shape:
                raise UserError(f"the mask of '{name}' is {tuple(kept.shape)}, the weight {tuple(shape)}")
            yield layer, kept


def without_masks(module: nn.Module) -> nn.Module:
    """Return a plain copy whose masked weights are zero; ``module`` itself if no layer of it has a mask."""
    if not any(type(layer) in _PLAIN for layer in module.modules()):
        return module
    plain = copy.deepcopy(module)
    layers: list[Any] = [layer for layer in plain.modules() if type(layer) in _PLAIN]
    for layer in layers:
        layer.weight.data.mul_(layer._buffers.pop("weight_mask"))
        layer.__class__ = _PLAIN[type(layer)]
    return plain

"""MACs: fvcore's count of a network in eval mode, and what each unit of each site costs.

fvcore counts multiply-accumulates (and calls them flops): convolution and linear, 2 per batch-norm element
in eval mode, pooling. Elementwise additions and activations count nothing.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dist_prune.models import residual_blocks, residual_form

with warnings.catch_warnings():  # fvcore scripts functions on import, which torch deprecates
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis


@dataclass(frozen=True)
class Costs:
    """MACs of one image, and parameters.

    dense: MACs of the whole plain network; per_unit: by site name, what one open unit costs;
    parameters: of the whole plain network.
    """

    dense: int
    per_unit: dict[str, int]
    parameters: int

    @property
    def fixed(self) -> int:
        """MACs that no gate controls."""
        return self.dense - sum(self.per_unit.values())

    def of(self, kept: Mapping[str, Sequence[int]]) -> int:
        """MACs of the sliced network that keeps these units; sites that are not named stay whole."""
        return self.dense - sum(
            cost for name, cost in self.per_unit.items() if name in kept and not kept[name]
        )


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """MACs of one image of ``input_shape`` (C, H, W) through ``model`` in eval mode, exactly as fvcore counts."""
    return int(_analysis(model, input_shape).total())


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def unit_costs(plain: nn.Module, input_shape: Sequence[int]) -> Costs:
    """MACs of a plain network and of the residual branch of each of its blocks."""
    analysis = _analysis(plain, input_shape)
    by_module = analysis.by_module()
    per_unit = {}
    for name, block in residual_blocks(plain).items():
        form = residual_form(block)
        assert form is not None
        per_unit[name] = int(sum(by_module[f"{name}.{child}"] for child in form.branch_modules(block)))
    return Costs(int(analysis.total()), per_unit, count_parameters(plain))


def _analysis(model: nn.Module, input_shape: Sequence[int]) -> FlopCountAnalysis:
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(
        logging.ERROR
    )  # it lists every op that counts nothing
    model = copy.deepcopy(model).float().cpu().eval()
    analysis = FlopCountAnalysis(model, torch.zeros(1, *input_shape))
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)

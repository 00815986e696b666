"""The optimizer and learning-rate schedule that a recipe asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from dist_prune.config import RunConfig
from dist_prune.gates.gate import Gate

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(module: nn.Module, config: RunConfig) -> SGD:
    """SGD with momentum; gate and norm parameters without weight decay if the recipe says so."""
    return SGD(
        parameter_groups(module, config),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def parameter_groups(module: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    """All parameters in one group, or two: those with weight decay, and those of gates and norms without."""
    parameters = list(module.parameters())
    if config.decay_gates_and_norms:
        return [{"params": parameters}]
    spared = {id(p) for m in module.modules() if isinstance(m, (Gate, *_NORMS)) for p in m.parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if id(p) not in spared]},
        {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: RunConfig, epochs: int, steps_per_epoch: int
) -> LRScheduler:
    """The schedule over a phase of ``epochs``, counted in optimizer steps."""
    schedule = config.lr_schedule
    steps = epochs * steps_per_epoch
    if schedule.kind == "steps":
        milestones = [epoch * steps_per_epoch for epoch in schedule.milestones]
        return MultiStepLR(optimizer, milestones, schedule.gamma)
    if schedule.kind == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return OneCycleLR(
        optimizer, config.lr, total_steps=steps, pct_start=schedule.warmup_share, cycle_momentum=False
    )

"""The optimizer of a phase, and its learning rate as a pure function of progress."""

import math
from itertools import repeat
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW

from dist_prune.config import OptimizerConfig
from dist_prune.gates.gate import Gate

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
# The two figures of torch's OneCycleLR that a recipe does not set.
_ONE_CYCLE_START, _ONE_CYCLE_END = 1 / 25, 1 / 25 / 1e4  # shares of the highest rate


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return SGD or AdamW; gate and norm parameters without weight decay, in a group of their own, if so configured."""
    parameters = list(module.parameters())
    kinds = () if config.decay_gates_and_norms else (Gate, *_NORMS)
    spared = {id(p) for m in module.modules() if isinstance(m, kinds) for p in m.parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if id(p) not in spared], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0},
    ]
    # Either may have no parameters.
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.lr, betas=config.betas)
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def state_names(config: OptimizerConfig) -> frozenset[str]:
    """Return the names of the states that the optimizer keeps for each parameter."""
    if config.optimizer == "adamw":
        return frozenset({"exp_avg", "exp_avg_sq", "step"})
    return frozenset({"momentum_buffer"} if config.momentum else ())


def learning_rate(config: OptimizerConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the rate of a phase's ``step``-th optimizer step, counted from 0; epochs: the length of the phase.

    It is a pure function of progress, without a state that a resume could lose.
    """
    schedule = config.lr_schedule
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    # Cosine and one cycle span what the warm-up leaves, so that the rate has no jump; milestones are epochs of the
    # whole phase.
    passed, steps = max(step - warmup, 0), max(epochs * steps_per_epoch - warmup, 1)
    if schedule.kind == "cosine":
        rate = _cosine(config.lr, 0.0, passed / steps)
    elif schedule.kind == "one_cycle":
        rate = _one_cycle(config.lr, passed, steps, schedule.warmup_share)
    else:
        gammas = schedule.gamma if isinstance(schedule.gamma, tuple) else repeat(schedule.gamma)
        fallen = zip(schedule.milestones, gammas, strict=False)
        rate = config.lr * math.prod(gamma for epoch, gamma in fallen if step >= epoch * steps_per_epoch)
    return rate * min((step + 1) / warmup, 1.0) if warmup else rate


def _cosine(start: float, end: float, share: float) -> float:
    """Return the value at ``share`` of half a cosine wave from ``start`` to ``end``."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _one_cycle(highest: float, step: int, steps: int, warmup_share: float) -> float:
    """Return the rate of torch's OneCycleLR, whose last step of each half has the half's last rate."""
    top, last = warmup_share * steps - 1, steps - 1
    if step <= top:
        return _cosine(_ONE_CYCLE_START * highest, highest, step / top if top else 1.0)
    return _cosine(highest, _ONE_CYCLE_END * highest, (step - top) / (last - top))

"""What the ranks of the distributed tests do, and the one-process references they are held against."""

from __future__ import annotations

import pickle
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dist_prune
from dist_prune import distributed
from dist_prune.config import RunConfig
from dist_prune.gates.budget import Budget, Timeline
from dist_prune.gates.means import GateMeans
from dist_prune.gates.wrappers import gated_modules
from dist_prune.methods import Phase, Step
from dist_prune.methods.consensus import GatedPhase
from dist_prune.pruning.costs import unit_costs
from dist_prune.pruning.families import layer_sites
from dist_prune.regularizers import macs_distance

SHAPE = (3, 8, 8)
CONFIG = RunConfig(
    name="test", data="none", model="resnet14", epochs=4, global_batch_size=8, lr=0.05, weight_decay=0.0,
    lr_schedule={"kind": "one_cycle"},
    polarization=3.0, activation=0.5, target_macs=0.4, decay_gates_and_norms=False,
)  # fmt: skip


def batch(samples: int = 8) -> tuple[Tensor, Tensor]:
    """The same images and labels in every process."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(samples, *SHAPE, generator=generator)
    images = images + 2 * torch.randn(samples, 3, 1, 1, generator=generator)  # so that gates differ
    return images, torch.randint(0, 10, (samples,), generator=generator)


class PricedPhase(GatedPhase):
    """A gated phase with a further loss term of its own, which is not linear in the means."""

    def loss_terms(self, step: Step) -> dict[str, Tensor]:
        return {**super().loss_terms(step), "macs": macs_distance(self.expected_share(step.means), 0.4, 2.0)}

    def expected_share(self, means: GateMeans) -> Tensor:
        return self.budget.costs.share(means.values)


def undecided_phase() -> PricedPhase:
    """A gated network whose gates differ from sample to sample, the same in every process."""
    torch.manual_seed(3)
    plain = dist_prune.build_model("resnet14", num_classes=10)
    costs = unit_costs(plain, SHAPE, layer_sites(plain))
    module = dist_prune.attach_gates(plain, open_bias=None)
    for _, wrapper in gated_modules(module):
        nn.init.normal_(wrapper.gate.last.weight, std=0.5)
        nn.init.zeros_(wrapper.gate.last.bias)
    torch.set_num_threads(1)  # the same rounding everywhere
    # Running statistics that fit, so that the gates are balanced in eval mode: those of one large batch.
    norms = [norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        module(batch(64)[0])
    for norm in norms:
        norm.momentum = 0.1
    budget = Budget(module, costs, CONFIG.target_macs, Timeline())
    for _, wrapper in gated_modules(module):
        wrapper.gate.threshold.zero_()  # as if training had come so far
    return PricedPhase("gated", module, CONFIG.epochs, config=CONFIG, budget=budget)


def reference(micro_batches: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """What ``one_step`` returns, of one process with plain torch: the mean over micro-batches of the losses."""
    phase = undecided_phase()
    module = phase.module.eval()  # batch-norm statistics fixed
    total, means = torch.zeros(()), None
    for images, labels in micro_batches:
        loss = F.cross_entropy(module(images), labels)
        means = dist_prune.gate_means(module)
        loss = loss + dist_prune.polarization(means, 3.0) + dist_prune.activation(means, 0.5)
        loss = loss + macs_distance(phase.expected_share(means), 0.4, 2.0)
        total = total + loss / len(micro_batches)
    total.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    phase.after_step(module, means.values.detach(), means.logits, epoch=2.0)
    return {
        "means": means.values.detach(),
        "logits": means.logits,
        "loss": total.item(),
        "gradients": gradients,
        "thresholds": thresholds(module),
    }


def thresholds(module: nn.Module) -> Tensor:
    return torch.cat([wrapper.gate.threshold.clone() for _, wrapper in gated_modules(module)])


def share(images: Tensor, labels: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """This rank's consecutive part of a batch that is cut into ``sizes``."""
    start = sum(sizes[: distributed.rank()])
    part = slice(start, start + sizes[distributed.rank()])
    return images[part], labels[part]


def engine_for(
    phase: Phase,
    stage: int,
    micro: int = 4,
    accumulation: int = 1,
    ds: dict[str, Any] | None = None,
    optimizer: str = "sgd",
) -> Any:
    """A DeepSpeed engine for a phase, with the optimizer of the recipe or another one."""
    from dist_prune.engine.deepspeed_engine import Engine, start_process_group
    from dist_prune.engine.ds_config import Batching
    from dist_prune.training.optimizer import build_optimizer

    device = start_process_group()
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        # By default, weights of small networks would stay whole on every rank.
        zero["stage3_param_persistence_threshold"] = 0
    config = {"zero_optimization": zero, **(ds or {})}
    return Engine(
        phase.module,
        build_optimizer(phase.module, CONFIG.model_copy(update={"optimizer": optimizer})),
        config,
        Batching(micro, accumulation, distributed.world_size()),
        device,
    )


def one_step(stage: int, sizes: list[int], repeats: int = 1) -> dict[str, Any]:
    """One optimizer step on this rank's share (``repeats`` identical micro-batches): means, loss, gradients, ...

    After a first step from rest the momentum is the gradient, so the engine's own snapshot hands it out.
    """
    from dist_prune.training.step import train_step

    phase = undecided_phase()
    engine = engine_for(phase, stage, micro=max(sizes), accumulation=repeats)
    engine.module.eval()
    part = share(*batch(sum(sizes)), sizes)
    with counted_collectives() as calls:
        record = train_step(engine, phase, [part] * repeats, epoch=0.0)
    snapshot = engine.snapshot()
    phase.after_step(engine.module, record.means, record.logits, epoch=2.0)
    moved = thresholds(engine.module)
    engine.close()
    return {
        "thresholds": moved,
        "means": record.means,
        "logits": record.logits,
        "loss": record.losses["total"],
        "gradients": {name: state["momentum_buffer"] for name, state in snapshot.optimizer_state.items()},
        "collectives": dict(calls),
    }


class counted_collectives:  # noqa: N801 - used like a function
    """The bytes of each collective that dist_prune itself starts (the engine's own do not pass here), by kind."""

    def __enter__(self) -> dict[str, list[int]]:
        self.calls: dict[str, list[int]] = defaultdict(list)
        self._real = distributed.dist
        distributed.dist = _Counting(self._real, self.calls)
        return self.calls

    def __exit__(self, *_: object) -> None:
        distributed.dist = self._real


class _Counting:
    def __init__(self, real: Any, calls: dict[str, list[int]]) -> None:
        self._real, self._calls = real, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name not in ("all_reduce", "broadcast", "all_gather", "barrier", "broadcast_object_list", "reduce"):
            return found

        def counted(*inputs: Any, **options: Any) -> Any:
            self._calls[name].append(sum(t.nbytes for t in inputs if isinstance(t, Tensor)))
            return found(*inputs, **options)

        return counted


def train_then_continue(optimizer: str, first_stage: int, second_stage: int) -> dict[str, Any]:
    """Two steps at one stage, a snapshot, a third step; and the third step again from the snapshot elsewhere."""
    phase = undecided_phase()
    engine = engine_for(phase, first_stage, micro=8 // distributed.world_size(), optimizer=optimizer)
    for _ in range(2):
        _plain_step(engine, phase)
    snapshot = engine.snapshot()
    _plain_step(engine, phase)
    straight = engine.snapshot()
    engine.close()
    return {
        "snapshot": snapshot,
        "straight": straight,
        "again": continue_from(optimizer, pickle.dumps(snapshot), second_stage),
    }


def continue_from(optimizer: str, snapshot: bytes, stage: int) -> Any:
    """One step from a snapshot (pickled: processes cannot pass on so many tensors); the snapshot after it."""
    state = pickle.loads(snapshot)
    phase = undecided_phase()
    phase.module.load_state_dict(state.weights)
    engine = engine_for(phase, stage, micro=8 // distributed.world_size(), optimizer=optimizer)
    engine.restore_optimizer(state.optimizer_state, batch(8)[0])
    engine.set_lr(CONFIG.lr)  # the priming step has none
    _plain_step(engine, phase)
    after = engine.snapshot()
    engine.close()
    return after


def _plain_step(engine: Any, phase: Phase) -> None:
    from dist_prune.training.step import train_step

    engine.module.eval()  # so that the world size changes nothing
    size = 8 // distributed.world_size()
    train_step(engine, phase, [share(*batch(8), [size] * distributed.world_size())], epoch=0.0)


def buffers_and_masks() -> dict[str, Any]:
    """Buffers and masks of ranks that have seen different data, also with a rank that has none."""
    phase = undecided_phase()
    images = batch(9)[0]
    mine = images[:9] if distributed.rank() == 0 else images[:0]
    with torch.no_grad():
        phase.module.train()(images[distributed.rank() :: 2])
    mean_before = phase.module.bn1.running_mean.clone()
    distributed.average_buffers(phase.module)
    split = images[:4] if distributed.rank() == 0 else images[4:]
    return {
        "before": mean_before,
        "after": {name: buffer.clone() for name, buffer in phase.module.named_buffers()},
        "split": dist_prune.consensus_mask(phase.module, [split]),
        "all on rank 0": dist_prune.consensus_mask(phase.module, [mine] if len(mine) else []),
    }

"""The seam between methods and the training loop: a method yields phases, transitions lie between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_prune.config import OptimizerConfig, RunConfig
from dist_prune.gates.insertion import find_sites
from dist_prune.gates.means import GateMeans
from dist_prune.models.build import build_model
from dist_prune.pruning.collapse import TensorSlice
from dist_prune.pruning.costs import Costs, unit_costs
from dist_prune.pruning.layer_sites import layer_sites
from dist_prune.pruning.mask import UnitMask


@dataclass(frozen=True)
class Task:
    """What a method is given: the recipe and the shape of the problem. input_shape: (C, H, W)."""

    config: RunConfig
    num_classes: int
    input_shape: tuple[int, int, int]

    def build(self) -> nn.Module:
        """The plain network of the recipe, with weights drawn from the run's seed (equal on all ranks)."""
        torch.manual_seed(self.config.seed)
        return build_model(
            self.config.model,
            num_classes=self.num_classes,
            in_channels=self.input_shape[0],
            **self.config.model_args,
        )

    @cached_property
    def costs(self) -> Costs:
        """MACs of the dense network, and how they depend on the units that the recipe's gates control.

        Networks and methods without gates count layers, where there are any.
        """
        plain, gates = self.build(), self.config.gates
        gated = self.config.method == "consensus" and gates.kind != "none"
        sites = find_sites(plain, gates.kind, gates.position) if gated else layer_sites(plain)
        return unit_costs(plain, self.input_shape, sites)


@dataclass(frozen=True)
class Step:
    """What a loss term may look at: one forward pass of one micro-batch.

    images: (B, C, H, W); labels: (B,), or (B, classes) where images are mixed; logits: (B, classes);
    means: None in networks without gates; epoch: since the start of the phase, fraction included.
    """

    module: nn.Module
    images: Tensor
    labels: Tensor
    logits: Tensor
    means: GateMeans | None
    epoch: float


@dataclass(frozen=True)
class Transition:
    """For each tensor of the new module, what it inherits from the old one; the optimizer's state follows.

    Tensors that are not named keep what the new module brings (a re-initialization names none). With
    ``keep_optimizer`` false the optimizer starts afresh.
    """

    tensors: Mapping[str, TensorSlice] = field(default_factory=dict)
    keep_optimizer: bool = True


@dataclass
class Phase:
    """A stretch of training with its own module, schedules, loss terms and stopping rule (``is_over``).

    structure: plain JSON data that says how to build ``module`` again; stored in every checkpoint and given
    back to the method on resume. kept: units that earlier phases left, by site name; empty while all stand.
    continues: the phase goes on in the epochs and the learning-rate schedule of the one before, to the end that both
    have in common; otherwise it begins its own.
    optimizer, label_smoothing: the recipe's where they are None.
    When the phase is over, the trainer sets ``trained`` (a plain copy of the module with its final weights),
    ``decision`` (its mask over the training images, if it has one) and ``ended`` (after how many epochs): the next
    phase is built from them.
    """

    name: str
    module: nn.Module
    epochs: int
    structure: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    transition: Transition | None = None
    continues: bool = False
    optimizer: OptimizerConfig | None = None
    label_smoothing: float | None = None
    trained: nn.Module | None = None
    decision: UnitMask | None = None
    ended: int | None = None

    @property
    def has_gates(self) -> bool:
        """Whether the module decides per sample; then it has gate means and a mask."""
        return False

    def kept_under(self, mask: UnitMask | None) -> dict[str, tuple[int, ...]]:
        """Units left by earlier phases and by ``mask``, by site name; sites that are whole may be missing."""
        return {**self.kept, **(mask.kept if mask else {})}

    def macs(self, dense: Costs, mask: UnitMask | None) -> int:
        """MACs of what remains of the module under ``mask``; dense: the costs of the recipe's dense network."""
        return dense.of(self.kept_under(mask))

    def is_over(self, epoch: int) -> bool:
        """Whether the phase ends after so many epochs; the same on all ranks, and after a resume."""
        return epoch >= self.epochs

    def loaded(self, module: nn.Module) -> None:
        """Called when a checkpoint or a snapshot of this phase has been put into a module of its kind."""

    def extra_state(self) -> dict[str, Tensor]:
        """Tensors beside the module's that the phase needs to continue after a resume; equal on all ranks, on the CPU.

        Checkpoints store them with the weights; ``load_extra_state`` gets them back before ``loaded``.
        """
        return {}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``extra_state`` returned."""

    def before_forward(self, module: nn.Module, step: int, first_sample: int, epoch: float) -> None:
        """Called before every micro-batch. step: optimizer steps so far; first_sample: see ``NoiseKey``."""

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The task loss *summed* over the micro-batch, fp32; the step divides by the global count.

        logits: (B, classes); labels: (B,), or probabilities (B, classes) where images are mixed.
        """
        return F.cross_entropy(
            logits.float(), labels, reduction="sum", label_smoothing=self.label_smoothing or 0.0
        )

    def loss_terms(self, step: Step) -> dict[str, Tensor]:
        """Further terms of the loss by name (names become metric names), weights included."""
        return {}

    def project(self, module: nn.Module) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """By name of a parameter, a function of its value that is put in its place after every optimizer step.

        For what weights must satisfy (clamps, proximal steps). The engine applies it to the fp32 weights that train,
        at every ZeRO stage; each function takes the whole tensor and must return the same on all ranks.
        """
        return {}

    def after_step(self, module: nn.Module, means: Tensor, logits: Tensor, epoch: float) -> None:
        """Called after every optimizer step to observe it; weights are changed in ``project``.

        means, logits: of the gates' units over the global batch, (all units,), on the CPU (empty without gates).
        """

    def decide(self, module: nn.Module, batches: Iterable[Any]) -> UnitMask | None:
        """The mask that ``module`` (trained so far) agrees on over ``batches``; all ranks call it."""
        return None

    def fixed(self, module: nn.Module, mask: UnitMask | None) -> nn.Module:
        """``module`` as it computes under ``mask`` for every sample."""
        return module

    def agrees(self, module: nn.Module, mask: UnitMask | None) -> bool:
        """Whether ``module`` has computed its latest batch as ``fixed`` would have."""
        return False

    def small(self, module: nn.Module, mask: UnitMask | None) -> nn.Module:
        """The plain network that remains when the run ends with this phase."""
        return module


class Method(ABC):
    """A way of training: a generator of phases that reads from top to bottom.

    reads: which of ``config.effects.METHOD_FIELDS`` the method reads; others that a recipe sets get a line.
    """

    reads: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, task: Task) -> None:
        self.task = task

    @property
    def epochs(self) -> int:
        """Epochs of all phases together, for showing progress."""
        return self.task.config.epochs

    def check(self) -> None:
        """Raise UserError for what cannot work, before a run leaves anything behind."""
        next(iter(self.phases({})))

    @abstractmethod
    def phases(self, recorded: Mapping[str, Mapping[str, Any]]) -> Iterator[Phase]:
        """Yield the phases in order; the code after a ``yield`` runs when that phase is over.

        recorded: structures by phase name, from a checkpoint. On resume the phases before the interrupted
        one are yielded but not trained again (``trained`` stays None), so a structure that was chosen by
        their outcome must be taken from ``recorded`` where it is there.
        """

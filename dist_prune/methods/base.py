"""The seam between methods and the training loop: a method yields phases and gets the result of each one back.

The order in which the loop calls what methods bring:

    for phase in method.phases():                      the code after a ``yield`` runs when that phase is over
        load_extra_state                               after a resume only
        on_weights_loaded                              the module in training has its weights
        until is_over, for each epoch:
            for each step:
                for each micro-batch:
                    before_forward -> forward -> task_loss -> loss_terms -> backward
                optimizer step
                project                                what weights must satisfy
                after_step                             observe
            on_weights_loaded -> vote -> masked        of a plain replica, to evaluate it
            extra_state                                for the checkpoint
        on_weights_loaded -> vote -> masked, sliced    the decision, checked on real images
        result = PhaseResult(module, epochs_run, decision)

Torch's generator is seeded by the recipe's seed before every part of ``phases``, so what it draws is the same on all
ranks and after every resume.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_prune.config import OptimizerConfig, RunConfig, Section, validated
from dist_prune.errors import UserError, first_line
from dist_prune.gates.means import GateMeans
from dist_prune.models.build import build_model
from dist_prune.pruning.costs import Costs, unit_costs
from dist_prune.pruning.families import layer_sites
from dist_prune.pruning.mask import Decision, UnitMask
from dist_prune.pruning.sites import Site
from dist_prune.pruning.slicing import TensorSlice
from dist_prune.pruning.weight_mask import without_masks


@dataclass(frozen=True)
class Task:
    """The recipe and the shape of the problem.

    input_shape: (C, H, W) in evaluation, for which MACs are counted; train_shapes: other ones in training.
    """

    config: RunConfig
    num_classes: int
    input_shape: tuple[int, int, int]
    train_shapes: tuple[tuple[int, int, int], ...] = ()

    def build(self) -> nn.Module:
        """Return the plain network of the recipe, with the same weights on every rank and after every resume."""
        config, channels = self.config, self.input_shape[0]
        torch.manual_seed(config.seed)
        return build_model(config.model, num_classes=self.num_classes, in_channels=channels, **config.model_args)

    def check_shapes(self) -> None:
        """Raise UserError if the network takes images of one size only, and training has others than evaluation."""
        if not self.train_shapes:
            return
        with torch.device("meta"):  # shapes are computed only
            plain = self.build().eval()
            for shape in (self.input_shape, *self.train_shapes):
                try:
                    plain(torch.empty(1, *shape))
                except Exception as error:  # networks raise errors of any kind for a wrong size
                    raise UserError(
                        f"{self.config.model} takes no images of {shape[2]} x {shape[1]} pixels, which image_size and "
                        f"eval_size ask for: {first_line(error)}"
                    ) from error


@dataclass(frozen=True)
class Step:
    """One forward pass of one micro-batch, for loss terms."""

    module: nn.Module
    images: Tensor  # (views * B, C, H, W), view after view
    labels: Tensor  # (B,), or (B, classes) where images are mixed
    logits: Tensor  # (views * B, classes)
    means: GateMeans | None  # None in networks without gates
    epoch: float  # since the start of the phase, fraction included


@dataclass(frozen=True)
class Transition:
    """The tensors that a phase inherits from the previous one, with their optimizer state.

    Tensors that are not named keep the values that the new module brings (a re-initialization names none).
    """

    # By name in the new module, the old tensor and its indices that stay.
    tensors: Mapping[str, TensorSlice] = field(default_factory=dict)
    keep_optimizer: bool = True  # False starts the optimizer without state


@dataclass(frozen=True)
class PhaseResult:
    """The outcome of a phase, sent back to the method that yielded it.

    On a resume in a later phase the module is as the method built it: the weights that later phases inherit come from
    the checkpoint. So decide by ``decision`` and ``epochs_run``, which checkpoints hold, and not by weights.
    """

    module: nn.Module  # a plain copy of the phase's module with its final weights, on the run's device
    epochs_run: int  # epochs after which the phase was over
    decision: Decision | None = None  # what ``vote`` returned at the end


Phases = Generator["Phase", PhaseResult, None]


@dataclass
class Phase:
    """A stretch of training with its own module, optimizer, schedules, loss terms and stopping rule (``is_over``)."""

    has_gates: ClassVar[bool] = False  # the module decides per sample; then it has gate means and a mask

    name: str  # unique among the phases of a method
    module: nn.Module  # what is trained
    epochs: int  # its length, which the learning-rate schedule spans
    # Units that earlier phases left, by site name; empty while all stand.
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    transition: Transition | None = None  # what it inherits from the phase before; None: nothing
    # True: the epochs and the learning-rate schedule of the previous phase continue, to the end that both share.
    continues: bool = False
    optimizer: OptimizerConfig | None = None  # None: the recipe's
    label_smoothing: float | None = None  # None: the recipe's
    views: int = 1  # independently augmented views of each image in a batch

    def macs(self, costs: Costs, decision: Decision | None) -> int:
        """Return the MACs of what remains of the module; costs: those of the recipe's dense network."""
        return decision.macs(costs, self.kept) if decision else costs.of(self.kept)

    def is_over(self, epoch: int) -> bool:
        """Return True if the phase ends after so many epochs, on all ranks and after a resume alike; change nothing."""
        return epoch >= self.epochs

    def on_weights_loaded(self, module: nn.Module) -> None:
        """Called when a module of this phase has got its weights: the one in training, or a plain replica of it."""

    def extra_state(self) -> dict[str, Tensor]:
        """Return tensors for the checkpoint, beside the module's: equal on all ranks, given to ``load_extra_state``."""
        return {}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``extra_state`` returned."""

    def before_forward(self, module: nn.Module, step: int, first_sample: int, epoch: float) -> None:
        """Called before every micro-batch. step: optimizer steps so far; first_sample: see ``NoiseKey``."""

    def forward(self, compute: Callable[[Tensor], Any], images: Tensor) -> Tensor:
        """Return the logits (views * B, classes) of images (views * B, C, H, W).

        compute: the forward pass of the module in training. All views go through it in one call, so that batch norms
        see them together. A module that returns more than logits in training returns logits alone in eval mode.
        """
        return compute(images)

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the task loss *summed* over the micro-batch, fp32, the mean over views.

        The step divides by the global number of images. logits: (views * B, classes); labels: (B,), or probabilities
        (B, classes) where images are mixed.
        """
        # Views come one after another, so their labels repeat.
        targets = labels.repeat(self.views, *[1] * (labels.dim() - 1))
        # fp32: sums over samples of bf16 logits lose the small ones.
        smoothing = self.label_smoothing or 0.0
        summed = F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=smoothing)
        return summed / self.views

    def loss_terms(self, step: Step) -> dict[str, Tensor]:
        """Return further terms of the loss by name, scalars, weights included.

        Names become metric names; ``task`` and ``total`` are taken. Like the task loss, a term is averaged over
        micro-batches and ranks: it is a mean over the images of this micro-batch, or a function of the gate means.
        """
        return {}

    def project(self, module: nn.Module, lr: float) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Return, by name of a parameter, a function of its value that replaces it after every optimizer step.

        The engine applies it to the fp32 weights that train, at every ZeRO stage; each function takes the whole tensor
        and must return the same on all ranks. lr: the learning rate of the step, for proximal steps.
        """
        return {}

    def after_step(self, module: nn.Module, means: Tensor, logits: Tensor, epoch: float) -> None:
        """Called after every optimizer step to observe it; weights are changed in ``project``.

        means, logits: of the gates' units over the global batch, (all units,), on the CPU (empty without gates).
        """

    def vote(self, module: nn.Module, batches: Iterable[Any]) -> Decision | None:
        """Return what ``module``, a plain replica in eval mode, has decided; all ranks call it.

        batches: this rank's share of the training images, (images, labels). At the end of an epoch it is a share of
        ``mask_samples`` images, at the end of the phase of all.
        """
        return None

    def masked(self, module: nn.Module, decision: Decision | None) -> nn.Module:
        """Return ``module`` as it computes under the decision for every sample."""
        return decision.masked(module) if decision else module

    def sliced(self, module: nn.Module, decision: Decision | None) -> nn.Module:
        """Return the plain network that remains when the run ends with this phase."""
        return decision.sliced(module) if decision else without_masks(module)


@dataclass(kw_only=True)
class PrunedPhase(Phase):
    """The phase of a plain network that a mask has made smaller already; the mask stays its decision."""

    mask: UnitMask

    def vote(self, module: nn.Module, batches: Iterable[Any]) -> UnitMask:
        """Return the mask that has made the network smaller."""
        return self.mask

    def masked(self, module: nn.Module, decision: Decision | None) -> nn.Module:
        """Return the module: its closed units are gone."""
        return module

    sliced = masked


Options = Section  # base of a method's own section of the recipe, ``method_args``


class Method(ABC):
    """A way of training: a generator of phases that reads from top to bottom."""

    # Which of ``config.METHOD_FIELDS`` the method reads; others that a recipe sets get a line.
    reads: ClassVar[frozenset[str]] = frozenset()
    Options: ClassVar[type[Section]] = Options  # the method's own section of the recipe (``method_args``)

    def __init__(self, task: Task) -> None:
        """Raises UserError for options that the method does not know."""
        self.task = task
        self.options: Any = validated(self.Options, task.config.method_args, "method_args.")

    @property
    def epochs(self) -> int:
        """Epochs of all phases together, for showing progress."""
        return self.task.config.epochs

    def sites(self, plain: nn.Module) -> tuple[Site, ...]:
        """Return the sites that the method prunes, in the order of the network; layers where it prunes none."""
        return layer_sites(plain)

    @cached_property
    def costs(self) -> Costs:
        """MACs of the dense network, and how they depend on the units of ``sites``."""
        # Sites describe the plain network: gates cost MACs of their own, but are gone in the end.
        plain = self.task.build()
        return unit_costs(plain, self.task.input_shape, self.sites(plain))

    def check(self) -> None:
        """Raise UserError for what cannot work, before a run leaves anything behind."""
        self.task.check_shapes()
        # Building the first phase attaches gates, finds sites and prices the budget.
        if next_phase(self.phases(), None, self.task.config.seed) is None:
            raise UserError(f"method '{self.task.config.method}' yields no phase")

    @abstractmethod
    def phases(self) -> Phases:
        """Yield the phases in order and get the result of each: ``result = yield Phase(...)``.

        After a resume the phases before the interrupted one are yielded and not trained again; see ``PhaseResult``.
        """


def next_phase(phases: Phases, result: PhaseResult | None, seed: int) -> Phase | None:
    """Send a phase's result (None at the beginning) to its method; return the phase that follows, None at the end."""
    # What a method draws between two phases must not depend on what a rank has drawn before.
    torch.manual_seed(seed)
    try:
        return phases.send(result)  # type: ignore[arg-type]
    except StopIteration:
        return None

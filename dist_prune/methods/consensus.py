"""Consensus gating (arXiv 2302.10798): gates and weights are trained together until all samples agree on a mask."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from dist_prune.config import METHOD_FIELDS, RunConfig
from dist_prune.errors import UserError
from dist_prune.gates.budget import BUDGET_FORM, Budget, Timeline
from dist_prune.gates.consensus import collapse, consensus_mask, masked, slice_gated_network
from dist_prune.gates.freezer import Freezer
from dist_prune.gates.insertion import attach_gates, find_sites, shape_gates
from dist_prune.gates.means import follow_logits
from dist_prune.gates.noise import NoiseKey
from dist_prune.gates.wrappers import set_noise_key
from dist_prune.methods.base import Method, Phase, Phases, PrunedPhase, Step, Transition
from dist_prune.methods.baselines import Dense
from dist_prune.pruning.mask import Decision, UnitMask
from dist_prune.pruning.sites import Site
from dist_prune.regularizers import activation, polarization

# Steps in which all samples must agree until a unit counts as decided under a budget.
_PATIENCE = 50
# How gates learn in the paper (``shape_gates``); a budget needs another form. The recipe may say otherwise.
_PAPER_FORM: dict[str, Any] = {"open_bias": 1.0, "backprop_to_input": True, "logit_scale": 1.0}


class Consensus(Method):
    """Train the gated network, whose consensus mask is the result; once all units are decided, the sliced network."""

    reads = METHOD_FIELDS

    def sites(self, plain: nn.Module) -> tuple[Site, ...]:
        """Return the sites of the recipe's gates."""
        gates = self.task.config.gates
        return super().sites(plain) if gates.kind == "none" else find_sites(plain, gates.kind, gates.position)

    def phases(self) -> Phases:
        """Gates and weights are learned together; after the collapse in flight, weights alone."""
        config = self.task.config
        # A property of this run only: the recipe stays one of this method, whatever kind of gates is set later.
        if config.gates.kind == "none":
            yield from Dense(self.task).phases()
            return
        options = config.gates.model_dump(exclude={"temperature", *_PAPER_FORM})
        # Flattened maps have one size.
        if self.task.train_shapes and options["kind"] == "channel":
            if options["flatten"]:
                raise UserError("gates.flatten=true needs images of one size: image_size and eval_size ask for several")
            options["flatten"] = False
        module = attach_gates(self.task.build(), input_shape=self.task.input_shape, **options)
        budget, freezer = self._budget(module), _freezer(module, config)
        shape_gates(module, **_form(config))
        gated = GatedPhase("gated", module, config.epochs, config=config, budget=budget, freezer=freezer)
        result = yield gated
        # The gated phase has lasted to the end: nothing is left to train.
        if result.epochs_run == config.epochs:
            return
        mask = result.decision
        assert isinstance(mask, UnitMask)
        small, origins = slice_gated_network(result.module, mask.kept)
        # Optimizer state follows the weights: the collapsed network continues without a jump of the loss.
        transition = Transition(origins)
        yield PrunedPhase("collapsed", small, config.epochs, mask.kept, transition, continues=True, mask=mask)

    def _budget(self, module: nn.Module) -> Budget | None:
        config = self.task.config
        if config.target_macs is None:
            return None
        timeline = Timeline(**config.budget.model_dump(exclude={"allow_empty"}))
        return Budget(module, self.costs, config.target_macs, timeline, config.budget.allow_empty)


def _form(config: RunConfig) -> dict[str, Any]:
    """Options of ``shape_gates``: the recipe's; where it says nothing, what a budget needs or the paper has."""
    default = _PAPER_FORM if config.target_macs is None else BUDGET_FORM
    given = {name: getattr(config.gates, name) for name in default}
    return default | {name: value for name, value in given.items() if value is not None}


def _freezer(module: nn.Module, config: RunConfig) -> Freezer | None:
    # Under a budget thresholds may still move back, so freezing waits; without one it is off unless asked for.
    after = config.freeze.after
    if after is None:
        after = _PATIENCE if config.target_macs is not None else 0
    return Freezer(module, after, config.freeze.thaw_after, freezes=not config.compile) if after else None


@dataclass(kw_only=True)
class GatedPhase(Phase):
    """The phase of a gated network: equation 10, under a MACs budget if there is one."""

    has_gates: ClassVar[bool] = True

    config: RunConfig
    budget: Budget | None = None
    freezer: Freezer | None = None

    @property
    def _keepers(self) -> dict[str, Budget | Freezer]:
        return {name: keeper for name in ("budget", "freezer") if (keeper := getattr(self, name)) is not None}

    def loss_terms(self, step: Step) -> dict[str, Tensor]:
        """Polarization and activation terms that the recipe or the budget gives a weight at this moment."""
        assert step.means is not None
        if self.config.polarization is not None:
            weight = self.config.polarization.at(step.epoch)
        else:
            # A budget polarizes once it is met, the paper from the start.
            weight = self.budget.polarization_weight(step.epoch / self.epochs) if self.budget else 1.0
        weights = {polarization: weight, activation: self.config.activation.at(step.epoch)}
        # A term of weight 0 would still cost its backward pass.
        return {term.__name__: term(step.means[:2], weight) for term, weight in weights.items() if weight}

    def is_over(self, epoch: int) -> bool:
        """Return True at the end, or when the network can be collapsed in flight."""
        freeze = self.config.freeze
        decided = freeze.collapse and self.freezer is not None and self.freezer.all_decided
        return epoch >= self.epochs or decided or epoch == freeze.collapse_epoch

    def on_weights_loaded(self, module: nn.Module) -> None:
        """Let budget and freezer set the gates of a module whose weights were loaded."""
        for keeper in self._keepers.values():
            keeper.apply(module)

    def extra_state(self) -> dict[str, Tensor]:
        """State of budget and freezer."""
        states = {name: keeper.state_dict() for name, keeper in self._keepers.items()}
        return {f"{name}.{key}": tensor for name, state in states.items() for key, tensor in state.items()}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue with budget and freezer."""
        for name, keeper in self._keepers.items():
            prefix = f"{name}."
            keeper.load_state_dict({k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)})

    def before_forward(self, module: nn.Module, step: int, first_sample: int, epoch: float) -> None:
        """Set the key of the noise of stochastic heads."""
        temperature = self.config.gates.temperature.at(epoch)
        set_noise_key(module, NoiseKey(self.config.seed, step, first_sample, temperature))

    def after_step(self, module: nn.Module, means: Tensor, logits: Tensor, epoch: float) -> None:
        """Update head statistics, the thresholds of the budget, and the freezer."""
        follow_logits(module, logits)
        progress, begin = epoch / self.epochs, self.config.freeze.open_from
        if self.budget is not None:
            self.budget.update(module, logits, progress)
            begin = max(begin, self.budget.timeline.prune_end)
        if self.freezer is not None:
            self.freezer.update(module, means, open_counts=progress >= begin)

    def vote(self, module: nn.Module, batches: Iterable[Any]) -> UnitMask:
        """Return the consensus mask over ``batches``."""
        return consensus_mask(module, batches, self.config.round_to)

    def masked(self, module: nn.Module, decision: Decision | None) -> nn.Module:
        """Return the gated network with its gates fixed to the mask."""
        assert isinstance(decision, UnitMask)
        return masked(module, decision)

    def sliced(self, module: nn.Module, decision: Decision | None) -> nn.Module:
        """Return the collapsed network."""
        assert isinstance(decision, UnitMask)
        return collapse(module, decision)

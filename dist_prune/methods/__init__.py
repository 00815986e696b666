"""Methods: ways of training behind one seam; the loop never asks which one it runs."""

from dist_prune.methods.base import (
    Method,
    Options,
    Phase,
    PhaseResult,
    Phases,
    PrunedPhase,
    Step,
    Task,
    Transition,
    next_phase,
)
from dist_prune.methods.baselines import Dense, UniformChannels, UniformDepth, UniformWidth
from dist_prune.methods.consensus import Consensus

METHODS: dict[str, type[Method]] = {
    "consensus": Consensus,
    "dense": Dense,
    "uniform_channels": UniformChannels,
    "uniform_depth": UniformDepth,
    "uniform_width": UniformWidth,
}

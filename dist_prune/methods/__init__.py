"""Methods: ways of training behind one seam; the loop never asks which one it runs."""

from dist_prune.methods.base import Inherited, Method, Phase, Step, Task, Transition
from dist_prune.methods.consensus import Consensus
from dist_prune.methods.dense import Dense

METHODS: dict[str, type[Method]] = {"consensus": Consensus, "dense": Dense}

__all__ = ["METHODS", "Inherited", "Method", "Phase", "Step", "Task", "Transition"]

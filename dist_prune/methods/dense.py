"""Dense training: the plain network, one phase; the baseline of everything else."""

from __future__ import annotations

from dist_prune.methods.base import Method, Phase, Phases


class Dense(Method):
    """Train the recipe's network as it is."""

    def phases(self) -> Phases:
        """One phase."""
        yield Phase("dense", self.task.build(), self.task.config.epochs)

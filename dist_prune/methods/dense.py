"""Dense training: the plain network, one phase; the baseline of everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dist_prune.methods.base import Method, Phase


class Dense(Method):
    """Train the recipe's network as it is."""

    def phases(self, recorded: Mapping[str, Mapping[str, Any]]) -> Iterator[Phase]:
        """One phase."""
        config = self.task.config
        yield Phase("dense", self.task.build(), config.epochs)

"""dist_prune: train a vision model once, on a cluster, and get a small one out.

The functions here work in anyone's own training loop; none of them needs deepspeed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_prune.errors import UserError
    from dist_prune.gates.budget import macs_budget
    from dist_prune.gates.consensus import collapse, consensus_mask, masked
    from dist_prune.gates.insertion import attach_gates
    from dist_prune.gates.means import gate_means
    from dist_prune.models.build import build_model
    from dist_prune.pruning.sliced_checkpoint import load_sliced, save_sliced
    from dist_prune.regularizers import activation, macs_distance, polarization

__version__ = "0.1.0"

_HOMES = {
    "UserError": "errors",
    "activation": "regularizers",
    "attach_gates": "gates.insertion",
    "build_model": "models.build",
    "collapse": "gates.consensus",
    "consensus_mask": "gates.consensus",
    "gate_means": "gates.means",
    "load_sliced": "pruning.sliced_checkpoint",
    "macs_budget": "gates.budget",
    "macs_distance": "regularizers",
    "masked": "gates.consensus",
    "polarization": "regularizers",
    "save_sliced": "pruning.sliced_checkpoint",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    # Importing the package must not load torch: `dist-prune --help` answers at once.
    if name in _HOMES:
        return getattr(import_module(f"dist_prune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dist_prune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

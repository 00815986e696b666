"""dist_prune: train a vision model once, on a cluster, and get a small one out.

The functions here work in anyone's own training loop; none of them needs deepspeed.
"""

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

_OFFERED = {
    "errors": ("UserError",),
    "gates.budget": ("macs_budget",),
    "gates.consensus": ("collapse", "consensus_mask", "masked"),
    "gates.insertion": ("attach_gates",),
    "gates.means": ("gate_means",),
    "models.build": ("build_model",),
    "pruning.sliced_checkpoint": ("load_sliced", "save_sliced"),
    "regularizers": ("activation", "macs_distance", "polarization"),
}
_HOMES = {name: home for home, names in _OFFERED.items() for name in names}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    # Importing the package must not load torch: `dist-prune --help` answers at once.
    if name in _HOMES:
        return getattr(import_module(f"dist_prune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dist_prune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

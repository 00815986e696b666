"""dist_prune: train a vision model once, on a cluster, and get a small one out.

The functions here work in anyone's own training loop; none of them needs deepspeed.
"""

from dist_prune.consensus import collapse, consensus_mask, load_sliced, masked, save_sliced
from dist_prune.errors import UserError
from dist_prune.gates import attach_gates, gate_means, macs_budget
from dist_prune.models import build_model
from dist_prune.regularizers import activation, macs_distance, polarization

__version__ = "0.1.0"

__all__ = [
    "UserError",
    "activation",
    "attach_gates",
    "build_model",
    "collapse",
    "consensus_mask",
    "gate_means",
    "load_sliced",
    "macs_budget",
    "macs_distance",
    "masked",
    "polarization",
    "save_sliced",
]

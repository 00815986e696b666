"""dist_prune: train a vision model once, on a cluster, and get a small one out.

The functions here work in anyone's own training loop; none of them needs deepspeed.
"""

from dist_prune.errors import UserError
from dist_prune.gates.budget import macs_budget
from dist_prune.gates.insertion import attach_gates
from dist_prune.gates.means import gate_means
from dist_prune.models.build import build_model
from dist_prune.pruning.collapse import collapse, masked
from dist_prune.pruning.mask import consensus_mask
from dist_prune.pruning.sliced_checkpoint import load_sliced, save_sliced
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

"""Gates: heads, gating modules, their insertion into networks, and their means over the global batch."""

from dist_prune.gates.budget import Budget, Timeline, macs_budget
from dist_prune.gates.freezer import Freezer
from dist_prune.gates.gate import FixedGate, Gate
from dist_prune.gates.heads import HEADS, Head
from dist_prune.gates.insertion import (
    attach_gates,
    find_sites,
    follow_logits,
    gated_modules,
    set_moment,
    sites,
    strip_gates,
)
from dist_prune.gates.means import (
    GateMeans,
    LocalGates,
    UpcomingMeans,
    Window,
    gate_means,
    gates_of,
    local_gates,
)
from dist_prune.gates.modules import GatingModule
from dist_prune.gates.noise import Moment
from dist_prune.gates.selection import outcome
from dist_prune.gates.wrappers import Gated, GatedBlock, GatedBranch, GatedChannels

__all__ = [
    "HEADS",
    "Budget",
    "FixedGate",
    "Freezer",
    "Gate",
    "GateMeans",
    "Gated",
    "GatedBlock",
    "GatedBranch",
    "GatedChannels",
    "GatingModule",
    "Head",
    "LocalGates",
    "Moment",
    "Timeline",
    "UpcomingMeans",
    "Window",
    "attach_gates",
    "find_sites",
    "follow_logits",
    "gate_means",
    "gated_modules",
    "gates_of",
    "local_gates",
    "macs_budget",
    "outcome",
    "set_moment",
    "sites",
    "strip_gates",
]

"""Gates: heads, gating modules, their insertion into networks, and their means over the global batch."""

from dist_prune.gates.heads import HEADS
from dist_prune.gates.insertion import GatedBlock, attach_gates, gated_blocks, sites
from dist_prune.gates.means import GateMeans, Window, gate_means, local_gates
from dist_prune.gates.modules import FixedGate, Gate, LayerGate

__all__ = [
    "HEADS",
    "FixedGate",
    "Gate",
    "GateMeans",
    "GatedBlock",
    "LayerGate",
    "Window",
    "attach_gates",
    "gate_means",
    "gated_blocks",
    "local_gates",
    "sites",
]

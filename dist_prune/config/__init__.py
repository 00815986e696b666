"""RunConfig in sections: the fields of a recipe. No file here imports torch."""

from dist_prune.config.data import AugmentConfig, CacheConfig
from dist_prune.config.gates import BudgetConfig, FreezeConfig, GatesConfig
from dist_prune.config.optimizer import LrConfig, OptimizerConfig
from dist_prune.config.override import override, read_config
from dist_prune.config.run_config import RESUMABLE_FIELDS, RunConfig

__all__ = [
    "RESUMABLE_FIELDS",
    "AugmentConfig",
    "BudgetConfig",
    "CacheConfig",
    "FreezeConfig",
    "GatesConfig",
    "LrConfig",
    "OptimizerConfig",
    "RunConfig",
    "override",
    "read_config",
]

"""RunConfig in sections: the fields of a recipe. No file here imports torch."""

from dist_prune.config.run_config import (
    AugmentConfig,
    BudgetConfig,
    CacheConfig,
    DataConfig,
    FreezeConfig,
    GatesConfig,
    LrConfig,
    OptimizerConfig,
    RunConfig,
    Section,
    is_resumable,
)
from dist_prune.config.settings import METHOD_FIELDS, fields, override, settings_keys, validated, without_effect

"""RunConfig in sections: the fields of a recipe. No file here imports torch."""

from dist_prune.config.run_config import (
    RESUMABLE_FIELDS,
    AugmentConfig,
    BudgetConfig,
    CacheConfig,
    FreezeConfig,
    GatesConfig,
    LrConfig,
    OptimizerConfig,
    RunConfig,
    Section,
)
from dist_prune.config.settings import METHOD_FIELDS, fields, override, settings_keys, validated, without_effect

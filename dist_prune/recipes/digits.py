"""The embedded run: scikit-learn's real handwritten digits, nothing to download."""

from __future__ import annotations

from dist_prune.config import AugmentConfig, LrConfig, RunConfig


def digits() -> RunConfig:
    """A ResNet-20 on 8 x 8 digits that drops about half of its MACs.

    deepspeed launch/train.py --ds_config ds_configs/zero2.json
    """
    return RunConfig(
        name="digits",
        data="digits",
        model="resnet20",
        epochs=40,
        global_batch_size=128,
        lr=0.1,
        lr_schedule=LrConfig(kind="one_cycle"),
        augment=AugmentConfig(crop_padding=1),
        target_macs=0.5,
    )

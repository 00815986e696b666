"""CIFAR-10 under a MACs budget, quickly: what the benchmarks use.

Make the shards once: dist-prune shards make cifar10 [FOLDER] --out ~/.cache/dist_prune/cifar10.
"""

from __future__ import annotations

from dist_prune.config import AugmentConfig, GatesConfig, LrConfig, RunConfig
from dist_prune.recipes.catalog import DENSE, Catalog

CATALOG = Catalog()
AUGMENT = AugmentConfig(crop_padding=4, flip=True)


@CATALOG.add
def cifar10_resnet20_half() -> RunConfig:
    """ResNet-20 with layer gates, 10 epochs of one-cycle, half of the MACs kept (5 of 9 layers).

    deepspeed launch/train.py --ds_config ds_configs/zero2_bf16.json --recipe cifar10_resnet20_half
    """
    return RunConfig(
        name="cifar10_resnet20_half",
        data="cifar10",
        model="resnet20",
        epochs=10,
        global_batch_size=256,
        lr=0.3,
        lr_schedule=LrConfig(kind="one_cycle"),
        nesterov=True,
        augment=AUGMENT,
        target_macs=0.5,
    )


CATALOG.variant(
    cifar10_resnet20_half,
    "cifar10_resnet20_dense",
    "ResNet-20, dense, 10 epochs of one-cycle: the baseline of cifar10_resnet20_half.",
    **DENSE,
)
CATALOG.variant(
    cifar10_resnet20_half,
    "cifar10_resnet20_channel_half",
    "ResNet-20 with channel gates, 10 epochs of one-cycle, half of the MACs kept.",
    gates=GatesConfig(kind="channel"),
)
for _shape in ("depth", "width", "channels"):
    CATALOG.variant(
        cifar10_resnet20_half,
        f"cifar10_resnet20_uniform_{_shape}",
        f"Baseline of cifar10_resnet20_half: half of the MACs from the start, by uniform {_shape}.",
        method=f"uniform_{_shape}",
    )

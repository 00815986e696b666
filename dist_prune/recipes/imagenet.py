"""ImageNet, which is not in the paper: ResNet-50, 90 epochs, dense and at half of the MACs."""

from __future__ import annotations

from dist_prune.config import AugmentConfig, GatesConfig, LrConfig, RunConfig
from dist_prune.recipes.catalog import DENSE, Catalog

CATALOG = Catalog()


def _imagenet() -> RunConfig:
    return RunConfig(
        name="imagenet",
        data="imagenet",
        model="resnet50",
        epochs=90,
        global_batch_size=1024,
        lr=0.4,
        lr_schedule=LrConfig(kind="cosine"),
        nesterov=True,
        weight_decay=5e-5,
        decay_gates_and_norms=False,
        label_smoothing=0.1,
        image_size=224,
        augment=AugmentConfig(random_resized_crop=True, flip=True),
        workers=8,
    )


CATALOG.with_short(_imagenet, "imagenet_resnet50_dense", "ResNet-50 on ImageNet, dense: the baseline.", **DENSE)
CATALOG.with_short(
    _imagenet,
    "imagenet_resnet50_layer_half",
    "ResNet-50 on ImageNet, layer gates, half of the MACs kept; not in the paper.",
    target_macs=0.5,
)
CATALOG.with_short(
    _imagenet,
    "imagenet_resnet50_channel_half",
    "ResNet-50 on ImageNet, channel gates, half of the MACs kept; not in the paper.",
    gates=GatesConfig(kind="channel"),
    target_macs=0.5,
)

"""CIFAR-10. Make the shards once: dist-prune shards make cifar10 [FOLDER] --out ~/.cache/dist_prune/cifar10."""

from __future__ import annotations

from dist_prune.config import AugmentConfig, GatesConfig, LrConfig, RunConfig
from dist_prune.schedules import Constant, Ramp, Steps

_AUGMENT = AugmentConfig(crop_padding=4, flip=True)


def cifar10_resnet20_dense() -> RunConfig:
    """ResNet-20, dense, 10 epochs of one-cycle: the baseline of ``cifar10_resnet20_half``."""
    return cifar10_resnet20_half().model_copy(
        update={"name": "cifar10_resnet20_dense", "method": "dense", "target_macs": None}
    )


def cifar10_resnet20_half() -> RunConfig:
    """ResNet-20 with layer gates, 10 epochs of one-cycle, about half of the MACs left."""
    return RunConfig(
        name="cifar10_resnet20_half",
        data="cifar10",
        model="resnet20",
        epochs=10,
        global_batch_size=256,
        lr=0.3,
        lr_schedule=LrConfig(kind="one_cycle"),
        nesterov=True,
        augment=_AUGMENT,
        target_macs=0.55,
        polarization=Ramp(end=2.0, from_epoch=2, to_epoch=5),
        target_weight=Steps(values=((2, 1), (4, 2), (8, 0))),
    )


def cifar10_resnet110_paper() -> RunConfig:
    """The paper's Table 2, layer pruned: ResNet-110, 350 epochs; 92.82 % with 53.7 % of the layers open there."""
    return RunConfig(
        name="cifar10_resnet110_paper",
        data="cifar10",
        model="resnet110",
        augment=_AUGMENT,
        polarization=Constant(value=3.0),
        gates=GatesConfig(open_bias=None),
    )


def cifar10_resnet110_lambda_up() -> RunConfig:
    """The paper's Table 5, rising lambda: 0, from epoch 125 on 2, from 190 on 3; 93.18 % there, 55.56 % open."""
    paper = cifar10_resnet110_paper()
    rising = Steps(values=((0, 0), (125, 2), (190, 3)))
    return paper.model_copy(update={"name": "cifar10_resnet110_lambda_up", "polarization": rising})

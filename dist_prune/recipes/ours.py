"""Recipes that are not in the paper: the embedded run, CIFAR-10 under a MACs budget, and ImageNet.

The shards of CIFAR-10 are made once: dist-prune shards make cifar10 [FOLDER] --out ~/.cache/dist_prune/cifar10.
"""

from dist_prune.config import AugmentConfig, DataConfig, GatesConfig, LrConfig, RunConfig
from dist_prune.recipes.catalog import DENSE, add, variant, with_short

CIFAR10_AUGMENT = AugmentConfig(crop_padding=4, flip=True)


@add
def digits() -> RunConfig:
    """A ResNet-20 on scikit-learn's 8 x 8 digits (no download) that drops about half of its MACs.

    deepspeed launch/train.py --ds_config ds_configs/zero2.json
    """
    return RunConfig(
        name="digits",
        data=DataConfig(location="digits"),
        model="resnet20",
        epochs=40,
        global_batch_size=128,
        lr=0.1,
        lr_schedule=LrConfig(kind="one_cycle"),
        augment=AugmentConfig(crop_padding=1),
        target_macs=0.5,
    )


@add
def cifar10_resnet20_half() -> RunConfig:
    """ResNet-20 with layer gates, 10 epochs of one-cycle, half of the MACs kept (5 of 9 layers).

    deepspeed launch/train.py --ds_config ds_configs/zero2_bf16.json --recipe cifar10_resnet20_half
    """
    return RunConfig(
        name="cifar10_resnet20_half",
        data=DataConfig(location="cifar10"),
        model="resnet20",
        epochs=10,
        global_batch_size=256,
        lr=0.3,
        lr_schedule=LrConfig(kind="one_cycle"),
        nesterov=True,
        augment=CIFAR10_AUGMENT,
        target_macs=0.5,
    )


_what = "ResNet-20, dense, 10 epochs of one-cycle: the baseline of cifar10_resnet20_half."
variant(cifar10_resnet20_half, "cifar10_resnet20_dense", _what, **DENSE)
_what = "ResNet-20 with channel gates, 10 epochs of one-cycle, half of the MACs kept."
variant(cifar10_resnet20_half, "cifar10_resnet20_channel_half", _what, gates=GatesConfig(kind="channel"))
for _shape in ("depth", "width", "channels"):
    _what = f"Baseline of cifar10_resnet20_half: half of the MACs from the start, by uniform {_shape}."
    variant(cifar10_resnet20_half, f"cifar10_resnet20_uniform_{_shape}", _what, method=f"uniform_{_shape}")


def _imagenet() -> RunConfig:
    return RunConfig(
        name="imagenet",
        data=DataConfig(location="imagenet"),
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


with_short(_imagenet, "imagenet_resnet50_dense", "ResNet-50 on ImageNet, dense: the baseline.", **DENSE)
_what = "ResNet-50 on ImageNet, layer gates, half of the MACs kept; not in the paper."
with_short(_imagenet, "imagenet_resnet50_layer_half", _what, target_macs=0.5)
_what = "ResNet-50 on ImageNet, channel gates, half of the MACs kept; not in the paper."
_channel = GatesConfig(kind="channel")
with_short(_imagenet, "imagenet_resnet50_channel_half", _what, gates=_channel, target_macs=0.5)

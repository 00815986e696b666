"""Sections about data: augmentation, and the cache of remote shards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dist_prune.config.section import Section

# Images with longer sides are refused anyway: they may be an attack on memory.
LARGEST_SIDE = 2**13


class AugmentConfig(Section):
    """Random changes of training images."""

    crop_padding: int = Field(0, ge=0, le=LARGEST_SIDE, description="shift images by up to this many pixels; 0: never")
    flip: bool = Field(False, description="mirror half of the images")
    random_resized_crop: bool = Field(False, description="cut out a random part of the image and scale it")
    policy: Literal["none", "randaugment", "trivialaugment"] = Field(
        "none", description="augmentation policy of torchvision"
    )
    cutout: int = Field(0, ge=0, le=LARGEST_SIDE, description="side of a blanked square, in pixels; 0: none")
    mixup: float = Field(0.0, ge=0, le=1000, description="alpha of mixup's Beta(alpha, alpha); 0: never")
    cutmix: float = Field(
        0.0, ge=0, le=1000, description="alpha of CutMix; 0: never; with mixup, each in half of the steps"
    )


class CacheConfig(Section):
    """The local cache of shards that are downloaded."""

    folder: str | None = Field(None, description="cache folder; null: in the system's temporary folder")
    gigabytes: float = Field(16.0, gt=0, le=10**6, description="size of the cache")
    timeout: float = Field(60.0, gt=0, le=86400, description="seconds without a byte until a transfer fails")
    retries: int = Field(5, ge=0, le=1000, description="attempts after a failed transfer")

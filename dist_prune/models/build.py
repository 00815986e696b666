"""Networks by name, and the description by which a sliced checkpoint rebuilds them.

``resnet20``, ``resnet56``, ... (depth 6n + 2) are the CIFAR ResNets; any other bare name is a torchvision
model (``resnet18``, ``resnet50``: torchvision wins where both exist); ``timm/NAME`` is a timm model.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn

from dist_prune.errors import UserError, first_line, nearest
from dist_prune.models.cifar_resnet import CifarResNet

# What torchvision and timm take to load weights from elsewhere.
_FETCHING = {
    "weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path",
    "cache_dir",
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build a plain network again: builder name and JSON-able arguments."""

    builder: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The plain network with fresh weights; raises UserError for an unknown builder or bad arguments.

        A description may be untrusted, so nothing is downloaded and no other file is read.
        """
        for name in _FETCHING & self.arguments.keys():
            raise UserError(f"model '{self.builder}': '{name}' would fetch weights; remove it")
        try:
            model = _builder(self.builder)(**self.arguments)
        except UserError:
            raise
        except Exception as error:  # builders raise errors of any kind for bad arguments
            text = f"model '{self.builder}' does not accept {self.arguments}: {first_line(error)}"
            raise UserError(text) from error
        return remember(model, self)

    def as_dict(self) -> dict[str, Any]:
        """The description as plain JSON data."""
        return asdict(self)


def build_model(name: str, *, num_classes: int, in_channels: int = 3, **arguments: Any) -> nn.Module:
    """The plain network called ``name``; it remembers its architecture for the sliced checkpoint.

    Raises UserError for an unknown name (naming the nearest) or arguments that the model does not take.
    """
    arguments = {"num_classes": num_classes, **arguments}
    builder, preset = _resolve(name)
    if builder == "torchvision" or builder.startswith("torchvision/"):
        if in_channels != 3:
            raise UserError(f"{name} takes 3 input channels, the data has {in_channels}; choose a CIFAR ResNet")
    else:
        arguments["in_chans" if builder.startswith("timm/") else "in_channels"] = in_channels
    return Architecture(builder, {**preset, **arguments}).build()


def _resolve(name: str) -> tuple[str, dict[str, Any]]:
    if "/" in name:
        return name, {}
    if name in torchvision.models.list_models(module=torchvision.models):
        return f"torchvision/{name}", {}
    match = re.fullmatch(r"resnet(\d+)", name)
    if match and int(match[1]) >= 8 and (int(match[1]) - 2) % 6 == 0:
        return "cifar_resnet", {"depth": int(match[1])}
    cifar = [f"resnet{depth}" for depth in (20, 32, 44, 56, 110)]
    known = cifar + torchvision.models.list_models(module=torchvision.models)
    raise UserError(f"unknown model '{name}'; {nearest(name, known)} (timm models: timm/NAME)")


def _builder(name: str) -> Any:
    library, _, model = name.partition("/")
    if name == "cifar_resnet":
        return CifarResNet
    if library == "torchvision" and model in torchvision.models.list_models(module=torchvision.models):
        return torchvision.models.get_model_builder(model)
    if library != "timm":
        raise UserError(f"unknown model builder '{name}'; known: cifar_resnet, torchvision/NAME, timm/NAME")
    try:
        import timm
    except ImportError as error:
        raise UserError("timm models need timm: pip install 'dist-prune[timm]'") from error
    if not timm.is_model(model):
        raise UserError(f"unknown timm model '{model}'; {nearest(model, timm.list_models())}")
    return partial(timm.create_model, model, pretrained=False)


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def remember(model: nn.Module, architecture: Architecture) -> nn.Module:
    """Note on ``model`` how it was built; the note travels with copies. Returns the model."""
    model.dist_prune_architecture = architecture  # type: ignore[assignment]
    return model


def architecture_of(model: nn.Module) -> Architecture | None:
    """Return the architecture of a *plain* model: as remembered, or recognized for stock torchvision and timm models.

    Recognition builds candidates without memory (meta device) and compares their whole structure, so a model
    that its owner has edited is not mistaken for the stock one. None where nothing matches.
    """
    remembered = getattr(model, "dist_prune_architecture", None)
    if remembered is not None:
        return remembered
    with torch.device("meta"):
        return next((c for c in _candidates(model) if repr(c.build()) == repr(model)), None)


def _candidates(model: nn.Module) -> list[Architecture]:
    known = getattr(model, "pretrained_cfg", None) or {}
    if "timm" in type(model).__module__ and known.get("architecture"):
        first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        arguments = {"num_classes": model.num_classes, "in_chans": first.in_channels}
        return [Architecture(f"timm/{known['architecture']}", arguments)]
    if isinstance(model, torchvision.models.ResNet):
        names = torchvision.models.list_models(module=torchvision.models, include=["*resne*"])
        return [Architecture(f"torchvision/{name}", {"num_classes": model.fc.out_features}) for name in names]
    return []

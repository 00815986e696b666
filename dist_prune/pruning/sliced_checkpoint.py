"""The sliced checkpoint: a plain small network on disk, without gates, pickle or need of deepspeed.

``config.json`` describes the architecture completely, ``model.safetensors`` holds the tensors and
``README.md`` is the model card. The folder appears whole or not at all.
"""

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from dist_prune.errors import UserError, first_problem
from dist_prune.files import read_regular, remove_leftovers, replace, save_tensors, temporary_beside, write_atomic
from dist_prune.models.build import Architecture, architecture_of
from dist_prune.pruning.batch_norm_folding import fold_batch_norms
from dist_prune.pruning.model_card import model_card
from dist_prune.pruning.sites import Site
from dist_prune.pruning.slicing import remove_units
from dist_prune.pruning.trace import on_meta

FORMAT = "dist_prune.sliced"
VERSION = 1
OWN = "own"  # the builder of networks that no builder of ours knows
_Size = Annotated[int, Field(ge=1, le=2**20)]


class _Normalization(BaseModel):
    """Mean and deviation of each channel, of pixels in [0, 1]."""

    model_config = ConfigDict(strict=True)

    mean: list[Annotated[float, Field(ge=-1e3, le=1e3)]] = Field(min_length=1)
    std: list[Annotated[float, Field(ge=1e-6, le=1e3)]]


class _Description(BaseModel):
    """The content of a config.json, without format and version."""

    model_config = ConfigDict(strict=True)

    builder: str
    arguments: dict[str, Any]
    kept_units: dict[str, list[int]]
    input_shape: Annotated[list[_Size], Field(min_length=3, max_length=3)] | None = None
    resized_side: _Size | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    normalization: _Normalization | None = None
    class_names: list[str] | None = None
    folded_norms: dict[str, str] = {}
    results: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> "_Description":
        if self.normalization:
            lengths = {len(self.normalization.mean), len(self.normalization.std)}
            if len(lengths | ({self.input_shape[0]} if self.input_shape else set())) > 1:
                raise ValueError("normalization does not have one mean and one std for each channel")
        return self


def save_sliced(
    small: nn.Module,
    folder: str | Path,
    *,
    input_shape: Sequence[int] | None = None,
    resized_side: int | None = None,
    interpolation: str | None = None,
    normalization: Mapping[str, Sequence[float]] | None = None,
    class_names: Sequence[str] | None = None,
    results: Mapping[str, Any] | None = None,
) -> Path:
    """Write a collapsed network (or a plain one) as a sliced checkpoint; replace an older one at ``folder``.

    Args:
        small: a sliced network. One that was not built by ``dist_prune.build_model`` and is no stock torchvision ResNet
            or timm model can only be loaded into a dense one of its class (``load_sliced``).
        folder: the checkpoint.
        input_shape: (C, H, W).
        resized_side: pixels to which the shorter side of an image is scaled before its center is cropped; None where
            images are not cropped.
        interpolation: ``bilinear`` or ``bicubic``, by which images are scaled.
        normalization: {"mean": [...], "std": [...]} per channel, on pixels in [0, 1].
        class_names: by label.
        results: figures for the model card, plain JSON data.

    Raises:
        UserError: it is not known how the network was built.
    """
    # Slicing and folding leave these notes: a checkpoint repeats both on a fresh network.
    kept, folded = getattr(small, "dist_prune_kept", {}), getattr(small, "dist_prune_folded", {})
    architecture = architecture_of(small)
    input_shape = input_shape or getattr(small, "dist_prune_input_shape", None)
    if architecture is None and not kept:
        raise UserError(
            f"cannot describe this {type(small).__name__} for a checkpoint: build it with dist_prune.build_model, or "
            "slice it"
        )
    # Modules with gates carry their site; the test needs no import of gates/, which stands above.
    if any(isinstance(getattr(module, "site", None), Site) for module in small.modules()):
        raise UserError("this network still has gates: save what dist_prune.collapse returns")
    if architecture is None:
        architecture = Architecture(OWN, {"class": f"{type(small).__module__}.{type(small).__qualname__}"})
    else:
        _refuse_other_structure(small, architecture, kept, folded, input_shape)
    config: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        **architecture.as_dict(),
        "kept_units": kept,
        "input_shape": list(input_shape) if input_shape else None,
        "resized_side": resized_side,
        "interpolation": interpolation,
        "normalization": normalization,
        "class_names": class_names,
        **({"folded_norms": folded} if folded else {}),
        **({"results": results} if results else {}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in small.state_dict().items()}
    target = Path(folder)
    if not target.name:
        raise UserError(f"name a folder for the checkpoint: '{folder}' itself cannot be replaced")
    remove_leftovers(target.parent, of=target.name)
    beside = temporary_beside(target)
    try:
        beside.mkdir(parents=True)
        save_tensors(beside / "model.safetensors", tensors, {"format": "pt"})
        for name, text in _texts(config).items():
            (beside / name).write_text(text, "utf-8")
        replace(beside, target)
    finally:
        # The older checkpoint; or a half-written one, which must not keep a full disk full.
        shutil.rmtree(beside, ignore_errors=True)
    return target


def add_results(folder: str | Path, results: Mapping[str, Any]) -> None:
    """Add figures (plain JSON data) to the card of a sliced checkpoint; each file is replaced atomically."""
    config = read_sliced_config(folder)
    config["results"] |= results
    for name, text in _texts(config).items():
        write_atomic(Path(folder) / name, text.encode())


def _texts(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the files that describe a checkpoint, by name."""
    return {"config.json": json.dumps(config, indent=2) + "\n", "README.md": model_card(config)}


def load_sliced(folder: str | Path, dense: nn.Module | None = None) -> nn.Module:
    """Return the network of a sliced checkpoint: a plain ``nn.Module`` in eval mode, on CPU, without gates.

    Args:
        folder: the checkpoint.
        dense: for a network of your own, a dense one of its class, which stays as it is; its weights do not matter.

    Raises:
        UserError: the folder is no sliced checkpoint, or its files do not belong together.
    """
    config = read_sliced_config(folder)
    if dense is not None and not isinstance(dense, nn.Module):
        raise UserError(f"dense is a network, such as MyNet(), not {dense!r}")
    if dense is None and config["builder"] == OWN:
        name = config["arguments"].get("class")
        raise UserError(f"{folder} holds a network of a class of your own: load_sliced(folder, dense={name}(...))")
    try:
        tensors = safetensors.torch.load_file(Path(folder) / "model.safetensors")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder}/model.safetensors cannot be read: {error}") from error
    architecture = Architecture(config["builder"], config["arguments"])
    # On the meta device nothing is allocated: the description may be untrusted, and weights come from the file anyway.
    with torch.device("meta"):
        small = _rebuild(architecture, config, on_meta(dense) if dense else None)
        try:
            if (shape := config["input_shape"]) is not None:
                # A forward pass on the meta device computes shapes only.
                dtype = next((p.dtype for p in small.parameters()), torch.float32)
                small.eval()(torch.empty(1, *shape, dtype=dtype))
        except RuntimeError as error:
            text = f"{folder}/config.json: its network takes no images of {shape}: {str(error).splitlines()[0]}"
            raise UserError(text) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{folder}/model.safetensors: {name} holds values that are not finite: its run has diverged"
            )
    # Before anything is allocated: a description of one line can ask for any amount of memory.
    found, needed = ({name: t.shape for name, t in of.items()} for of in (tensors, small.state_dict()))
    if other := sorted(name for name in found.keys() | needed.keys() if found.get(name) != needed.get(name)):
        raise UserError(
            f"{folder}: config.json and model.safetensors do not belong together: {other[0]} is "
            f"{_shape(found.get(other[0]))} in the file, {_shape(needed.get(other[0]))} in the description"
        )
    if len(dict(small.named_buffers())) + len(dict(small.named_parameters())) > len(small.state_dict()):
        # Buffers that no file holds (indices of channels) need real memory, so the network is built once more.
        with torch.random.fork_rng(devices=[]):
            small = _rebuild(architecture, config, copy.deepcopy(dense))
        small.to(next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()))
    small.load_state_dict(tensors, strict=True, assign=True)
    return small.requires_grad_(True).eval()


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else f"{tuple(shape)}"


def read_sliced_config(folder: str | Path) -> dict[str, Any]:
    """Return the description of a sliced checkpoint, absent fields included.

    Raises:
        UserError: it is missing, or no description.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder} is not a sliced checkpoint: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{folder} is not a sliced checkpoint: its config.json has another format")
    if config.get("version") != VERSION:
        raise UserError(f"{folder} is of format version {config.get('version')}; this program reads {VERSION}")
    try:
        return _Description.model_validate(config).model_dump() | config
    except ValidationError as error:
        where, problem = first_problem(error)
        raise UserError(f"{path}: '{where}': {problem}" if where else f"{path}: {problem}") from error


def input_shape_of(source: str | Path) -> tuple[int, ...]:
    """Return the input shape (C, H, W) of a sliced checkpoint; UserError if it is not recorded."""
    shape = read_sliced_config(source)["input_shape"]
    if shape is None:
        raise UserError(f"{source} has no input_shape; save it with save_sliced(..., input_shape=...)")
    return tuple(shape)


def find_sliced(folder: str | Path) -> Path:
    """Return the sliced checkpoint of a run folder; any other folder must be one itself. UserError if there is none."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"there is no folder {path}")
    if (path / "checkpoints").is_dir() and not (path / "sliced").is_dir():
        raise UserError(f"{path} has no sliced network yet; make it with: dist-prune collapse {path}")
    return path / "sliced" if (path / "sliced").is_dir() else path


def _rebuild(architecture: Architecture, config: Mapping[str, Any], dense: nn.Module | None = None) -> nn.Module:
    """Return the sliced network with fresh weights; ``dense`` is sliced in place of what the builder builds."""
    small = architecture.build() if dense is None else dense
    if config["input_shape"]:
        small.dist_prune_input_shape = tuple(config["input_shape"])  # type: ignore[assignment]
    remove_units(small, config["kept_units"])
    folded = config["folded_norms"]
    return fold_batch_norms(small, folded) if folded else small


def _refuse_other_structure(
    small: nn.Module, architecture: Architecture, kept: Any, folded: Any, input_shape: Sequence[int] | None
) -> None:
    # What the description does not rebuild would fail in load_sliced, months after training.
    config = {"kept_units": kept, "folded_norms": folded, "input_shape": input_shape}
    with torch.device("meta"):
        rebuilt = _rebuild(architecture, config)
    if repr(rebuilt) != repr(small):
        raise UserError(
            f"this {type(small).__name__} was changed after it was built as {architecture.builder}; a sliced "
            "checkpoint cannot describe that"
        )

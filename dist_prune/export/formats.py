"""The formats of an export: how each is written, and how it is read back by what its users will read it with."""

from __future__ import annotations

import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from dist_prune.errors import RunError, UserError, first_line
from dist_prune.pruning.sliced_checkpoint import load_sliced, save_sliced

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
# What users of a file need to know.
DESCRIPTION = ("input_shape", "resized_side", "normalization", "class_names")


def record(model: nn.Module, images: Tensor) -> ExportedProgram:
    """``model`` (eval mode) as ``torch.export`` records it on ``images`` (B > 1, C, H, W), for batches of any size.

    Raises RunError where the network computes something that cannot be recorded.
    """
    try:
        return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim(BATCH)},))
    except Exception as error:  # torch raises errors of many kinds here
        name = type(model).__name__
        raise RunError(f"torch.export cannot record this {name}: {first_line(error)}") from error


class _Fp16(nn.Module):
    """A network that computes in fp16 and is given, and gives, fp32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes)."""
        return self.network(images.half()).float()


class Format(ABC):
    """One format. ``suffix``: of its files, empty for a folder; ``packages``: what it needs beyond this project."""

    suffix: str
    default: str
    packages: tuple[str, ...] = ()

    def require(self) -> None:
        """Raise UserError where a package is missing that the format needs."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"exporting to {self.suffix} needs {', '.join(missing)}: pip install 'dist-prune[onnx]'")

    @abstractmethod
    def write(self, model: nn.Module, images: Tensor, config: Mapping[str, Any], path: Path) -> None:
        """Write ``model`` (all of it fp32 or fp16) to ``path``; config: that of its sliced checkpoint."""

    @abstractmethod
    def read(self, path: Path) -> Callable[[Tensor], Tensor]:
        """The written network: fp32 images (B, C, H, W) -> fp32 logits (B, classes)."""


class Pt2(Format):
    """``torch.export``'s own archive: torch reads it, in Python or C++."""

    suffix, default = ".pt2", "model.pt2"

    def write(self, model: nn.Module, images: Tensor, config: Mapping[str, Any], path: Path) -> None:
        """Weights, graph, and ``config.json`` as an extra file of the archive."""
        program = record(_fp32_outside(model), images)
        extra = {"config.json": json.dumps({key: config.get(key) for key in DESCRIPTION})}
        torch.export.save(program, path, extra_files=extra)

    def read(self, path: Path) -> Callable[[Tensor], Tensor]:
        """Load it by ``torch.export.load``."""
        return torch.export.load(path).module()


class Onnx(Format):
    """ONNX, for ONNX Runtime and others; the input is called images, the output logits."""

    suffix, default = ".onnx", "model.onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")

    def write(self, model: nn.Module, images: Tensor, config: Mapping[str, Any], path: Path) -> None:
        """One file, with what users need to know as JSON in the model's metadata."""
        program = record(_fp32_outside(model), images)
        exported = torch.onnx.export(program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False)
        assert exported is not None
        _name_batch(exported.model)
        exported.model.metadata_props.update({key: json.dumps(config.get(key)) for key in DESCRIPTION})
        exported.save(path)

    def read(self, path: Path) -> Callable[[Tensor], Tensor]:
        """Load it into ONNX Runtime, on the CPU."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised as well
        # By default it binds a thread to every core there is, also those that others keep busy.
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


class Safetensors(Format):
    """A sliced checkpoint as the Hugging Face Hub lays it out: README.md, config.json, model.safetensors."""

    suffix, default = "", "safetensors"

    def write(self, model: nn.Module, images: Tensor, config: Mapping[str, Any], path: Path) -> None:
        """The folder; figures that its source has on its card travel along."""
        description = {key: config.get(key) for key in DESCRIPTION}
        save_sliced(model, path, **description, results=config.get("results"))

    def read(self, path: Path) -> Callable[[Tensor], Tensor]:
        """Load it by ``load_sliced``; images get the precision of the weights."""
        model = load_sliced(path)
        dtype = next(model.parameters()).dtype
        return lambda images: model(images.to(dtype)).float()


FORMATS: dict[str, Format] = {"onnx": Onnx(), "pt2": Pt2(), "safetensors": Safetensors()}


def _fp32_outside(model: nn.Module) -> nn.Module:
    return _Fp16(model).eval() if next(model.parameters()).dtype == torch.float16 else model


def _name_batch(model: Any) -> None:
    """Rename the free dimension to "batch" everywhere; torch numbers it."""
    import onnx_ir

    free = str(model.graph.inputs[0].shape[0])
    for value in [v for node in model.graph for v in node.outputs] + list(model.graph.inputs):
        if value.shape is not None and any(str(size) == free for size in value.shape):
            value.shape = onnx_ir.Shape([BATCH if str(size) == free else size for size in value.shape])

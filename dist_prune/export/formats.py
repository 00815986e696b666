"""The formats of an export: how each is written, and how it is read back by what its users will read it with."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass
class Format:
    """One format.

    default: name of its file, or of its folder.
    write: writes a network, all of it fp32 or fp16, recorded on images (B > 1, C, H, W), to a path. The mapping is the
        config of its sliced checkpoint.
    read: reads it back, as fp32 images (B, C, H, W) -> fp32 logits (B, classes).
    packages: what it needs beyond this project.
    """

    default: str
    write: Callable[[nn.Module, Tensor, Mapping[str, Any], Path], None]
    read: Callable[[Path], Callable[[Tensor], Tensor]]
    packages: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """The suffix of its files, empty for a folder."""
        return Path(self.default).suffix

    def require(self) -> None:
        """Raise UserError where a package is missing that the format needs."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"exporting to {self.suffix} needs {', '.join(missing)}: pip install 'dist-prune[onnx]'")


class _Fp16(nn.Module):
    """A network that computes in fp16 and is given, and gives, fp32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes)."""
        return self.network(images.half()).float()


def _record_fp32(model: nn.Module, images: Tensor) -> ExportedProgram:
    """Record the network so that images and logits are fp32, whatever its weights are."""
    return record(_Fp16(model).eval() if next(model.parameters()).dtype == torch.float16 else model, images)


def _write_pt2(model: nn.Module, images: Tensor, config: Mapping[str, Any], path: Path) -> None:
    extra = {"config.json": json.dumps({key: config.get(key) for key in DESCRIPTION})}
    torch.export.save(_record_fp32(model, images), path, extra_files=extra)


def _read_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def _write_onnx(model: nn.Module, images: Tensor, config: Mapping[str, Any], path: Path) -> None:
    program = _record_fp32(model, images)
    exported = torch.onnx.export(program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False)
    assert exported is not None
    _name_batch(exported.model)
    exported.model.metadata_props.update({key: json.dumps(config.get(key)) for key in DESCRIPTION})
    exported.save(path)


def _name_batch(model: Any) -> None:
    """Rename the free dimension to "batch" everywhere; torch numbers it."""
    import onnx_ir

    free = str(model.graph.inputs[0].shape[0])
    for value in [v for node in model.graph for v in node.outputs] + list(model.graph.inputs):
        if value.shape is not None and any(str(size) == free for size in value.shape):
            value.shape = onnx_ir.Shape([BATCH if str(size) == free else size for size in value.shape])


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    # By default it binds a thread to every core there is, also those that others keep busy.
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _write_safetensors(model: nn.Module, images: Tensor, config: Mapping[str, Any], path: Path) -> None:
    # Figures that the source has on its card travel along.
    save_sliced(model, path, **{key: config.get(key) for key in DESCRIPTION}, results=config.get("results"))


def _read_safetensors(path: Path) -> Callable[[Tensor], Tensor]:
    model = load_sliced(path)
    dtype = next(model.parameters()).dtype
    return lambda images: model(images.to(dtype)).float()


FORMATS = {
    # For ONNX Runtime and others: one file, with what users need to know as JSON in the metadata of the model.
    "onnx": Format("model.onnx", _write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
    # torch.export's own archive, which torch reads in Python or C++, with config.json as an extra file.
    "pt2": Format("model.pt2", _write_pt2, _read_pt2),
    # A sliced checkpoint as the Hugging Face Hub lays it out: README.md, config.json, model.safetensors.
    "safetensors": Format("safetensors", _write_safetensors, _read_safetensors),
}

"""Export: a sliced network as a file that runs without this package (ONNX, pt2), or as a Hub folder (safetensors).

Fold, convert, write, read back as users will, compare; only a file that passed gets its final name.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from dist_prune.errors import RunError, UserError, first_line, nearest
from dist_prune.files import remove_leftovers, replace, temporary_beside
from dist_prune.pruning.batch_norm_folding import fold_batch_norms, foldable_norms
from dist_prune.pruning.sliced_checkpoint import (
    find_sliced,
    input_shape_of,
    load_sliced,
    read_sliced_config,
    save_sliced,
)

BATCHES = (1, 3)  # sizes at which an exported file is compared; it is recorded at another one
RECORDED_AT = 2
LOGIT_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}  # of max(1, the largest logit)
INPUT, OUTPUT, BATCH = "images", "logits", "batch"
# What users of a file need to know.
DESCRIPTION = ("input_shape", "resized_side", "interpolation", "normalization", "class_names")


def export_sliced(
    folder: str | Path, format: str, *, fold_bn: bool = False, half: bool = False, out: str | Path | None = None
) -> dict[str, Any]:
    """Write the sliced network of a run folder, or of a sliced checkpoint, in a name of ``FORMATS``.

    fold_bn: fold batch norms into convolutions where that is exact; half: fp16 weights and computation (images and
    logits stay fp32, but in safetensors); out: the file (or folder, for safetensors), or a folder to put it into
    (default: FOLDER/export). Returns what was done, for showing.

    The file is read back as its users will, and compared at two batch sizes with the fp32 network before it. Raises
    RunError, and keeps no file, if they differ by more than ``LOGIT_TOLERANCE``; UserError for what cannot be exported.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format '{format}'; {nearest(format, FORMATS)}")
    chosen, source = FORMATS[format], find_sliced(folder)
    config = read_sliced_config(source)
    if missing := [name for name in chosen.packages if importlib.util.find_spec(name) is None]:
        raise UserError(f"exporting to {format} needs {', '.join(missing)}: pip install 'dist-prune[onnx]'")
    target = _target(chosen, Path(folder), out)
    shape, model = input_shape_of(source), load_sliced(source).float()
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    images = torch.randn(max(BATCHES), *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = [model(images[:size]) for size in BATCHES]
        folded = foldable_norms(record(model, images[:RECORDED_AT]), model) if fold_bn else {}
        fold_batch_norms(model, folded)
        model = model.half() if half else model
        target.parent.mkdir(parents=True, exist_ok=True)
        with _draft_folder(target) as beside:
            draft = beside / target.name
            with _reported("the network cannot be written in this format", but=(OSError,)):
                chosen.write(model, images[:RECORDED_AT], config, draft)
            tolerance = LOGIT_TOLERANCE[next(model.parameters()).dtype] * max(1.0, float(expected[-1].abs().max()))
            difference = _checked(chosen, draft, images, expected, tolerance, "; remove --half" if half else "")
            # The weights of a large ONNX file lie beside it, in a file that it refers to by name.
            for path in beside.iterdir():
                replace(path, target.with_name(path.name))
    files = target.iterdir() if target.is_dir() else [target]
    return {
        "exported": str(target),
        "megabytes": f"{sum(path.stat().st_size for path in files) / 1e6:.2f}",
        "weights": "fp16" if half else "fp32",
        "batch norms folded": f"{len(folded)} of {norms}",
        "checked at batch sizes": ", ".join(map(str, BATCHES)),
        "largest difference": f"{difference:.3g} (tolerance {tolerance:.3g})",
    }


def _target(format: Format, folder: Path, out: str | Path | None) -> Path:
    """Return the path of the export; raise UserError for a wrong suffix, or for a path that is taken."""
    target = folder / "export" / format.default if out is None else Path(out)
    if format.suffix:
        target = target / format.default if target.is_dir() else target
        if target.suffix != format.suffix:
            raise UserError(f"--out {target}: a file of this format ends in {format.suffix}")
    elif target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        read_sliced_config(target)  # nothing but an older export is replaced
        if target.resolve() == find_sliced(folder).resolve():
            raise UserError(f"--out {target} is what is to be exported; name another folder")
    return target


@contextlib.contextmanager
def _draft_folder(target: Path) -> Iterator[Path]:
    """Make a folder beside ``target``, and remove it, and those of exports that were killed."""
    remove_leftovers(target.parent, of=target.name)
    beside = temporary_beside(target)
    beside.mkdir()
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _reported(failure: str, advice: str = "", but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn an error of any library, each of which has its own kinds, into a RunError of one line; ``but`` these."""
    try:
        yield
    except but:
        raise
    except Exception as error:
        raise RunError(f"{failure}: {first_line(error)}{advice}") from error


def _checked(
    format: Format, path: Path, images: Tensor, expected: Sequence[Tensor], tolerance: float, advice: str
) -> float:
    """The largest absolute difference between written and expected logits; RunError where it is too large."""
    with _reported("the exported network cannot be run, so no file is kept", advice):
        network = format.read(path)
        found = [(network(images[: len(logits)]) - logits).abs().max() for logits in expected]
    difference = float(torch.stack(found).max())  # NaN where one is
    if not difference <= tolerance:
        raise RunError(
            f"the exported network differs by {difference:.3g} from the one it was made of (tolerance "
            f"{tolerance:.3g}), so no file is kept{advice}"
        )
    return difference


def record(model: nn.Module, images: Tensor) -> ExportedProgram:
    """``model`` (eval mode) as ``torch.export`` records it on ``images`` (B > 1, C, H, W), for batches of any size.

    Raises RunError where the network computes something that cannot be recorded.
    """
    with _reported(f"torch.export cannot record this {type(model).__name__}"):
        return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim(BATCH)},))


@dataclass
class Format:
    """One format."""

    # Name of its file, or of its folder.
    default: str
    # Writes a network (all fp32 or all fp16), recorded on images (B > 1, C, H, W); the mapping is its stored config.
    write: Callable[[nn.Module, Tensor, Mapping[str, Any], Path], None]
    # Reads it back, as fp32 images (B, C, H, W) -> fp32 logits (B, classes).
    read: Callable[[Path], Callable[[Tensor], Tensor]]
    # What it needs beyond this project.
    packages: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """The suffix of its files, empty for a folder."""
        return Path(self.default).suffix


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


def _write_onnx(model: nn.Module, images: Tensor, config: Mapping[str, Any], path: Path) -> None:
    program = _record_fp32(model, images)
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT], "dynamic_shapes": ({0: BATCH},)}
    exported = torch.onnx.export(program, **names, dynamo=True, verbose=False)
    assert exported is not None
    exported.model.metadata_props.update({key: json.dumps(config.get(key)) for key in DESCRIPTION})
    exported.save(path)


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
    "pt2": Format("model.pt2", _write_pt2, lambda path: torch.export.load(path).module()),
    # A sliced checkpoint as the Hugging Face Hub lays it out: README.md, config.json, model.safetensors.
    "safetensors": Format("safetensors", _write_safetensors, _read_safetensors),
}

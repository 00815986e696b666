"""Export: fold, convert, write, read back, compare; only a file that passed gets its final name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dist_prune.errors import RunError, UserError, first_line, nearest
from dist_prune.export.formats import FORMATS, Format, record
from dist_prune.pruning.batch_norm_folding import fold_batch_norms, foldable_norms
from dist_prune.pruning.sliced_checkpoint import (
    find_sliced,
    input_shape_of,
    load_sliced,
    read_sliced_config,
    replace_folder,
)

BATCHES = (1, 3)  # sizes at which an exported file is compared; it is recorded at another one
RECORDED_AT = 2
LOGIT_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}  # of max(1, the largest logit)


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
    chosen.require()
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
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}.") as beside:
            draft = Path(beside) / target.name
            _write(chosen, model, images[:RECORDED_AT], config, draft)
            tolerance = LOGIT_TOLERANCE[next(model.parameters()).dtype] * max(1.0, float(expected[-1].abs().max()))
            difference = _checked(chosen, draft, images, expected, tolerance, "; remove --half" if half else "")
            place = replace_folder if draft.is_dir() else os.replace
            place(draft, target)
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


def _write(format: Format, model: nn.Module, images: Tensor, config: Mapping[str, Any], draft: Path) -> None:
    try:
        format.write(model, images, config, draft)
    except OSError:
        raise
    except Exception as error:  # each library has errors of its own
        raise RunError(f"the network cannot be written in this format: {first_line(error)}") from error


def _checked(
    format: Format, path: Path, images: Tensor, expected: Sequence[Tensor], tolerance: float, advice: str
) -> float:
    """The largest absolute difference between written and expected logits; RunError where it is too large."""
    try:
        network = format.read(path)
        found = [(network(images[: len(logits)]) - logits).abs().max() for logits in expected]
    except Exception as error:  # each library has errors of its own
        reason = f"{first_line(error)}{advice}"
        raise RunError(f"the exported network cannot be run, so no file is kept: {reason}") from error
    difference = float(torch.stack(found).max())  # NaN where one is
    if not difference <= tolerance:
        raise RunError(
            f"the exported network differs by {difference:.3g} from the one it was made of (tolerance "
            f"{tolerance:.3g}), so no file is kept{advice}"
        )
    return difference

"""The run folder: the paths of its files, and writing and reading its records."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from dist_prune.errors import UserError, first_problem
from dist_prune.files import read_regular, to_json, write_at_end, write_atomic

Kind = Literal["train", "eval", "summary"]
State = Literal["running", "done", "stopped", "failed"]
Record = dict[str, Any]

EVAL_KEYS = (
    "epoch", "step", "seconds", "images_per_second", "accuracy", "accuracy_consensus", "open_ratio", "r_polar",
    "macs", "macs_dense", "macs_ratio", "energy_joules",
)  # fmt: skip
SUMMARY_KEYS = (
    "accuracy_sliced", "macs", "macs_dense", "macs_ratio", "parameters", "parameters_dense", "agreement",
    "units_flipped_by_rounding", "max_abs_difference", "seconds_total", "energy_joules", "world_size",
)  # fmt: skip
_REQUIRED: dict[str, tuple[str, ...]] = {"train": ("epoch", "step"), "eval": EVAL_KEYS, "summary": SUMMARY_KEYS}


class MaskSite(BaseModel):
    """One site of a mask.json, as far as reports show it. None: not recorded."""

    name: str = ""
    kind: str = ""
    units: int | None = None
    kept: list[int] | None = None
    mean_activation: float | None = None
    agreement: float | None = None
    undecided: int = 0


class _MaskFile(BaseModel):
    sites: list[MaskSite] = []


class _StatusFile(BaseModel):
    state: State
    reason: str | None = None
    last_step: int
    resumed_from: int | None = None


_Content = TypeVar("_Content")


def read_as(kind: type[_Content], path: Path, what: str) -> _Content | None:
    """Return the content of a JSON file, validated by pydantic; None without that file, ValueError if it is damaged."""
    try:
        return TypeAdapter(kind).validate_json(read_regular(path)) if path.exists() else None
    except ValidationError as error:
        where, problem = first_problem(error)
        raise ValueError(f"{path} is not {what}: '{where}': {problem}") from error


def _is_record(record: Any) -> bool:
    kind = record.get("kind") if isinstance(record, dict) else None
    return isinstance(kind, str) and all(key in record for key in _REQUIRED.get(kind, ("kind",)))


class RunFolder:
    """The folder of one run. `RunFolder(path)` reads one; `RunFolder.create` prepares one for a run.

    Args:
        path: the folder.
        check_owner: raises if another invocation owns the folder by now; called before each write.
    """

    def __init__(self, path: str | os.PathLike[str], check_owner: Callable[[], None] = lambda: None) -> None:
        self.check_owner = check_owner
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.status = self.path / "status.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.mask = self.path / "mask.json"
        self.sliced = self.path / "sliced"
        self.report = self.path / "report"

    @classmethod
    def create(cls, path: str | os.PathLike[str], resume: bool) -> "RunFolder":
        """Make the folder, or take an existing one: an empty one, or with `resume` that of a run.

        Raises:
            UserError: it holds a run and `resume` is False; the path is a file, or nothing can be written there.
        """
        run = cls(path)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            if run.holds_run() and not resume:
                raise UserError(f"{run.path} already holds a run; pass --resume to continue it or choose another --out")
            tempfile.TemporaryFile(dir=run.path).close()
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{run.path} cannot be a run folder: a file is in the way") from error
        except OSError as error:
            raise UserError(f"cannot write to the run folder {run.path}: {error.strerror}") from error
        return run

    def holds_run(self) -> bool:
        """Return True if a run has begun here."""
        return any(path.exists() for path in (self.config, self.status, self.metrics, self.checkpoints))

    def write_json(self, path: Path, value: Any) -> None:
        """Write `value` as indented JSON, atomically; NaN and infinities become null."""
        self.check_owner()
        write_atomic(path, (to_json(value, indent=2) + "\n").encode())

    def write_status(
        self, state: State, reason: str | None = None, last_step: int = 0, resumed_from: int | None = None
    ) -> None:
        """Write status.json, for people and for launchers that flatten exit codes."""
        status = {"state": state, "reason": reason, "last_step": last_step, "resumed_from": resumed_from}
        self.write_json(self.status, status)

    def read_status(self) -> Record | None:
        """Return the content of status.json, or None where no run has begun; ValueError if it is damaged."""
        status = read_as(_StatusFile, self.status, "the status.json of a run")
        return status.model_dump() if status else None

    def read_sites(self) -> list[MaskSite]:
        """Return the sites of mask.json, none without that file; ValueError if it is not that of a mask."""
        mask = read_as(_MaskFile, self.mask, "a mask.json")
        return mask.sites if mask else []

    def append(self, kind: Kind, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl: the kind, its required keys in their order, then the others.

        None means not measured.

        Raises:
            ValueError: a required key is missing.
            OSError: the line cannot be written; the file is as it was.
        """
        missing = [key for key in _REQUIRED[kind] if key not in record]
        if missing:
            raise ValueError(f"{kind} record lacks {', '.join(missing)}")
        ordered = {"kind": kind, **{key: record[key] for key in _REQUIRED[kind]}}
        line = to_json({**ordered, **record, "kind": kind}) + "\n"
        self.check_owner()
        self._complete_tail()
        write_at_end(self.metrics, line.encode())

    def read_metrics(self, kind: Kind | None = None) -> list[Record]:
        """Return the records in the order in which they were written, all or those of one kind.

        A half-written last line of a killed process is ignored; any other damaged line raises ValueError.
        """
        return [record for record in self._records() if kind in (None, record["kind"])]

    def _records(self) -> Iterator[Record]:
        """Yield the records one by one: those of a long run must not be in memory all at once."""
        if not self.metrics.exists():
            return
        if not self.metrics.is_file():
            raise ValueError(f"{self.metrics} is no regular file")
        with open(self.metrics, "rb") as file:
            lines = enumerate((line for line in file if line.strip()), start=1)
            for number, line in lines:
                try:
                    record = json.loads(line.decode())
                except (ValueError, RecursionError) as error:
                    if next(lines, None) is not None:
                        raise ValueError(f"{self.metrics}: record {number} is not JSON") from error
                    return
                if not _is_record(record):
                    raise ValueError(f"{self.metrics}: record {number} is not one of a run")
                yield record

    def drop_after(self, step: int) -> None:
        """Remove, atomically, the records that a run resumed at `step` writes again: later ones and the summary.

        Records of `step` itself stay.
        """
        if self.metrics.exists():
            self._rewrite(r for r in self._records() if r["kind"] != "summary" and r["step"] <= step)

    def _complete_tail(self) -> None:
        """Complete or remove a half-written last line, so that the next record starts a line of its own."""
        if not self.metrics.exists() or self.metrics.stat().st_size == 0:
            return
        with open(self.metrics, "rb") as file:
            file.seek(-1, os.SEEK_END)
            whole = file.read() == b"\n"
        if not whole:
            self._rewrite(self._records())

    def _rewrite(self, records: Iterable[Record]) -> None:
        self.check_owner()
        write_atomic(self.metrics, "".join(to_json(record) + "\n" for record in records).encode())

"""kill -9 at named moments of runs of two ranks, again and again; prints and writes the result.

    python benchmarks/kills.py [--kills 200] [--minutes 60] [--seed 1] [--out benchmarks/results/kills.json]

A run is killed at a random point within a function that stands for a moment (``MOMENTS``), then resumed and killed in
the next one, until it is done; its network is exported, and the export is killed as well. Then the next run begins. A
kill counts for its moment if the function had begun and had not ended. After each kill no checkpoint may be damaged or
lost; at the end of each run, losses, mask, sliced network and export must equal those of an undisturbed run to the last
bit, and nothing may be left over. Starts the ranks as the drills do, so it needs a clone. Exit code 1 if a guarantee
was broken.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / folder) for folder in ("drills", "helpers"))]
from commands import Forked, environment  # noqa: E402
from drill import Ranks, load_newest, losses  # noqa: E402

# The function that stands for each moment of training, and how often a start enters it before it is killed, at most.
MOMENTS = {
    "training": ("dist_prune.training.loop", "Trainer._step", 3),
    "saving": ("dist_prune.checkpoints.writer", "save_checkpoint", 2),
    "voting": ("dist_prune.training.phase_trainer", "PhaseTrainer.vote", 1),
    "collapsing": ("dist_prune.training.loop", "collapse_difference", 1),
    "writing results": ("dist_prune.training.evaluate", "_write", 1),
}
EXPORTING = ("dist_prune.cli.runs", "export", 1)
RANK_0_ONLY = ("saving", "writing results")
# In the order in which a run meets them: the gated network collapses in flight after the first of two epochs.
COURSE = (
    "training", "saving", "voting", "training", "collapsing", "saving", "training", "training", "voting", "saving",
    "collapsing", "writing results", "writing results",
)  # fmt: skip
EXPORTS = 3  # kills of each export
FORMATS = ("safetensors",)
RUN = (
    "model=resnet8", "model_args.width=4", "epochs=2", "mask_samples=64", "log_every=1", "workers=0",
    "global_batch_size=128", "checkpoint_every=2", "target_macs=null", "freeze.collapse_epoch=1",
)  # fmt: skip
PATIENCE = 600.0  # seconds for a start, on a machine that does other things as well


@dataclass(frozen=True)
class Within:
    """Notes when a rank enters and leaves functions, with seconds, and kills processes within one of them.

    functions: (module, name) by moment. log: gets "MOMENT in" and "MOMENT out SECONDS". kill: (moment, which time,
    seconds later); None for no kill. peers: files with the numbers of the processes to kill first.
    """

    functions: dict[str, tuple[str, str]]
    log: Path
    own: Path
    kill: tuple[str, int, float] | None = None
    peers: tuple[Path, ...] = ()

    def __call__(self) -> None:
        """Prepare this process."""
        self.own.write_text(str(os.getpid()))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for moment, (module, name) in self.functions.items():
            holder: Any = importlib.import_module(module)
            *path, last = name.split(".")
            for part in path:
                holder = getattr(holder, part)
            setattr(holder, last, self._watched(moment, getattr(holder, last)))

    def _watched(self, moment: str, real: Callable[..., Any]) -> Callable[..., Any]:
        entered = 0

        def watched(*arguments: Any, **named: Any) -> Any:
            nonlocal entered
            entered += 1
            began = time.monotonic()
            self._note(f"{moment} in")
            if self.kill and self.kill[:2] == (moment, entered):
                threading.Thread(target=self._strike, args=(self.kill[2],), daemon=True).start()
            try:
                return real(*arguments, **named)
            finally:
                self._note(f"{moment} out {time.monotonic() - began:.4f}")

        return watched

    def _note(self, text: str) -> None:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{text}\n".encode())
        os.close(descriptor)

    def _strike(self, seconds: float) -> None:
        time.sleep(seconds)
        for path in self.peers:
            os.kill(int(path.read_text()), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def _functions(table: dict[str, tuple[str, str, int]]) -> dict[str, tuple[str, str]]:
    return {moment: (module, name) for moment, (module, name, _) in table.items()}


def inside(log: Path, moment: str) -> bool:
    """Return True if the last entry into a moment was not followed by its end."""
    lines = [line for line in log.read_text().splitlines() if line.startswith(f"{moment} ")] if log.exists() else []
    return bool(lines) and lines[-1] == f"{moment} in"


@dataclass
class Course:
    """One run in a folder; ``seconds``: how long a moment takes, by name."""

    folder: Path
    seconds: dict[str, float]
    chance: random.Random

    @property
    def log(self) -> Path:
        """What the victim, or the export, has noted since its start."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def start(self, kill: tuple[str, int, float] | None = None, victims: tuple[int, ...] = (0,)) -> Ranks:
        """Start the ranks, from the newest checkpoint if there is one."""
        words = ["--ds_config", "ds_configs/zero2.json", "--out", str(self.folder), "--resume", "--set", *RUN]
        own = [self.folder.with_name(f"{self.folder.name}.{rank}.pid") for rank in range(2)]
        self.log.unlink(missing_ok=True)
        # The first victim kills the others and itself.
        peers = tuple(own[rank] for rank in victims[1:])
        sabotage = {
            rank: Within(_functions(MOMENTS), self.log, own[rank], kill, peers)
            if rank == victims[0]
            else Within({}, self.log, own[rank])
            for rank in range(2)
        }
        return Ranks(self.folder, 2, words, sabotage)

    def strike(self, moment: str) -> dict[str, Any]:
        """Start the run, kill ranks within a moment, and see how it ends."""
        choices = ((0,), (0, 1)) if moment in RANK_0_ONLY else ((0,), (1,), (0, 1))
        victims = self.chance.choice(choices)
        kill = (moment, self.chance.randint(1, MOMENTS[moment][2]), self.chance.uniform(0, self.seconds[moment]))
        before = newest(self.folder)[0]
        ranks = self.start(kill, victims)
        codes, told = ranks.wait(PATIENCE), ranks.told()
        ranks.end()
        step, damaged = newest(self.folder)
        survivors = [code for rank, code in enumerate(codes) if rank not in victims]
        struck = all(codes[rank] == -signal.SIGKILL for rank in victims)
        kept = step >= before and not damaged and survivors == [1] * len(survivors) and len(told) == len(survivors)
        return {
            "moment": moment, "victims": list(victims), "struck": struck, "inside": struck and inside(self.log, moment),
            "checkpoint_before": before, "checkpoint_after": step, "kept": kept or not struck, "told": told,
            "codes": codes,
        }  # fmt: skip

    def finish(self) -> None:
        """Let the run come to its end."""
        ranks = self.start()
        codes = ranks.wait(PATIENCE)
        assert codes == [0, 0], (codes, ranks.told())

    def export(self, format: str, kill: float | None = None) -> bool | None:
        """Export; kill: seconds after which it is killed. Return True if it was within, None if it ended before."""
        self.log.unlink(missing_ok=True)
        words = ["dist-prune", "export", str(self.folder), "--format", format]
        plan = None if kill is None else ("exporting", 1, kill)
        prepare = Within({"exporting": EXPORTING[:2]}, self.log, self.log.with_suffix(".pid"), plan)
        with Forked(_export, prepare, words, variables=environment(Path(os.environ["DIST_PRUNE_DATA"]))) as command:
            ended = command.wait(PATIENCE)
        assert ended.code in ((0, -signal.SIGKILL) if kill is not None else (0,)), ended
        return None if ended.code == 0 else inside(self.log, "exporting")


def _export(prepare: Within, words: list[str]) -> None:
    sys.argv = words
    prepare()
    from dist_prune.cli import main

    # The table of commands holds the function itself.
    main.COMMANDS["export"] = importlib.import_module(EXPORTING[0]).export
    main.main()


def newest(folder: Path) -> tuple[int, list[str]]:
    """Return the step of the newest checkpoint, 0 if there is none, and what is damaged."""
    state, damaged = load_newest(folder / "checkpoints")
    return (state.progress.step if state else 0), damaged


def differences(mine: Path, theirs: Path) -> list[str]:
    """Return what differs between a run and the undisturbed one, and what is left over."""
    found = [] if losses(mine) == losses(theirs) else ["losses"]
    for name in ("mask.json", "sliced/model.safetensors"):
        found += [name] if (mine / name).read_bytes() != (theirs / name).read_bytes() else []
    for mine_, theirs_ in zip(_exported(mine), _exported(theirs), strict=True):
        same = mine_.name == theirs_.name and mine_.read_bytes() == theirs_.read_bytes()
        found += [] if same else [str(mine_.relative_to(mine))]
    (one, _), (other, _) = (load_newest(folder / "checkpoints") for folder in (mine, theirs))
    assert one is not None
    assert other is not None
    found += [name for name, tensor in one.model.weights.items() if not torch.equal(tensor, other.model.weights[name])]
    left = [str(path.relative_to(mine)) for path in (*mine.rglob(".*"), *mine.glob("run.lock"))]
    return found + [f"left over: {name}" for name in left]


def _exported(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "export").rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60, help="begin no other run after these")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default="benchmarks/results/kills.json")
    options = parser.parse_args()
    home = tempfile.mkdtemp(prefix="kills-")
    # After multiprocessing has removed its own folder, which lies there.
    Finalize(None, shutil.rmtree, (home, True), exitpriority=-200)
    # What killed processes leave among the temporary files is found there.
    os.environ |= {"OMP_NUM_THREADS": "1", "TMPDIR": home, "DIST_PRUNE_DATA": f"{home}/data"}
    tempfile.tempdir = None
    result = kill_again_and_again(Path(home), options.kills, 60 * options.minutes, random.Random(options.seed))
    command = f"python benchmarks/kills.py --kills {options.kills} --minutes {options.minutes:g} --seed {options.seed}"
    Path(options.out).write_text(json.dumps({"command": command, **result}, indent=1) + "\n")
    print(json.dumps(result))
    sys.exit(not result["kept"])


def kill_again_and_again(home: Path, kills: int, most_seconds: float, chance: random.Random) -> dict[str, Any]:
    began = time.monotonic()
    straight = Course(home / "straight", {}, chance)
    straight.finish()
    seconds = durations(straight.log)
    for format in FORMATS:
        straight.export(format)
        seconds |= durations(straight.log)
    struck: list[dict[str, Any]] = []
    faults: list[str] = []
    runs = 0
    while len(struck) < kills and time.monotonic() - began < most_seconds:
        runs += 1
        run = Course(home / f"run{runs}", seconds, chance)
        for moment in COURSE:
            struck += [found for found in [run.strike(moment)] if found["struck"]]
            if struck and not struck[-1]["kept"]:
                faults.append(f"run {runs}: {struck[-1]}")
        run.finish()
        for format in FORMATS:
            for _ in range(EXPORTS):
                within = run.export(format, chance.uniform(0, seconds["exporting"]))
                if within is not None:
                    struck.append({"moment": "exporting", "inside": within, "kept": True, "victims": [0]})
            run.export(format)
        faults += [f"run {runs}: {found}" for found in differences(run.folder, straight.folder)]
        print(f"{len(struck)} kills, {runs} runs, {(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr)
    return {
        "benchmark": "kills",
        "date": datetime.date.today().isoformat(),
        "kills": len(struck),
        "runs": runs,
        "inside_the_moment": dict(Counter(found["moment"] for found in struck if found["inside"])),
        "between_moments": sum(not found["inside"] for found in struck),
        "victims": dict(Counter(" and ".join(map(str, found["victims"])) for found in struck)),
        "resumed": sum(found["moment"] != "exporting" for found in struck),
        "faults": faults,
        "kept": not faults,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores shared with other work",
        "torch": torch.__version__,
    }


def durations(log: Path) -> dict[str, float]:
    """Return the least seconds of each moment, so that a kill within them seldom comes too late."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for line in log.read_text().splitlines():
        moment, _, took = line.rpartition(" out ")
        if moment:
            seconds[moment].append(float(took))
    return {moment: min(took) for moment, took in seconds.items()}


if __name__ == "__main__":
    main()

"""Fuzzing: random damage to inputs and files of the program; prints and writes the result.

    python benchmarks/fuzz.py [--cases 20000] [--command_line 200] [--processes 2] [--out benchmarks/results/fuzz.json]
    python benchmarks/fuzz.py --only "mask.json:17" --show       # one case again, by kind and number

A case damages recipe options, or files that others may have made: a ds_config, mask.json, a sliced checkpoint, a
checkpoint, its manifest, a run folder, _info.json, the bytes of a shard, a tar of another dialect, a list of shards. It
gives them to a command: in this process, where nothing may be executed, and nothing written
outside of its folder, or (``--command_line``) in a process of its own. It has to work, or end in one line within a
minute. The cases are those of tests/fuzz. Exit code 1 where one did anything else.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fuzz")]
from fuzz_cases import KINDS, make, run_here, run_there, warm_up  # noqa: E402
from fuzz_material import Material, make_material  # noqa: E402
from fuzz_mutations import CANARY  # noqa: E402

# How often a kind comes: those that take milliseconds more often.
SHARES = {
    "recipe options": 6, "ds_config": 10, "mask.json": 1, "sliced": 10, "checkpoint": 2, "run folder": 3,
    "_info.json": 4, "shard bytes": 2, "foreign tars": 6, "lists of shards": 5, "manifest": 3,
}  # fmt: skip
TRAIN_STARTS = 24  # of the cases on the command line: they take longest
MOST_MEMORY = 6 * 2**30  # bytes
NOT_READY = 77  # exit code of a process that could not begin
Case = tuple[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--command_line", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="KIND or KIND:NUMBER")
    parser.add_argument("--show", action="store_true", help="what the cases tell")
    parser.add_argument("--out", default="benchmarks/results/fuzz.json")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.environ |= {"DIST_PRUNE_DATA": str(home), "OMP_NUM_THREADS": "1"}
    os.chdir(home)
    material, began = make_material(home / "material"), time.monotonic()
    here = chosen(options.cases, options.only)
    there = [] if options.only else on_command_line(material, options.command_line, options.seed)
    found = run(material, here, options.seed, options.processes, there=False, show=options.show)
    found += run(material, there, options.seed, options.processes, there=True, show=options.show)
    result = {
        "benchmark": "fuzz",
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/fuzz.py --cases {options.cases} --command_line {options.command_line} "
        f"--seed {options.seed}",
        "minutes": round((time.monotonic() - began) / 60, 1),
        "in_process": counted(found[: len(here)]),
        "command_line": counted(found[len(here) :]),
        "findings": [f for f in found if f["outcome"] == "finding"],
        "executed": bool(list(home.rglob(CANARY))) or (ROOT / CANARY).exists(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores shared with other work",
    }
    if not options.only:
        Path(ROOT, options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({**result, "findings": len(result["findings"])}, indent=1))
    shutil.rmtree(home)
    sys.exit(bool(result["findings"] or result["executed"]))


def chosen(cases: int, only: str | None) -> list[Case]:
    """Kinds by their shares; or of one kind, or one case."""
    if only:
        kind, _, number = only.partition(":")
        return [(kind, int(number))] if number else [(kind, n) for n in range(cases)]
    turn = [kind for kind, share in SHARES.items() for _ in range(share)]
    return [(turn[n % len(turn)], n // len(turn) * SHARES[turn[n % len(turn)]] + _nth(turn, n)) for n in range(cases)]


def _nth(turn: list[str], number: int) -> int:
    """How many cases of its kind came before this one in the turn."""
    at = number % len(turn)
    return turn[:at].count(turn[at])


def on_command_line(material: Material, cases: int, seed: int) -> list[Case]:
    """Cases of all kinds in turn, other ones than in this process, of which ``TRAIN_STARTS`` start a training."""
    found: list[Case] = []
    trains, number = 0, 100_000
    while len(found) < cases:
        number += 1
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                train = make(material, kind, number, seed, Path(folder))[0] == "train"
            if len(found) < cases and (not train or trains < TRAIN_STARTS):
                found.append((kind, number))
                trains += train
        if number > 100_000 + cases:
            break
    return found


def run(material: Material, cases: list[Case], seed: int, processes: int, there: bool, show: bool) -> list[Any]:
    """The outcomes of cases, in their order; every process takes every n-th and is started anew where it dies."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    outcomes: dict[int, Any] = {}

    def note(number: int, outcome: str, told: str) -> None:
        kind, which = cases[number]
        outcomes[number] = {"kind": kind, "number": which, "outcome": outcome, "told": told[-3000:]}
        at[number % processes] = number + processes
        if len(outcomes) % 500 == 0:
            print(f"{len(outcomes)} of {len(cases)}", file=sys.stderr, flush=True)
        if show or outcome == "finding":
            print(f"{kind}:{which} {outcome}\n{told[-3000:]}", flush=True)

    def start(first: int) -> Any:
        numbers = range(first, len(cases), processes)
        process = context.Process(target=work, args=(material, cases, numbers, seed, there, queue))
        process.start()
        return process

    at = {n: n for n in range(min(processes, len(cases)))}  # the next case of each process
    running = {worker: start(first) for worker, first in at.items()}
    while len(outcomes) < len(cases):
        time.sleep(0.1)
        alive = {worker: process.is_alive() for worker, process in running.items()}
        while not queue.empty():
            note(*queue.get())
        for worker, first in at.items():
            if not alive[worker] and first < len(cases):  # it died of this case
                assert running[worker].exitcode != NOT_READY, "undamaged files do not work"
                note(first, "finding", f"exit code {running[worker].exitcode}")
                running[worker] = start(at[worker])
    return [outcomes[number] for number in range(len(cases))]


def work(material: Material, cases: list[Case], numbers: range, seed: int, there: bool, queue: Any) -> None:
    """Run the cases of these numbers, in one process."""
    home = Path(tempfile.mkdtemp(dir=material.home))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # A case that needs more would end other programs of this machine.
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    try:
        warm_up(material, home) if not there else None
    except BaseException:
        traceback.print_exc()
        os._exit(NOT_READY)
    for number in numbers:
        kind, which = cases[number]
        folder = home / "case"
        folder.mkdir()
        words = make(material, kind, which, seed, folder)
        queue.put((number, *(run_there if there else run_here)(words, folder)))
        shutil.rmtree(folder)


def counted(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Outcomes by kind."""
    kinds = {kind: dict(Counter(f["outcome"] for f in found if f["kind"] == kind)) for kind in KINDS}
    return {"cases": len(found), "by_kind": kinds}


if __name__ == "__main__":
    main()

"""Cases by kind and number: a command line over damaged files, run in this process or in one of its own."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from fuzz_foreign import write_list, write_shards
from fuzz_guard import Broken, guarded
from fuzz_material import Material
from fuzz_mutations import json_bytes, mutate_bytes, mutate_json, mutate_words, near, value

import dist_prune.cli.main as cli
from dist_prune.monitor import style
from dist_prune.recipes import recipe

ROOT = Path(__file__).resolve().parents[2]
Words = list[str]
UNDRAWN = "undrawn"  # name of a run folder whose pictures are empty: to draw them takes longer than all the rest
# Where a larger number only asks for more work, which is no fault: sizes that are done soon, or that no machine has.
SIZES = ("1", "2", "7", "9", "33", "0", "-1", "3.5", "null", '"x"', "[8]", str(10**7), str(10**12), str(2**63))
SIZED = ("image_size", "gates.hidden", "model_args.width", "model_args.depth")
MODELS = (
    "resnet8", "resnet20", "resnet9", "resnet0", "resnet-1", "resnet2", "resnet99999999", "vgg11", "vgg11_bn",
    "squeezenet1_0", "mobilenet_v2", "timm/resnet10t", "timm/", "timm/no", "torchvision/resnet18", "", "cifar_resnet",
    "densenet121", "shufflenet_v2_x0_5", "vit_b_16", "googlenet", "os.system", "../resnet8",
)  # fmt: skip


def _fields(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in data.items():
        yield prefix + name, field
        if isinstance(field, dict) and field:
            yield from _fields(field, f"{prefix}{name}.")


FIELDS = dict(_fields(recipe("digits").model_dump(mode="json"))) | {f"model_args.{n}": 1 for n in ("width", "depth")}
OPTIONS = (
    "--recipe", "--data", "--out", "--resume", "--max_steps", "--max_hours", "--set", "--local_rank", "--ds_config",
    "--max-steps", "--", "-h", "-", "--=", "--set=", "--recipe=digits",
)  # fmt: skip


def setting(chance: Random) -> str:
    """A word behind --set."""
    key = chance.choice(list(FIELDS))
    written = near(key, chance) if chance.random() < 0.05 else key
    if key in SIZED:
        return f"{written}={chance.choice(SIZES)}"
    if key == "model":
        return f"{written}={chance.choice(MODELS)}"
    kind = chance.randrange(4)
    new = near(FIELDS[key], chance) if kind < 2 else mutate_json(FIELDS[key], chance) if kind == 2 else value(chance)
    text = new if isinstance(new, str) else json.dumps(new)
    text = text.replace("pipe:", "pine:")  # whoever types a pipe means it
    return f"{written}{chance.choice(('=', '=', '=', '=', '=', '=', ' ', '=='))}{text}"


def option(chance: Random) -> str:
    return chance.choice((chance.choice(OPTIONS), setting(chance), str(value(chance)).replace("pipe:", "pine:")[:200]))


def options(m: Material, folder: Path, chance: Random) -> Words:
    extra = [setting(chance) for _ in range(chance.choice((1, 1, 2, 3)))]
    words = ["--ds_config", str(m.ds), "--out", str(folder / "run"), "--max_steps", "1", "--set", *m.settings, *extra]
    return ["train", *(mutate_words(words, chance, option) if chance.random() < 0.15 else words)]


def ds_config(m: Material, folder: Path, chance: Random) -> Words:
    base = json.loads(m.ds.read_text()) | chance.choice(
        ({}, {"bf16": {"enabled": False}}, {"fp16": {"enabled": True}}, {"train_micro_batch_size_per_gpu": 4},
         {"gradient_accumulation_steps": 2}, {"zero_optimization": {"stage": 3}})
    )  # fmt: skip
    path = folder / "ds.json"
    path.write_bytes(json_bytes(base, chance))
    words = ["--ds_config", str(path), "--out", str(folder / "run"), "--max_steps", "1"]
    return ["train", *words, "--set", *m.settings]


def mask(m: Material, folder: Path, chance: Random) -> Words:
    path = folder / "mask.json"
    path.write_bytes(json_bytes(json.loads((m.run / "mask.json").read_text()), chance))
    return ["collapse", str(m.run), "--mask", str(path), "--out", str(folder / "out")]


def sliced(m: Material, folder: Path, chance: Random) -> Words:
    here = folder / "sliced"
    shutil.copytree(m.run / "sliced", here)
    if chance.random() < 0.6:
        config = json.loads((here / "config.json").read_text())
        if chance.random() < 0.2:
            config["builder"] = chance.choice((*MODELS, *(f"torchvision/{name}" for name in MODELS), "timm/resnet10t"))
        if chance.random() < 0.2:
            name = chance.choice(("weights", "checkpoint_path", "pretrained", "pretrained_cfg", "file", "block"))
            config["arguments"][name] = chance.choice((True, "DEFAULT", "/tmp/x.pth", {"file": "/tmp/x.pth"}, "a.b"))
        (here / "config.json").write_bytes(json_bytes(config, chance))
    else:
        _damage(here / "model.safetensors", chance)
    command = chance.choice(("evaluate", "evaluate", "export"))
    if command == "export":
        return ["export", str(here), "--format", "safetensors", "--out", str(folder / "exported")]
    return ["evaluate", str(here), "--data", str(m.data)]


def checkpoint(m: Material, folder: Path, chance: Random) -> Words:
    shutil.copytree(m.run, folder / "run")
    step = folder / "run" / "checkpoints" / "step-00000001"
    tensors = ("model.safetensors", "optimizer.safetensors")
    path = step / chance.choice(("state.json", "state.json", "manifest.json", *tensors))
    if path.suffix == ".json":
        path.write_bytes(json_bytes(json.loads(path.read_text()), chance))
    else:
        _damage(path, chance)
    if path.name == "state.json" and chance.random() < 0.8:  # as if it had been written so
        manifest = json.loads((step / "manifest.json").read_text())
        content = path.read_bytes()
        manifest["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (step / "manifest.json").write_text(json.dumps(manifest))
    if chance.random() < 0.5:
        return ["collapse", str(chance.choice((folder / "run", step))), "--out", str(folder / "out")]
    words = ["--ds_config", str(m.ds), "--out", str(folder / "run"), "--resume", "--max_steps", "1"]
    return ["train", *words, "--set", *m.settings]


def run_folder(m: Material, folder: Path, chance: Random) -> Words:
    here = folder / chance.choice(("run", *[UNDRAWN] * 7))
    shutil.copytree(m.run, here)
    path = here / chance.choice(("config.json", "config.json", "status.json", "metrics.jsonl", "mask.json"))
    if path.suffix == ".json":
        path.write_bytes(json_bytes(json.loads(path.read_text()), chance))
    else:
        _damage(path, chance)
    run = str(here)
    words = ["--ds_config", str(m.ds), "--out", run, "--resume", "--max_steps", "1", "--set", *m.settings]
    commands = (
        ["report", run],
        ["report", run, str(m.run), "--out", str(folder / "compared")],
        ["evaluate", run],
        ["collapse", run],
        ["train", *words],
    )
    return chance.choice(commands)


def index(m: Material, folder: Path, chance: Random) -> Words:
    here = _shards(m, folder, chance)
    content = json.loads((here / "_info.json").read_text())
    (here / "_info.json").write_bytes(json_bytes(content, chance))
    return _read(m, here, folder, chance)


def shard_bytes(m: Material, folder: Path, chance: Random) -> Words:
    here = _shards(m, folder, chance)
    path = chance.choice(sorted(here.glob("*.tar")))
    _damage(path, chance)
    if chance.random() < 0.8:  # an index that says so: what is inside is looked at
        text = (here / "_info.json").read_text()
        content = json.loads(text)
        for split in content["splits"].values():
            if path.name in split["filenames"]:
                at = split["filenames"].index(path.name)
                split["bytes"][at] = path.stat().st_size
                split["sha256"][at] = hashlib.sha256(path.read_bytes()).hexdigest()
        (here / "_info.json").write_text(json.dumps(content))
    return _read(m, here, folder, chance)


def _shards(m: Material, folder: Path, chance: Random) -> Path:
    return Path(shutil.copytree(m.data, folder / "shards"))


def foreign_tars(m: Material, folder: Path, chance: Random) -> Words:
    here = write_shards(m, folder / "shards", chance)
    if chance.random() < 0.3:
        return ["shards", "index", str(here), "--workers", "1", *chance.choice(([], ["--label", "json"]))]
    return _read(m, here, folder, chance)


def lists(m: Material, folder: Path, chance: Random) -> Words:
    return _read(m, write_list(m, folder / "shards", chance), folder, chance)


def manifest(m: Material, folder: Path, chance: Random) -> Words:
    shutil.copytree(m.run, folder / "run")
    step = folder / "run" / "checkpoints" / "step-00000001"
    path = step / "manifest.json"
    content = json.loads(path.read_text())
    if chance.random() < 0.3:
        odd = chance.choice(("../../config.json", "/dev/zero", "/etc/passwd", "state.json/", ".", "x" * 300))
        content[odd] = chance.choice(list(content.values()))
    path.write_bytes(json_bytes(content, chance))
    if chance.random() < 0.2:
        # Of what lies there: as root, an odd name from the manifest would reach files of the system.
        odd = chance.choice(sorted(step.iterdir()))
        odd.unlink()
        chance.choice((os.mkfifo, lambda at: at.symlink_to("/dev/zero"), Path.mkdir))(odd)
    return ["collapse", str(chance.choice((step, folder / "run"))), "--out", str(folder / "out")]


def _read(m: Material, here: Path | str, folder: Path, chance: Random) -> Words:
    words = ["--ds_config", str(m.ds), "--out", str(folder / "run"), "--data", str(here), "--max_steps", "1"]
    commands = (
        ["shards", "verify", str(here), "--workers", "1"],
        ["evaluate", str(m.run / "sliced"), "--data", str(here)],
        ["collapse", str(m.run), "--data", str(here), "--out", str(folder / "out")],
        ["train", *words, "--set", *m.settings[1:]],
    )
    return chance.choice(commands)


def _damage(path: Path, chance: Random) -> None:
    path.write_bytes(mutate_bytes(path.read_bytes(), chance))


KINDS: dict[str, Callable[[Material, Path, Random], Words]] = {
    "recipe options": options,
    "ds_config": ds_config,
    "mask.json": mask,
    "sliced": sliced,
    "checkpoint": checkpoint,
    "run folder": run_folder,
    "_info.json": index,
    "shard bytes": shard_bytes,
    "foreign tars": foreign_tars,
    "lists of shards": lists,
    "manifest": manifest,
}


def make(material: Material, kind: str, number: int, seed: int, folder: Path) -> Words:
    """Put the damaged files of a case into an empty folder, and return its command line."""
    return KINDS[kind](material, folder, Random(f"{seed} {kind} {number}"))


def warm_up(m: Material, folder: Path) -> None:
    """Let everything be imported and compiled that undamaged files need; raises AssertionError if they do not work."""
    settings = ["--set", *m.settings]
    words = ["train", "--ds_config", str(m.ds), "--out", str(folder / "run"), "--max_steps", "1", *settings]
    commands = (words, ["evaluate", str(m.run)], ["report", str(m.run)], ["collapse", str(m.run), "--out", str(folder)])
    for command in commands:
        outcome, told = run_here(command, folder, free=True)
        assert outcome == "works", (command, told)


def run_here(words: Words, folder: Path, free: bool = False) -> tuple[str, str]:
    """Run a command line in this process: its outcome, ``works``, ``one line`` or ``finding``, and what was told.

    Training ends before DeepSpeed's engine is made. free: without the guard.
    """
    out, err, code = io.StringIO(), io.StringIO(), 1
    program = _train(words[1:]) if words[0] == "train" else _command(words)
    try:
        temporary = mock.patch.object(tempfile, "tempdir", str(folder))  # the lock of a run folder lies there
        real = mock.patch.object(style, "png", style.png if UNDRAWN not in " ".join(words) else lambda *_: b"")
        with _set_up(out, err), temporary, real, contextlib.nullcontext() if free else guarded(folder):
            program()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except (Broken, Exception):
        return "finding", traceback.format_exc()
    return judge(code, err.getvalue())


@contextlib.contextmanager
def _set_up(out: io.StringIO, err: io.StringIO) -> Iterator[None]:
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, alone))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def _train(words: Words) -> Callable[[], None]:
    from dist_prune.training import run

    def begin(context: Any, options: Any, found: Any, peers: Any) -> bool:
        """What a run does before it trains, but for DeepSpeed's part."""
        run.Trainer(context, None, run.StopRequest(), None, found)  # type: ignore[arg-type]
        next(context.method.phases())
        return True

    def program() -> None:
        with mock.patch.object(run, "_train_and_finish", begin):
            cli.train_main(words)

    return program


def _command(words: Words) -> Callable[[], None]:
    def program() -> None:
        with mock.patch.object(sys, "argv", ["dist-prune", *words]):
            cli.main()

    return program


def run_there(words: Words, folder: Path, seconds: float = 300) -> tuple[str, str]:
    """Run a command line in a process of its own; as ``run_here``."""
    program = ["launch/train.py", *words[1:]] if words[0] == "train" else ["-m", "dist_prune.cli.main", *words]
    if words[0] != "train":
        program = ["-c", "from dist_prune.cli.main import main; main()", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [sys.executable, *program], cwd=ROOT, env=environment, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return "finding", f"took more than {seconds} s"
    return judge(done.returncode, done.stderr.decode(errors="replace"))


def judge(code: int, told: str) -> tuple[str, str]:
    """The outcome of a command that left with ``code`` and told this on standard error."""
    lines = [line for line in told.replace("\r", "\n").splitlines() if line.strip()]
    told_meanwhile, bars = ("skipped: ", "step ", "made the index of "), ("samples/s]", "shards/s]")
    rest = [line for line in lines if not (line.startswith(told_meanwhile) or any(bar in line for bar in bars))]
    if "Traceback" in told or code not in (0, 1, 2, 3):
        return "finding", f"exit code {code}\n{told}"
    if code in (0, 3):
        return "works", "\n".join(rest)
    named = [line for line in rest if line.startswith("error: ")]
    damaged = [line for line in rest if line.endswith("; passing over it")]
    if len(named) == 1 and len(rest) == 1 + len(damaged):
        return "one line", named[0]
    return "finding", f"exit code {code}, {len(rest)} lines\n{told}"

"""How the tests of users' own methods run them: on real ranks, stopped and resumed in each phase."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from ranks import run_ranks

from dist_prune import distributed
from dist_prune.methods import METHODS, Method
from dist_prune.recipes import recipe

# Five steps an epoch, and one epoch a phase: the first stop is in the first phase, the second one in the second.
SETTINGS = ["epochs=1", "model=resnet8", "model_args.width=4", "global_batch_size=256", "log_every=1"]
SETTINGS += ["workers=0", "lr=0.05", "lr_schedule.kind=cosine"]
STOPPED: tuple[dict[str, Any], ...] = ({"max_steps": 3}, {"max_steps": 5, "resume": True}, {"resume": True})
STRAIGHT: tuple[dict[str, Any], ...] = ({},)
# By number of ranks: the invocations at each ZeRO stage (1 rank at stage 0 is the reference). Every stage at every
# number of ranks, stopped and resumed, takes three times as long, which is left to make drills.
QUICK = {1: {2: STOPPED}, 2: {2: STRAIGHT, 3: STRAIGHT}}
WHOLE = {ranks: {0: STOPPED, 2: STOPPED, 3: STOPPED} for ranks in (1, 2)}
every_plan = pytest.mark.parametrize(
    "plan", [pytest.param(QUICK, id="quick"), pytest.param(WHOLE, id="whole", marks=pytest.mark.drill)]
)


def train(
    method: type[Method], folder: str, settings: list[str], stages: dict[int, tuple[dict[str, Any], ...]]
) -> list[bool]:
    """Train at several ZeRO stages, a run each; return whether each invocation finished its run."""
    from dist_prune.config import override
    from dist_prune.training.run import Options, run

    METHODS["own"] = method
    config = override(recipe("digits"), ["method=own", *SETTINGS, *settings])
    return [
        run(config, Options(ds_config(folder, stage), out=f"{folder}/stage{stage}", **how))
        for stage, invocations in stages.items()
        for how in invocations
    ]


def ds_config(folder: str, stage: int) -> str:
    """The project's own JSON, but that ZeRO 3 partitions small weights, too."""
    config = json.loads(Path(f"ds_configs/zero{stage}.json").read_text())
    if stage == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = Path(f"{folder}-rank{distributed.rank()}-zero{stage}.json")
    path.write_text(json.dumps(config))
    return str(path)


def figures(folder: Path) -> tuple[list[float], dict[str, torch.Tensor], dict[str, Any]]:
    """The loss of every step, the tensors of the sliced network, and the summary."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss/total"] for record in records if record["kind"] == "train"]
    return losses, safetensors.torch.load_file(folder / "sliced" / "model.safetensors"), records[-1]


def assert_same_at_every_stage(
    method: type[Method], folder: Path, plan: dict[int, Any], *settings: str
) -> dict[str, Any]:
    """Straight, or stopped and resumed at any stage and world size, it is one run; returns its summary."""
    (done,) = run_ranks(1, train, method, str(folder / "straight"), [*settings], {0: STRAIGHT})
    assert done == [True]
    for ranks, stages in plan.items():
        done = run_ranks(ranks, train, method, str(folder / f"ranks{ranks}"), [*settings], stages)
        expected = [how is invocations[-1] for invocations in stages.values() for how in invocations]
        assert done == [expected] * ranks
    losses, tensors, summary = figures(folder / "straight" / "stage0")
    assert len(losses) == 10
    for other in sorted(folder.glob("ranks*/*")):
        found = figures(other)
        assert found[0] == pytest.approx(losses, rel=1e-4), other
        torch.testing.assert_close(found[1], tensors, rtol=1e-3, atol=1e-4)
        assert found[2]["macs"] == summary["macs"]
    return summary

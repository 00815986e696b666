"""Records of an invocation replace those of an earlier one that its checkpoint does not hold."""

import dataclasses

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_prune.checkpoints.train_state import Progress
from dist_prune.config import RunConfig
from dist_prune.monitor.records import EVAL_KEYS, RunFolder
from dist_prune.training.context import RunContext
from dist_prune.training.recorder import Recorder
from dist_prune.training.step import RankFlags, StepMetrics


@pytest.fixture
def context(tmp_path) -> RunContext:
    config = RunConfig(name="test", data="digits", model="resnet8", log_every=1)
    folder = RunFolder.create(tmp_path / "run", resume=False)
    return RunContext(config, {}, None, None, None, torch.device("cpu"), folder)


def record(context: RunContext, first_step: int, steps: range, loss: float) -> None:
    """Record an invocation that begins after ``first_step`` steps."""
    recorder = Recorder(context, total_steps=10, first_step=first_step)
    for step in steps:
        metrics = StepMetrics(
            losses={"total": loss}, accuracy=0.5, means=torch.zeros(0), logits=torch.zeros(10), samples=16,
            flags=RankFlags(), applied=True,
        )  # fmt: skip
        recorder.step(Progress(step=step), metrics, [], lr=0.1, speed=100.0, bad_batch=None)
    recorder.close()


def points(context: RunContext) -> list[tuple[int, float]]:
    events = EventAccumulator(str(context.folder.tensorboard)).Reload()
    return [(event.step, event.value) for event in events.Scalars("loss/total")]


@pytest.mark.parametrize("first_step", [0, 2])
def test_a_resumed_run_shows_each_step_once_also_where_there_was_no_checkpoint_yet(context, first_step):
    record(context, 0, range(1, 4), loss=3.0)
    record(context, first_step, range(first_step + 1, 4), loss=1.0)
    expected = [(step, 3.0 if step <= first_step else 1.0) for step in range(1, 4)]
    assert points(context) == expected
    lines = context.folder.read_metrics("train")
    assert [(line["step"], line["loss/total"]) for line in lines] == expected


@pytest.mark.parametrize(
    ("open_ratio", "target", "warned"), [(0.0, None, True), (0.09, None, True), (0.11, None, False), (0.0, 0.3, False)]
)
def test_less_than_a_tenth_open_without_a_budget_is_a_warning(context, capsys, open_ratio, target, warned):
    """An activation weight of 1 once closed everything in two epochs without a word."""
    context = dataclasses.replace(context, config=context.config.model_copy(update={"target_macs": target}))
    recorder = Recorder(context, total_steps=10, first_step=0)
    measured = dict.fromkeys(EVAL_KEYS, 0.5)
    recorder.evaluation({**measured, "energy_joules_total": None, "epoch": 1, "open_ratio": open_ratio}, None)
    recorder.close()
    shown = "".join(capsys.readouterr())
    assert (f"warning: only {open_ratio:.1%} of the gates are open" in shown) == warned

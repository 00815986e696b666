"""What one rank cannot read is what all of them raise, also where nothing at all is left to evaluate."""

import pytest
import torch
from torch import nn

from data_tools import make_shards
from dist_prune.config import RunConfig
from dist_prune.data import ReadingFailed, open_data
from dist_prune.data.reader import Reader
from dist_prune.engine.ds_config import Batching
from dist_prune.errors import NothingToEvaluate, UserError
from dist_prune.training.context import RunContext
from dist_prune.training.evaluate import accuracies

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    make_shards("digits", None, tmp_path / "digits", samples_per_shard=300)
    return tmp_path / "digits"


def setting(folder, bad_data: str, device: torch.device = CPU) -> RunContext:
    """Of one rank; the index was read before shards went away."""
    config = RunConfig(name="test", data=str(folder), model="resnet8", bad_data=bad_data, workers=0)
    data = open_data(str(folder), workers=0, bad_data=bad_data)
    return RunContext(config, {}, Batching(micro=16, accumulation=4, world_size=1), data, None, device, None)


def evaluate(chosen: RunContext) -> dict[str, float]:
    with chosen.with_read_errors():
        return accuracies({"a": nn.Flatten()}, chosen.eval_batches("test"), CPU)


def remove(folder, *numbers: int) -> None:
    for number in numbers:
        (folder / f"digits-test-{number:06d}.tar").unlink()


def test_where_every_image_is_left_out_there_is_nothing_to_evaluate(folder):
    chosen = setting(folder, "skip")
    remove(folder, 0, 1)
    with pytest.raises(NothingToEvaluate, match="nothing to evaluate: no image could be read; fix the data"):
        evaluate(chosen)
    with pytest.raises(NothingToEvaluate, match="none of the images of the test split could be read"):
        chosen.first_images("test")


def test_where_the_first_image_cannot_be_read_it_is_named(folder):
    chosen = setting(folder, "error")
    remove(folder, 0)
    with pytest.raises(UserError, match=r"missing shard .*test-000000.tar.*; bad_data=skip leaves out"):
        evaluate(chosen)


def test_the_first_images_are_the_first_that_can_be_read(folder):
    chosen = setting(folder, "skip")
    whole = torch.cat([images for images, *_ in chosen.eval_batches("test")])
    assert torch.equal(chosen.first_images("test"), whole[:64])
    remove(folder, 0)
    left = setting(folder, "skip").first_images("test")
    assert torch.equal(left, whole[300 : 300 + len(left)])


def test_what_nobody_foresaw_is_no_mistake_of_the_user(folder, monkeypatch):
    chosen = setting(folder, "skip")
    monkeypatch.setattr(Reader, "sample", lambda *_: 1 / 0)
    with pytest.raises(ReadingFailed, match=r"^reading failed: ZeroDivisionError: division by zero \(in .*\)$"):
        evaluate(chosen)


def test_batches_are_on_the_device_of_the_run_also_where_they_stand_in_for_unreadable_data(folder):
    chosen = setting(folder, "error", torch.device("meta"))
    assert {part.device.type for batch in chosen.eval_batches("test") for part in batch[:2]} == {"meta"}
    (folder / "digits-train-000000.tar").unlink()
    batches = list(zip(chosen.train_batches(0, skip_steps=0), range(100), strict=False))
    assert len(batches) == 100, "more than an epoch has"
    assert len(chosen.pending_errors) == 1
    assert {part.device.type for batch, _ in batches for part in batch[:2]} == {"meta"}

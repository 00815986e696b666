"""Evaluation counts right answers over all samples, whatever the batches."""

import dataclasses

import pytest
import torch
from torch import nn
from unit_helpers import gated_resnet, images, mask_closing

from dist_prune import collapse, masked
from dist_prune.config import RunConfig
from dist_prune.engine.ds_config import Batching
from dist_prune.errors import NothingToEvaluate
from dist_prune.methods import PhaseResult
from dist_prune.monitor.records import RunFolder
from dist_prune.training.context import RunContext, build_method, open_images
from dist_prune.training.evaluate import accuracies, finish, max_abs_difference

CPU = torch.device("cpu")


class Says(nn.Module):
    """Answers with the class that stands in the image's first pixel, shifted."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.shift = shift
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        assert not self.training
        assert not torch.is_grad_enabled()
        return nn.functional.one_hot((x[:, 0, 0, 0].long() + self.shift) % 4, 4).float()


def batches(answers, labels, cuts):
    x = torch.tensor(answers).float().view(-1, 1, 1, 1)
    return list(zip(x.split(cuts), torch.tensor(labels).split(cuts), strict=True))


@pytest.mark.parametrize("cuts", [[7], [1] * 7, [4, 3], [3, 1, 3]])
def test_accuracy_is_right_answers_over_all_samples(cuts):
    data = batches([0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 0, 0, 0, 2], cuts)
    assert accuracies({"a": Says()}, data, CPU) == {"a": pytest.approx(5 / 7)}


def test_several_models_share_one_pass_over_the_data_and_one_may_have_two_names():
    once, other = Says().train(), Says(shift=1)
    data = batches([0, 1, 2, 3], [0, 1, 2, 2], [2, 2])
    read = []
    seen = accuracies({"a": once, "b": other, "c": once}, (read.append(1) or b for b in data), CPU)
    assert seen == {"a": 0.75, "b": 0.0, "c": 0.75}
    assert list(seen) == ["a", "b", "c"]
    assert (other.calls, len(read)) == (2, 2)


def test_one_wrong_answer_in_millions_is_seen():
    """2**24 is as far as fp32 counts."""

    class Zero(nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 1)

    labels = torch.zeros(2**24 // 64, dtype=torch.long)
    x = torch.zeros(len(labels), 1)
    data = [(x, labels)] * 64 + [(x[:1], labels[:1] + 1)]
    assert accuracies({"a": Zero()}, data, CPU) == {"a": 2**24 / (2**24 + 1)}


def test_the_precision_of_training_is_used_for_every_batch():
    dtypes = []

    class Watch(nn.Linear):
        def forward(self, x):
            dtypes.append(super().forward(x).dtype)
            return torch.zeros(len(x), 2)

    data = [(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))] * 3
    accuracies({"a": Watch(3, 2)}, data, CPU, torch.autocast("cpu", torch.bfloat16))
    assert dtypes == [torch.bfloat16] * 3


def test_nothing_to_evaluate_is_a_mistake_of_the_user():
    with pytest.raises(NothingToEvaluate, match="nothing to evaluate"):
        accuracies({"a": Says()}, [], CPU)


def test_the_difference_of_two_networks_is_the_largest_of_all_outputs():
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    b.load_state_dict(a.state_dict())
    b.bias.data[1] += 0.25
    x = 100 * torch.eye(3)
    difference, tolerance = max_abs_difference(a, b, x)
    assert difference == pytest.approx(0.25, abs=1e-5)
    assert tolerance == pytest.approx(1e-5 * a(x).abs().max().item())
    assert max_abs_difference(a, a, 0 * x) == (0.0, 1e-5)


def test_masked_and_sliced_pass_the_runs_own_check_and_an_unlike_pair_does_not():
    gated = gated_resnet(14)
    mask = mask_closing(gated, ["layer2.0", "layer1.1"])
    small, x = collapse(gated, mask), images(8)
    difference, tolerance = max_abs_difference(masked(gated, mask), small, x)
    assert difference <= tolerance
    difference, tolerance = max_abs_difference(masked(gated, mask_closing(gated, ["layer2.0"])), small, x)
    assert difference > 100 * tolerance


def test_the_summary_names_the_operators_that_nobody_can_count(digits, tmp_path):
    config = RunConfig(name="test", data=str(digits), model="resnet8", method="dense", workers=0)
    data, folder = open_images(config), RunFolder.create(tmp_path / "run", resume=False)
    method = build_method(config, data)
    method.costs = dataclasses.replace(method.costs, not_counted=("aten::fft_rfft2",))
    context = RunContext(config, {}, Batching(16, 4, 1), data, method, CPU, folder)
    phase = next(method.phases())
    assert finish(context, phase, PhaseResult(phase.module, 1), 0.0)["macs_not_counted"] == ["aten::fft_rfft2"]

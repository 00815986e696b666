"""Uniform baselines: dense networks of the budget's MACs, by depth, by width and by inner channels."""

import itertools

import pytest
from torchvision.models.mobilenetv2 import MobileNetV2

from dist_prune import UserError
from dist_prune.config import RunConfig
from dist_prune.gates.insertion import find_sites
from dist_prune.gates.wrappers import gated_modules
from dist_prune.measure.macs import count_macs
from dist_prune.methods import METHODS, Phase, Task
from dist_prune.methods.baselines import uniform_channels, uniform_depth, uniform_width
from dist_prune.pruning.costs import Costs, unit_costs
from dist_prune.pruning.residual import residual_blocks

CIFAR = (3, 32, 32)
UNIFORM = ["uniform_depth", "uniform_width", "uniform_channels"]


def task(
    target: float | None, method: str = "uniform_depth", model: str = "resnet20", shape=CIFAR, **model_args
) -> Task:
    fields = {"model": model, "model_args": model_args, "method": method, "target_macs": target, "epochs": 3}
    return Task(RunConfig(name="test", data="none", **fields), 10, shape)


def only_phase(the_task: Task) -> Phase:
    return next(METHODS[the_task.config.method](the_task).phases())


def layer_costs(the_task: Task) -> Costs:
    return METHODS["uniform_depth"](the_task).costs


def depths(kept: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Layers left in each stage; those that go are a stage's last ones."""
    stages = [list(group) for _, group in itertools.groupby(kept, key=lambda name: name.rpartition(".")[0])]
    for names in stages:
        opened = [bool(kept[name]) for name in names]
        assert opened == sorted(opened, reverse=True)
    return tuple(sum(bool(kept[name]) for name in names) for names in stages)


@pytest.mark.parametrize("method", UNIFORM)
@pytest.mark.parametrize("target", [0.3, 0.538, 0.8])
def test_a_plain_network_of_the_budgets_macs_is_trained_from_scratch(method, target):
    the_task = task(target, method)
    phase, dense = only_phase(the_task), METHODS[method](the_task).costs
    assert (phase.name, phase.epochs, phase.has_gates) == ("dense", 3, False)
    assert list(gated_modules(phase.module)) == []
    assert phase.loss_terms(None) == {}
    assert phase.macs(dense, None) == count_macs(phase.module, CIFAR)
    # A layer of ResNet-20 is a ninth of its MACs, and a stage keeps one of its three.
    coarse = {"uniform_depth": 0.1, "uniform_width": 0.02, "uniform_channels": 0.02}[method]
    assert phase.macs(dense, None) / dense.dense == pytest.approx(target, abs=coarse)


@pytest.mark.parametrize("method", UNIFORM)
def test_without_a_target_the_baselines_are_refused(method):
    with pytest.raises(UserError, match=rf"'{method}'.*target_macs"):
        only_phase(task(None, method))


def test_resnet20_with_the_macs_of_five_layers_keeps_two_one_and_two():
    kept = uniform_depth(layer_costs(task(None)), 0.538)
    assert depths(kept) == (2, 1, 2)
    module = only_phase(task(0.538)).module
    assert list(residual_blocks(module)) == ["layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer3.1"]


@pytest.mark.parametrize("model", ["resnet20", "resnet32"])
@pytest.mark.parametrize("target", [0.05, 0.3, 0.45, 0.538, 0.6, 0.7, 0.9, 0.99])
def test_no_other_even_depths_come_nearer_to_the_target(model, target):
    """Stages of one length: even means that they differ by one layer at most. Hundredths do not count."""
    costs = layer_costs(task(None, model=model))
    kept = uniform_depth(costs, target)
    blocks = len(costs.sites) // 3
    assert kept.keys() == {site.name for site in costs.sites}
    assert min(depths(kept)) >= 1
    assert max(depths(kept)) - min(depths(kept)) <= 1

    def distance(stages: tuple[int, ...]) -> float:
        closed = {f"layer{s + 1}.{b}": () for s in range(3) for b in range(stages[s], blocks)}
        return abs(costs.of(closed) / costs.dense - target)

    even = [d for d in itertools.product(range(1, blocks + 1), repeat=3) if max(d) - min(d) <= 1]
    assert distance(depths(kept)) <= min(map(distance, even)) + 0.01


def test_where_several_depths_are_as_near_the_first_and_the_last_stage_keep_more():
    costs = layer_costs(task(None))
    assert depths(uniform_depth(costs, costs.of({"layer2.2": ()}) / costs.dense)) == (3, 2, 3)


def test_stages_of_unlike_lengths_keep_the_same_share():
    the_task = task(0.5, model="resnet50")
    assert depths(uniform_depth(layer_costs(the_task), 0.99)) == (3, 4, 6, 3)
    kept = depths(uniform_depth(layer_costs(the_task), 0.55))
    assert all(abs(left - 0.5 * layers) <= 1 for left, layers in zip(kept, (3, 4, 6, 3), strict=True))


def test_depth_needs_residual_layers():
    with pytest.raises(UserError, match="residual"):
        only_phase(task(0.5, model="squeezenet1_1"))


@pytest.mark.parametrize("target", [0.2, 0.538])
def test_no_other_width_comes_nearer_to_the_target(target):
    """MACs grow with the width, so its neighbors decide; every eighth of a channel gives another network."""
    small = {"model": "resnet8", "shape": (3, 8, 8)}

    def share(the_task: Task) -> float:
        return count_macs(the_task.build(), (3, 8, 8)) / dense

    dense = layer_costs(task(None, **small)).dense
    narrow = uniform_width(task(target, "uniform_width", **small), target * dense)
    width = narrow.config.model_args["width"]
    others = [share(task(None, **small, width=width + step / 16)) for step in range(-6, 7)]
    assert min(others) < target < max(others)
    assert abs(share(narrow) - target) <= min(abs(other - target) for other in others)


def test_width_starts_from_the_recipes_own_and_works_for_mobilenet():
    whole = task(0.5, "uniform_width", model="resnet8", width=8)
    half = uniform_width(whole, 0.5 * count_macs(whole.build(), CIFAR))
    assert 4 < half.config.model_args["width"] < 8
    mobile = {"model": "mobilenet_v2", "inverted_residual_setting": [[1, 16, 1, 1], [6, 64, 1, 2]]}
    phase = only_phase(task(0.5, "uniform_width", **mobile))
    assert isinstance(phase.module, MobileNetV2)
    whole = count_macs(task(None, **mobile).build(), CIFAR)
    assert count_macs(phase.module, CIFAR) / whole == pytest.approx(0.5, abs=0.05)


def test_networks_without_a_width_are_refused_with_advice():
    with pytest.raises(UserError, match=r"resnet18 has no width.*uniform_channels"):
        only_phase(task(0.5, "uniform_width", model="resnet18"))


@pytest.mark.parametrize("target", [0.2, 0.538, 0.9])
def test_inner_channels_fall_by_one_share_everywhere_and_no_other_share_comes_nearer(target):
    plain = task(None).build()
    costs = unit_costs(plain, CIFAR, find_sites(plain, "channel"))
    kept = uniform_channels(costs, target)
    left = {site.name: len(kept[site.name]) for site in costs.sites}
    shares = [left[site.name] / site.units for site in costs.sites]
    assert max(shares) - min(shares) <= 1 / 16 + 1e-9, "sixteen channels are the fewest"
    assert all(kept[name] == tuple(range(count)) for name, count in left.items())

    def distance(steps: int) -> float:
        narrowed = {site.name: range(max(1, round(site.units * steps / 64))) for site in costs.sites}
        return abs(costs.of(narrowed) / costs.dense - target)

    assert abs(costs.of(kept) / costs.dense - target) == min(map(distance, range(1, 65)))

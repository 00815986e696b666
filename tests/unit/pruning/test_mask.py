"""The consensus mask: votes, agreement, masks given by hand, mask.json."""

import json

import pytest
import torch
from torch import nn
from unit_helpers import gated_resnet, images, same, shaken, undecided

from dist_prune import UserError, attach_gates, build_model, collapse, consensus_mask, masked
from dist_prune.config import GatesConfig, RunConfig
from dist_prune.gates.wrappers import gated_modules, sites
from dist_prune.methods import METHODS, Task
from dist_prune.pruning.mask import SiteMask, UnitMask, load_mask, vote
from dist_prune.pruning.sites import Site

LAYERS = (Site("a", "layer", 1), Site("b", "layer", 1), Site("c", "layer", 1))
CHANNELS = (Site("wide", "channel", 4, may_be_empty=False), Site("narrow", "channel", 2))


def test_where_every_gate_is_frozen_the_first_batch_says_what_all_would():
    gated = gated_resnet()
    gates = [wrapper.gate for _, wrapper in gated_modules(gated)]
    for number, gate in enumerate(gates):
        gate.freeze(torch.tensor([number % 2 == 0]))
    evaluated = []
    mask = consensus_mask(gated, (evaluated.append(1) or images(4) for _ in range(5)))
    assert (len(evaluated), mask.agreement) == (1, 1.0)
    assert [len(site.kept) for site in mask.sites] == [1, 0, 1, 0, 1, 0, 1, 0, 1]
    gates[3].freeze(None)
    consensus_mask(gated, (evaluated.append(1) or images(4) for _ in range(5)))
    assert len(evaluated) == 1 + 5
    consensus_mask(masked(gated, mask), (evaluated.append(1) or images(4) for _ in range(5)))
    assert len(evaluated) == 1 + 5 + 1, "fixed gates are frozen, too"


@pytest.mark.parametrize(("mean", "stays"), [(0.0, False), (0.5, False), (0.5 + 1e-7, True), (1.0, True)])
def test_a_unit_stays_where_its_mean_exceeds_one_half(mean, stays):
    mask = vote(torch.tensor([mean], dtype=torch.float64), LAYERS[:1])
    assert mask.kept == {"a": (0,) if stays else ()}


def test_agreement_is_the_share_of_samples_that_decide_like_the_mask():
    mask = vote(torch.tensor([1.0, 0.25, 0.75]), LAYERS)
    assert mask.kept == {"a": (0,), "b": (), "c": (0,)}
    assert [site.agreement for site in mask.sites] == [1.0, 0.75, 0.75]
    assert mask.agreement == pytest.approx(2.5 / 3)
    assert mask.open_ratio == pytest.approx(2 / 3)
    assert mask.figures()["gate_means"] == {"a": 1.0, "b": 0.25, "c": 0.75}
    assert [site.r_polar for site in mask.sites] == [0.0, 0.1875, 0.1875]
    assert mask.figures()["r_polar"] == pytest.approx(0.125)


def test_figures_of_sites_with_several_units_are_means_over_units_then_over_sites():
    mask = vote(torch.tensor([1.0, 0.75, 0.5, 0.0, 1.0, 1.0]), CHANNELS)
    wide, narrow = mask.sites
    assert (wide.kept, narrow.kept) == ((0, 1), (0, 1))
    assert wide.agreement == pytest.approx((1 + 0.75 + 0.5 + 1) / 4)
    assert wide.mean_activation == pytest.approx(2.25 / 4)
    assert wide.r_polar == pytest.approx((0.1875 + 0.25) / 4)
    assert mask.agreement == pytest.approx((3.25 / 4 + 1) / 2)
    assert mask.open_ratio == pytest.approx(4 / 6)
    assert (wide.undecided, narrow.undecided) == (2, 0)


def test_the_histogram_counts_units_by_their_mean():
    mask = vote(torch.tensor([0.0, 0.03, 0.51, 1.0, 0.97, 1.0]), CHANNELS)
    wide, narrow = (dict(enumerate(site.histogram)) for site in mask.sites)
    assert {n: count for n, count in wide.items() if count} == {0: 2, 10: 1, 19: 1}
    assert {n: count for n, count in narrow.items() if count} == {19: 2}
    assert mask.figures()["gate_histogram"] == [2, *[0] * 9, 1, *[0] * 8, 3]


@pytest.mark.parametrize(
    ("mean", "undecided"), [(0.0, False), (0.01, False), (0.0101, True), (0.5, True), (0.9899, True), (0.99, False)]
)
def test_a_unit_is_undecided_when_more_than_one_sample_in_a_hundred_disagrees(mean, undecided):
    mask = vote(torch.tensor([mean], dtype=torch.float64), LAYERS[:1])
    assert mask.undecided == (["a"] if undecided else [])


def test_a_site_that_may_not_be_empty_keeps_its_most_active_unit():
    mask = vote(torch.tensor([0.1, 0.4, 0.3, 0.4, 0.1, 0.2]), CHANNELS)
    assert mask.kept == {"wide": (1,), "narrow": ()}
    assert ([site.flipped for site in mask.sites], mask.flipped) == ([1, 0], 1)
    assert mask.sites[0].agreement == pytest.approx((0.9 + 0.4 + 0.7 + 0.6) / 4)


@pytest.mark.parametrize(
    ("means", "round_to", "stays", "flipped"),
    [
        ([0.9, 0.1, 0.4, 0.3, 0.0], 2, (0, 2), 1),  # the most active closed unit comes back
        ([0.9, 0.1, 0.4, 0.3, 0.0], 3, (0, 2, 3), 2),
        ([0.9, 0.8, 0.4, 0.3, 0.0], 2, (0, 1), 0),  # a multiple already
        ([0.9, 0.8, 0.7, 0.6, 0.0], 3, (0, 1, 2, 3, 4), 1),  # never beyond what there is
        ([0.9, 0.1, 0.4, 0.3, 0.0], 8, (0, 1, 2, 3, 4), 4),
        ([0.9, 0.0, 0.0, 0.0, 0.0], 2, (0, 1), 1),  # equal ones: the first
        ([0.1, 0.1, 0.4, 0.3, 0.0], 2, (2, 3), 2),  # one may not be missing, so two stay
        ([0.9, 0.1, 0.4, 0.3, 0.0], 1, (0,), 0),
    ],
)
def test_channels_are_rounded_up_by_those_that_were_nearest_to_staying(means, round_to, stays, flipped):
    mask = vote(torch.tensor(means), (Site("five", "channel", 5, may_be_empty=False),), round_to)
    assert mask.kept == {"five": stays}
    assert mask.flipped == flipped


def test_rounding_leaves_layers_and_sites_without_any_channel_alone():
    found = (Site("layer", "layer", 1), Site("empty", "channel", 4, may_be_empty=True))
    mask = vote(torch.tensor([0.2, 0.1, 0.2, 0.3, 0.4]), found, round_to=2)
    assert mask.kept == {"layer": (), "empty": ()}
    assert mask.flipped == 0


def test_rounding_counts_against_agreement_but_not_as_undecided_gates():
    site = Site("four", "channel", 4)
    voted, rounded = (vote(torch.tensor([1.0, 0.0, 0.0, 0.0]), (site,), n) for n in (1, 2))
    assert (voted.agreement, rounded.agreement) == (1.0, 0.75)
    assert (voted.undecided, rounded.undecided) == ([], [])


def test_a_recipe_can_ask_for_rounded_masks():
    config = RunConfig(name="n", data="d", model="resnet8", gates=GatesConfig(kind="channel"), round_to=16)
    phase = next(iter(METHODS["consensus"](Task(config, 4, (3, 16, 16))).phases()))
    mask = phase.vote(undecided(phase.module), [images(32)])
    assert all(len(kept) % 16 == 0 for kept in mask.kept.values())
    assert mask.flipped


def test_a_rounded_mask_is_what_a_gated_network_collapses_to():
    gated = undecided(attach_gates(shaken(build_model("resnet8", num_classes=4)), kind="channel")).eval()
    x = images(32)
    voted, rounded = consensus_mask(gated, [x]), consensus_mask(gated, [x], round_to=8)
    assert any(len(kept) % 8 for kept in voted.kept.values())
    assert all(len(kept) % 8 == 0 for kept in rounded.kept.values())
    assert rounded.flipped == sum(len(rounded.kept[s]) - len(voted.kept[s]) for s in voted.kept) > 0
    small = collapse(gated, rounded)
    assert small.layer1[0].conv1.out_channels % 8 == 0
    same(small(x), masked(gated, rounded)(x), 1e-4)


def test_a_mask_by_hand_is_sorted_and_in_the_order_of_the_network():
    mask = UnitMask.of({"narrow": [], "wide": [3, 0]}, CHANNELS)
    assert mask.kept == {"wide": (0, 3), "narrow": ()}
    assert [site.name for site in mask.sites] == ["wide", "narrow"]
    assert (mask.agreement, mask.undecided, mask.open_ratio) == (1.0, [], pytest.approx(2 / 6))


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        ({"wide": [0]}, "narrow"),
        ({"wide": [0], "narrow": [], "other": []}, "other"),
        ({"wide": [4], "narrow": []}, r"'wide'.*0\.\.3"),
        ({"wide": [-1], "narrow": []}, "'wide'"),
        ({"wide": [1, 1], "narrow": []}, "'wide'.*distinct"),
        ({"wide": [], "narrow": []}, "'wide'.*no shortcut"),
    ],
)
def test_masks_that_do_not_fit_are_refused_by_name(kept, named):
    with pytest.raises(UserError, match=named):
        UnitMask.of(kept, CHANNELS)


def test_mask_json_round_trips(tmp_path):
    mask = vote(torch.tensor([1.0, 0.7, 0.2, 0.1, 0.6, 0.0]), CHANNELS)
    path = tmp_path / "mask.json"
    path.write_text(json.dumps(mask.as_dict()))
    assert load_mask(path) == mask
    assert load_mask(str(path)) == mask


def test_mask_json_says_what_the_run_folder_promises():
    data = vote(torch.tensor([1.0, 0.25, 0.75]), LAYERS).as_dict()
    assert {"name", "kind", "units", "mean_activation", "kept", "agreement"} <= data["sites"][0].keys()
    assert data["totals"] == {
        "kept": 2,
        "units": 3,
        "open_ratio": pytest.approx(2 / 3),
        "agreement": pytest.approx(2.5 / 3),
    }


SITE = {"name": "a", "kind": "layer", "units": 1, "mean_activation": 1.0, "kept": [0], "agreement": 1.0}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        json.dumps({"sites": 3}),
        json.dumps({"sites": ["a"]}),
        json.dumps({"sites": [{**SITE, "extra": 1}]}),
        json.dumps({"sites": [{k: v for k, v in SITE.items() if k != "kept"}]}),
        json.dumps({"sites": [{k: v for k, v in SITE.items() if k != "agreement"}]}),
    ],
)
def test_what_is_not_a_mask_json_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / "mask.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"mask\.json is not a readable"):
        load_mask(path)


def test_a_missing_mask_json_is_refused_and_an_old_one_without_extras_is_read(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load_mask(tmp_path / "nowhere")
    (tmp_path / "old").write_text(json.dumps({"sites": [SITE]}))
    assert load_mask(tmp_path / "old") == UnitMask((SiteMask("a", "layer", 1, 1.0, (0,), 1.0),))


@pytest.mark.parametrize("cuts", [[24], [1, 23], [7, 7, 7, 3], [2] * 12])
def test_the_consensus_is_that_of_the_means_over_all_samples_however_they_are_batched(cuts):
    gated = gated_resnet(14)
    x = images(24)
    decisions = []
    for _, wrapper in gated_modules(gated):
        wrapper.gate.register_forward_hook(lambda _, __, out: decisions.append(out[2].double()))
    with torch.no_grad():
        gated(x)
    means = torch.cat(decisions, dim=1).mean(0)
    assert (means.sub(0.5).abs() < 0.5).any()
    batches = list(x.split(cuts))
    expected = vote(means, sites(gated))
    assert consensus_mask(gated, batches).as_dict() == expected.as_dict()
    labelled = ((images, torch.zeros(len(images))) for images in batches)
    assert consensus_mask(gated, labelled).as_dict() == expected.as_dict()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode_its_statistics_and_its_weights(training):
    gated = gated_resnet(8).train(training)
    before = {name: tensor.clone() for name, tensor in gated.state_dict().items()}
    consensus_mask(gated, [images()])
    assert all(module.training is training for module in gated.modules())
    for name, tensor in gated.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in gated.parameters())


def test_layers_that_their_owner_froze_in_eval_mode_stay_there():
    gated = gated_resnet(8).train()
    norms = [m for m in gated.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    consensus_mask(gated, [images()])
    assert gated.training
    assert not any(norm.training for norm in norms)


def test_no_sample_at_all_is_refused():
    with pytest.raises(UserError, match="at least one sample"):
        consensus_mask(attach_gates(build_model("resnet8", num_classes=10)), [])


def test_decisions_of_training_steps_do_not_leak_into_the_next_step():
    gated = gated_resnet(8)
    consensus_mask(gated, [images()])
    assert all(wrapper.gate.pop_decisions() is None for _, wrapper in gated_modules(gated))


def test_a_mask_whose_histograms_do_not_fit_together_is_refused():
    sites = [SiteMask(name, "layer", 1, 1.0, (0,), 1.0, histogram=bins) for name, bins in (("a", (0, 1)), ("b", (1,)))]
    with pytest.raises(UserError, match="the histograms of its sites differ in length"):
        UnitMask.restore(UnitMask(tuple(sites)).as_dict(), {})

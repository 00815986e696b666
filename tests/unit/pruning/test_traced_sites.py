"""Sites by tracing: networks of no known family are sliced exactly, and what cannot be is refused or stays whole."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from traced_networks import NETWORKS, conv, head, network
from unit_helpers import half_resnet, images, relative_difference, shaken, small_vgg

from dist_prune import UserError, attach_gates, collapse, gate_means, load_sliced, masked, polarization, save_sliced
from dist_prune.gates.wrappers import gated_modules, sites
from dist_prune.measure.macs import count_macs
from dist_prune.pruning.costs import unit_costs
from dist_prune.pruning.families import channel_sites
from dist_prune.pruning.mask import UnitMask
from dist_prune.pruning.traced_sites import traced_sites


def drawn_mask(found, seed: int) -> UnitMask:
    drawn = random.Random(seed)
    kept = {s.name: sorted(drawn.sample(range(s.units), drawn.randint(1, s.units))) for s in found}
    return UnitMask.of(kept, found)


class Case:
    def __init__(self, name: str) -> None:
        self.name = name
        self.plain, size = network(name)
        self.shape = (3, size, size)
        self.gated = attach_gates(copy.deepcopy(self.plain), "channel", input_shape=self.shape).eval()
        self.sites = sites(self.gated)
        self.x = images(2, size, dtype=torch.float64)


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    return Case(request.param)


@torch.no_grad()
def test_masked_output_equals_sliced_output_and_macs_are_those_predicted(case):
    mask = drawn_mask(case.sites, 1)
    gated = copy.deepcopy(case.gated).double()
    expected, small = masked(gated, mask)(case.x), collapse(gated, mask)
    assert relative_difference(small(case.x), expected) <= 1e-9
    assert relative_difference(mask.masked(copy.deepcopy(case.plain).double())(case.x), expected) <= 1e-9
    # The mask makes a difference, or the comparison would say nothing.
    assert relative_difference(case.plain.double()(case.x), expected) > 1e-4
    case.plain.float()
    costs = unit_costs(case.plain, case.shape, case.sites)
    assert costs.of(mask.kept) == count_macs(small, case.shape) < costs.dense


def test_all_sites_are_found(case):
    assert len(case.sites) == NETWORKS[case.name][2]
    assert len({site.name for site in case.sites}) == len(case.sites)


def test_every_gate_has_a_decision_for_each_unit_and_the_loss_reaches_it(case):
    gated = copy.deepcopy(case.gated).train()
    for _, module in gated_modules(gated):
        nn.init.constant_(module.gate.last.bias, 0.5)
    out = gated(images(4, case.shape[1]))
    means = gate_means(gated)
    assert means.sizes == tuple(site.units for site in case.sites)
    (out.square().sum() + polarization(means)).backward()
    assert all((module.gate.last.bias.grad != 0).any() for _, module in gated_modules(gated))


def test_a_sliced_network_of_ones_own_comes_back_into_its_dense_class(case, tmp_path):
    small = collapse(case.gated, drawn_mask(case.sites, 3))
    folder = save_sliced(small, tmp_path / "sliced")
    before = repr(case.plain)
    back = load_sliced(folder, dense=case.plain)
    assert repr(back) == repr(small)
    assert repr(case.plain) == before
    with torch.no_grad():
        torch.testing.assert_close(back(case.x.float()), small(case.x.float()), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_a_class_of_ones_own_names_it(tmp_path):
    gated = attach_gates(network("U-Net")[0], "channel")
    folder = save_sliced(collapse(gated, drawn_mask(sites(gated), 0)), tmp_path / "sliced")
    with pytest.raises(UserError, match=r"dense=traced_networks\.UNet"):
        load_sliced(folder)
    with pytest.raises(UserError, match=r"site"):
        load_sliced(folder, dense=network("MLP")[0])
    with pytest.raises(UserError, match=r"dense is a network, such as MyNet\(\), not <class"):
        load_sliced(folder, dense=torch.nn.Linear)


FAMILIES = {
    "resnet": lambda: half_resnet(Bottleneck),
    "vgg": lambda: small_vgg(batch_norm=True),
    "vgg without norms": lambda: small_vgg(batch_norm=False),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_traced_sites_include_those_of_a_known_family(family):
    """With the same units, MACs and outputs."""
    plain = shaken(FAMILIES[family]()).eval().double()
    traced = traced_sites(plain).sites
    x = images(2, 32, dtype=torch.float64)
    assert channel_sites(plain)
    for listed in channel_sites(plain):
        same = next(s for s in traced if {p.module for p in listed.slices} == {p.module for p in s.slices})
        assert same.units == listed.units
        assert {(p.module, p.dim, p.width) for p in same.slices} == {(p.module, p.dim, p.width) for p in listed.slices}
        kept = range(0, same.units, 3)
        costs = [unit_costs(plain, (3, 32, 32), [site]).of({site.name: kept}) for site in (same, listed)]
        assert costs[0] == costs[1]
        with torch.no_grad():
            outputs = [UnitMask.of({site.name: kept}, [site]).masked(plain)(x) for site in (listed, same)]
        assert relative_difference(*outputs) <= 1e-9


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.out = conv(3, 8, 3), conv(8, 8, 3, padding=1), nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(self.block(self.stem(x))))


class ByValue(Twice):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(self.block(x) if x.sum() > 0 else x)


class TwoHeads(Twice):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.out(x), self.out[1](x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Twice, "'block' is called twice.*a module of its own"),
        (ByValue, "cannot trace 'ByValue'.*values of tensors"),
        (TwoHeads, "TwoHeads returns a tuple.*wrap it"),
    ],
)
def test_what_cannot_be_traced_is_refused_by_name_when_gates_are_attached(model, message):
    with pytest.raises(UserError, match=message):
        attach_gates(model(), "channel")


class InPlace(Twice):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x[:, :4] += 1
        return self.out(F.relu(self.block(x)))


class LayerNormed(Twice):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(self.block(F.layer_norm(x.movedim(1, -1), (8,)).movedim(-1, 1)))


@pytest.mark.parametrize(("model", "why"), [(InPlace, "overwrite"), (LayerNormed, "layer_norm")])
def test_a_part_that_no_gate_can_close_stays_whole_with_the_reason(model, why):
    found = traced_sites(model())
    assert [site.name for site in found.sites] == ["block.0"]
    assert why in found.whole["stem.0"]


def test_a_network_without_any_site_is_refused_with_the_reason():
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.LayerNorm(36), nn.Flatten(), nn.Linear(288, 10))
    plain[2] = nn.LayerNorm([8, 36])
    with pytest.raises(UserError, match=r"'0' stays whole: layer_norm in '2'"):
        attach_gates(plain, "channel", input_shape=(3, 8, 8))


def test_images_of_a_shape_that_nobody_could_guess_need_to_be_told():
    plain = nn.Sequential(conv(5, 8, 3), nn.Flatten(), nn.Linear(8 * 9 * 15, 10))
    with pytest.raises(UserError, match="input_shape"):
        attach_gates(copy.deepcopy(plain), "channel")
    assert sites(attach_gates(plain, "channel", input_shape=(5, 11, 17)))[0].units == 8

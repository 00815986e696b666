"""Every family, sliced: its norms fold exactly, and ONNX and pt2 compute what it does at any batch size."""

import copy

import pytest
import torch
from sliced_families import FAMILIES, sliced
from torch import nn
from unit_helpers import images, shaken

from dist_prune import export
from dist_prune.export import FORMATS, record
from dist_prune.pruning.batch_norm_folding import fold_batch_norms, foldable_norms

# The others have no kind of layer that these have not; each takes seconds, so make drills has them.
SLOW = ("cifar A, channels between", "vgg with norms", "mobilenet, channels", "inception")
EVERY = [pytest.param(name, marks=pytest.mark.drill if name in SLOW else ()) for name in FAMILIES]


@pytest.fixture(scope="module", params=EVERY)
def family(request):
    """Name, network, and the network as recorded: once for all tests, as it takes seconds."""
    torch.manual_seed(0)
    small = sliced(request.param)
    with torch.no_grad():
        return request.param, small, record(small, images(2, 32))


@torch.no_grad()
def test_folded_norms_change_no_output(family):
    name, small, program = family
    x, expected = images(3, 32), FAMILIES[name][2]
    norms = [n for n, module in small.named_modules() if isinstance(module, nn.BatchNorm2d)]
    found = foldable_norms(program, small)
    assert len(found) == (len(norms) if expected == "all" else expected)
    folded = fold_batch_norms(copy.deepcopy(small), found)
    left = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert left == len(norms) - len(found)
    torch.testing.assert_close(folded(x), small(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_files_compute_what_the_network_does_at_any_batch_size(family, tmp_path, monkeypatch):
    _, small, program = family
    monkeypatch.setattr(export, "record", lambda *_: program)
    for format in ("onnx", "pt2"):
        FORMATS[format].write(small, images(2, 32), {}, tmp_path / f"model.{format}")
        loaded = FORMATS[format].read(tmp_path / f"model.{format}")
        for size in (1, 2, 5):
            x = images(size, 32)
            difference = (loaded(x) - small(x)).abs().max()
            assert difference <= 1e-4 * max(1.0, small(x).abs().max()), (format, size)


class Odd(nn.Module):
    """One convolution and its norm, connected in some way in which they must stay two."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.compute = forward

    def forward(self, x):
        return self.compute(self, x)


def conv_is_read_twice(net, x):
    y = net.conv(x)
    return net.norm(y) + y


ODD = {
    "the convolution is read elsewhere as well": conv_is_read_twice,
    "the norm comes first": lambda net, x: net.conv(net.norm(x)),
    "something lies between": lambda net, x: net.norm(net.conv(x).relu()),
    "the convolution is used twice": lambda net, x: net.norm(net.conv(net.conv(x))),
    "the norm is used twice": lambda net, x: net.norm(net.norm(net.conv(x))),
    "they do not follow each other": lambda net, x: net.conv(x) + net.norm(x),
}


@pytest.mark.parametrize("way", ODD)
def test_a_norm_stays_where_folding_it_would_change_something(way):
    net = shaken(Odd(ODD[way])).eval()
    assert foldable_norms(record(net, images(2)), net) == {}


def test_a_norm_that_is_a_class_of_its_own_stays():
    class NormAndMore(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    net = Odd(lambda net, x: net.norm(net.conv(x)))
    assert foldable_norms(record(net.eval(), images(2)), net) == {"norm": "conv"}
    net.norm = NormAndMore(3)
    assert foldable_norms(record(net.eval(), images(2)), net) == {}

"""The usual gating module as one compiled operation equals its layers, called one by one in float64."""

import copy

import pytest
import torch
from unit_helpers import images, maps, shaken

from dist_prune import attach_gates, build_model, gate_means
from dist_prune.gates import GatingModule, Moment, gated_modules

SHAPES = [(2, 3, 4, 4), (32, 16, 8, 8), (9, 33, 1, 1), (16, 200, 3, 5)]
OUTPUTS = ("first", "second", "obeyed", "own")  # what a network may use of a gate


def gating_module(channels: int, units: int = 1, **settings) -> GatingModule:
    torch.manual_seed(3)
    gate = shaken(GatingModule(channels, units, open_bias=None, number=2))
    for name in ("threshold", "reach", "sensitivity"):
        getattr(gate, name).fill_(settings.pop(name, 0.0 if name == "threshold" else 1.0))
    for name, value in settings.items():
        setattr(gate, name, value)
    gate.moment = Moment(seed=1, step=70, first_sample=24)
    return gate


def seen(gate: GatingModule, x: torch.Tensor, used: tuple[str, ...] = OUTPUTS) -> list[torch.Tensor]:
    """Decisions, logits, all gradients and the buffers after a step of training, in float64."""
    x = x.detach().requires_grad_()
    first, second, obeyed = gate(x)
    own, logits = gate.take_decisions()
    outs = dict(zip(OUTPUTS, (first, second, obeyed, own), strict=True))
    torch.manual_seed(5)
    upstream = {name: torch.randn(out.shape).to(out.dtype) for name, out in outs.items()}
    torch.autograd.backward([outs[name] for name in used], [upstream[name] for name in used])
    gradients = [x.grad, *(parameter.grad for parameter in gate.parameters())]
    values = [obeyed.detach(), own.detach(), logits, *gradients, *gate.buffers()]
    return [torch.zeros(()) if value is None else value.double() for value in values]


def at_once(gate: GatingModule, x: torch.Tensor) -> bool:
    return copy.deepcopy(gate)._at_once(x, gate.moment) is not None


@pytest.mark.parametrize(
    "settings",
    [{}, {"exploration": 0.5}, {"feedback": False}, {"threshold": 0.2, "reach": 3.0, "sensitivity": 0.1}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("units", [1, 7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decisions_gradients_and_statistics_are_those_of_the_layers(shape, units, dtype, settings, compiled):
    gate = gating_module(shape[1], units, **settings)
    x = maps(shape, "channels_last", dtype)
    assert at_once(gate, x)
    wide = copy.deepcopy(gate).double()
    ours, theirs = seen(gate, x), seen(wide, x.double())
    unit = 4 * torch.finfo(dtype).eps
    for place, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        rounding = unit if place == 3 else 1e-4  # only the gradient of the map has the map's dtype
        assert (our - their).abs().max() <= rounding * max(1.0, their.abs().max().item()), place


@pytest.mark.parametrize(
    "used", [("first",), ("second",), ("obeyed",), ("own",), ("first", "obeyed"), ("obeyed", "own")], ids=str
)
def test_gradients_are_right_whatever_the_network_uses(used, compiled):
    gate = gating_module(8, 3, exploration=0.5)
    x = maps((16, 8, 4, 4), "channels_last", torch.float32)
    theirs = seen(copy.deepcopy(gate).double(), x.double(), used)
    for our, their in zip(seen(gate, x, used), theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


def test_a_layer_that_someone_listens_to_is_called(compiled):
    """ZeRO 3 gathers a layer's weights in such a hook."""
    gate, x = gating_module(8), maps((4, 8, 2, 2), "channels_last", torch.float32)
    for layer in (gate.body[0], gate.body[1], gate.body[2], gate.last):
        for listen in (layer.register_forward_hook, layer.register_forward_pre_hook):
            heard = []
            handle = listen(lambda *_, heard=heard: heard.append(1))
            gate(x)
            assert heard == [1]
            handle.remove()
    heard = []
    handle = gate.last.register_full_backward_hook(lambda *_: heard.append(1))
    gate(x)[2].sum().backward()
    assert heard == [1]
    handle.remove()
    assert at_once(gate, x)


@pytest.mark.parametrize(
    "gate",
    [
        GatingModule(8, dense_layers=1),
        GatingModule(8, dense_layers=3),
        GatingModule(8, head="gumbel"),
        GatingModule(8, head="bernoulli"),
        GatingModule(8 * 4, flatten=True),
        GatingModule(8).eval(),
        GatingModule(8).bfloat16(),
    ],
    ids=["one dense layer", "three", "gumbel", "bernoulli", "flattened", "evaluation", "bf16 weights"],
)
def test_other_gating_modules_work_layer_by_layer(gate, compiled):
    x = maps((4, 8, 2, 2), "channels_last", torch.float32)
    assert not at_once(gate, x)
    assert gate(x)[2].shape == (4, 1)


def test_a_single_sample_is_refused_as_by_torchs_norm(compiled):
    with pytest.raises(ValueError, match="more than 1 value"):
        gating_module(8)(maps((1, 8, 2, 2), "channels_last", torch.float32))


def test_second_derivatives_are_refused(compiled):
    gate, x = gating_module(8), maps((4, 8, 2, 2), "channels_last", torch.float32)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(gate(x)[0].square().sum(), x, create_graph=True)


@pytest.mark.parametrize("kind", ["layer", "channel"])
def test_a_network_trains_as_with_torchs_operations(kind, compiled, monkeypatch):
    """Five steps of SGD, once with kernels and once without, in fp32."""
    losses = []
    for kernels in (True, False):
        if not kernels:
            monkeypatch.setattr("dist_prune.gates.kernels._kernels", None)
        torch.manual_seed(0)
        model = attach_gates(build_model("resnet8", num_classes=10), kind)
        for _, gated in gated_modules(model):
            gated.gate.exploration = 0.3
        model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(5):
            logits = model(images(32).to(memory_format=torch.channels_last))
            values = gate_means(model).values
            loss = (
                torch.nn.functional.cross_entropy(logits, torch.arange(32) % 10)
                + (values * (1 - values)).mean()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

"""The usual gating module as one compiled operation equals its layers, called one by one in float64."""

import copy

import pytest
import torch
from torch import nn
from unit_helpers import images, maps, same, shaken

from dist_prune import attach_gates, build_model, gate_means
from dist_prune.gates.cpu_kernels.fused_gating import fused_gating
from dist_prune.gates.gate import Gate
from dist_prune.gates.noise import NoiseKey
from dist_prune.gates.wrappers import gated_modules

SHAPES = [(2, 3, 4, 4), (32, 16, 8, 8), (9, 33, 1, 1), (16, 200, 3, 5)]
OUTPUTS = ("first", "second", "applied", "decided")  # what a network may use of a gate


def gating_module(channels: int, units: int = 1, **settings) -> Gate:
    torch.manual_seed(3)
    gate = shaken(Gate(channels, units, open_bias=None, number=2))
    for name in ("threshold", "ste_window", "logit_scale"):
        getattr(gate, name).fill_(settings.pop(name, 0.0 if name == "threshold" else 1.0))
    for name, value in settings.items():
        setattr(gate, name, value)
    gate.noise_key = NoiseKey(seed=1, step=70, first_sample=24)
    return gate


def seen(gate: Gate, x: torch.Tensor, used: tuple[str, ...] = OUTPUTS) -> list[torch.Tensor]:
    """Decisions, logits, all gradients and the buffers after a step of training, in float64."""
    x = x.detach().requires_grad_()
    first, second, applied = gate(x)
    decided, logits = gate.pop_decisions()
    outs = dict(zip(OUTPUTS, (first, second, applied, decided), strict=True))
    torch.manual_seed(5)
    upstream = {name: torch.randn(out.shape).to(out.dtype) for name, out in outs.items()}
    torch.autograd.backward([outs[name] for name in used], [upstream[name] for name in used])
    gradients = [x.grad, *(parameter.grad for parameter in gate.parameters())]
    values = [applied.detach(), decided.detach(), logits, *gradients, *gate.buffers()]
    return [torch.zeros(()) if value is None else value.double() for value in values]


def is_fused(gate: Gate, x: torch.Tensor) -> bool:
    copied = copy.deepcopy(gate)
    features = copied._features(x)[2].to(gate.last.weight.dtype)
    return fused_gating(copied, features, None) is not None


@pytest.mark.parametrize(
    "settings",
    [{}, {"random_drop": 0.5}, {"backprop_to_input": False}, {"threshold": 0.2, "ste_window": 3.0, "logit_scale": 0.1}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("units", [1, 7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decisions_gradients_and_statistics_are_those_of_the_layers(shape, units, dtype, settings, compiled):
    gate = gating_module(shape[1], units, **settings)
    x = maps(shape, "channels_last", dtype)
    assert is_fused(gate, x)
    wide = copy.deepcopy(gate).double()
    ours, theirs = seen(gate, x), seen(wide, x.double())
    unit = 4 * torch.finfo(dtype).eps
    for place, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        rounding = unit if place == 3 else 1e-4  # only the gradient of the map has the map's dtype
        assert (our - their).abs().max() <= rounding * max(1.0, their.abs().max().item()), place


@pytest.mark.parametrize(
    "used", [("first",), ("second",), ("applied",), ("decided",), ("first", "applied"), ("applied", "decided")], ids=str
)
def test_gradients_are_right_whatever_the_network_uses(used, compiled):
    gate = gating_module(8, 3, random_drop=0.5)
    x = maps((16, 8, 4, 4), "channels_last", torch.float32)
    theirs = seen(copy.deepcopy(gate).double(), x.double(), used)
    for our, their in zip(seen(gate, x, used), theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


def test_a_layer_that_has_hooks_is_called(compiled):
    """ZeRO 3 gathers a layer's weights in such a hook."""
    gate, x = gating_module(8), maps((4, 8, 2, 2), "channels_last", torch.float32)
    forward = [hook for part in (gate.body, *gate.body, gate.last, gate.head)
               for hook in (part.register_forward_hook, part.register_forward_pre_hook)]  # fmt: skip
    anywhere = nn.modules.module.register_module_forward_hook
    for hook in (*forward, gate.last.register_full_backward_hook, anywhere):
        called = []
        handle = hook(lambda *_, called=called: called.append(1))
        gate(x)[2].sum().backward()
        assert called
        handle.remove()
    assert is_fused(gate, x)


def replaced(place: str, layer: nn.Module) -> Gate:
    gate = Gate(8)
    gate.set_submodule(place, layer)
    return gate


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


UNUSUAL = {
    "one dense layer": Gate(8, dense_layers=1),
    "three": Gate(8, dense_layers=3),
    "gumbel": Gate(8, head="gumbel"),
    "bernoulli": Gate(8, head="bernoulli"),
    "evaluation": Gate(8).eval(),
    "bf16 weights": Gate(8).bfloat16(),
    "another layer": replaced("body.0", Doubled(8, 16)),
    "no bias": replaced("body.0", nn.Linear(8, 16, bias=False)),
    "another last layer": replaced("last", Doubled(16, 1)),
    "another activation": replaced("body.2", nn.GELU()),
    "norm of samples": replaced("body.1", nn.LayerNorm(16)),
    "frozen norm": replaced("body.1", nn.BatchNorm1d(16).eval()),
    "cumulative statistics": replaced("body.1", nn.BatchNorm1d(16, momentum=None)),
    "no statistics": replaced("body.1", nn.BatchNorm1d(16, track_running_stats=False)),
    "norm without weights": replaced("body.1", nn.BatchNorm1d(16, affine=False)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_other_gating_modules_are_called_layer_by_layer(name, compiled, monkeypatch):
    gate, x = copy.deepcopy(UNUSUAL[name]), maps((4, 8, 2, 2), "channels_last", torch.float32)
    assert not is_fused(gate, x)
    gate.noise_key = NoiseKey(1, 2, 3)
    reference = copy.deepcopy(gate)
    ours = gate(x)[2]
    monkeypatch.setattr("dist_prune.gates.cpu_kernels.build._kernels", None)
    assert torch.equal(ours, reference(x)[2])
    same(list(gate.buffers()), list(reference.buffers()), 1e-6)


def test_flattened_maps_and_tokens_are_features_like_any_other(compiled):
    for x, gate in (
        (torch.randn(8, 6, 4), gating_module(4)),
        (torch.randn(8, 6, 2, 2).bfloat16(), gating_module(24, 6, flatten=True)),
    ):
        assert is_fused(gate, x)
        theirs = seen(copy.deepcopy(gate).double(), x.double())
        for our, their in zip(seen(gate, x), theirs, strict=True):
            torch.testing.assert_close(our, their, rtol=2e-2, atol=2e-2)


def test_weights_of_another_shape_are_refused_in_words(compiled):
    gate, x = gating_module(8), maps((4, 8, 2, 2), "channels_last", torch.float32)
    gate.body[1] = nn.BatchNorm1d(4)
    with pytest.raises(RuntimeError, match="should contain 16 elements not 4"):
        gate(x)


def test_a_backward_pass_under_autocast_is_one_in_fp32(compiled):
    gate, x = gating_module(8), maps((8, 8, 2, 2), "channels_last", torch.float32)
    theirs = seen(copy.deepcopy(gate), x)
    with torch.autocast("cpu", torch.bfloat16):
        for our, their in zip(seen(gate, x), theirs, strict=True):
            assert torch.equal(our, their)


def test_what_the_gate_does_not_push_stays_what_it_is(compiled):
    """A map without gradient gets none, and may be changed in place."""
    gate, x = gating_module(8), torch.randn(4, 8, 2, 2).to(memory_format=torch.channels_last)
    first, second, decisions = gate(x)
    assert not first.requires_grad
    assert not second.requires_grad
    assert decisions.requires_grad
    gate.backprop_to_input = False
    held = x.clone(memory_format=torch.preserve_format).requires_grad_() * 1
    assert gate(held)[0] is held


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
            monkeypatch.setattr("dist_prune.gates.cpu_kernels.build._kernels", None)
        torch.manual_seed(0)
        model = attach_gates(build_model("resnet8", num_classes=10), kind)
        for _, gated in gated_modules(model):
            gated.gate.random_drop = 0.3
        model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(5):
            logits = model(images(32).to(memory_format=torch.channels_last))
            values = gate_means(model).values
            loss = nn.functional.cross_entropy(logits, torch.arange(32) % 10) + (values * (1 - values)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

"""Insertion of gates: modules are wrapped, never edited, so that slicing can remove the gates again."""

from collections.abc import Sequence

import torch
from torch import nn

from dist_prune.errors import UserError, nearest
from dist_prune.gates.gate import Gate
from dist_prune.gates.heads import HEADS
from dist_prune.gates.wrappers import GatedBlock, GatedBranch, GatedChannels, gated_modules, gates_of
from dist_prune.measure.macs import count_macs
from dist_prune.models.build import architecture_of, in_eval_mode, remember
from dist_prune.pruning.families import POSITIONS, channel_sites, layer_sites
from dist_prune.pruning.residual import residual_form
from dist_prune.pruning.sites import Site
from dist_prune.pruning.traced_sites import traced_sites

KINDS = ("layer", "channel")
FLATTEN_LIMIT = 0.02  # share of the network's MACs that flattened gating modules may cost by default


def find_sites(plain: nn.Module, kind: str = "layer", position: str = "between") -> tuple[Site, ...]:
    """Return the sites of a plain network that gates of one kind and position would control, in its order.

    Raises:
        UserError: unknown kind or position, or a network without such sites.
    """
    if kind not in KINDS:
        raise UserError(f"gates of kind '{kind}' are not available; {nearest(kind, KINDS)}")
    if position not in POSITIONS:
        raise UserError(f"unknown gate position '{position}'; {nearest(position, POSITIONS)}")
    found = layer_sites(plain) if kind == "layer" else channel_sites(plain, position)
    if not found:
        what = "residual layer" if kind == "layer" else f"channel site at position '{position}'"
        elsewhere = kind == "channel" and position != "between" and channel_sites(plain, "between")
        hint = "; it has some at position 'between'" if elsewhere else " of a known family in it"
        if kind == "channel" and position == "between":
            reasons = [f"'{layer}' stays whole: {why}" for layer, why in traced_sites(plain).whole.items()]
            hint = f"; {reasons[0]}" if reasons else ""
        raise UserError(f"{type(plain).__name__} has no {what}{hint}")
    return found


def attach_gates(
    model: nn.Module,
    kind: str = "layer",
    *,
    position: str = "between",
    head: str = "ste",
    hidden: int = 16,
    dense_layers: int = 2,
    flatten: bool | None = None,
    input_shape: Sequence[int] | None = None,
    open_bias: float | None = 1.0,
) -> nn.Module:
    """Put a gate on every site of ``model``, in place, and return the model.

    Args:
        model: a plain network.
        kind: ``layer`` (one gate a residual branch) or ``channel`` (one gate a feature map).
        position: of channel gates, ``before``, ``between`` or ``after`` (arXiv 2302.10798, Figure 3). Families other
            than ResNets have ``between`` only.
        head: a name of ``HEADS``.
        hidden: see ``Gate``.
        dense_layers: see ``Gate``.
        flatten: channel gates read the flattened map, as in the paper's Table 1, instead of its average over pixels.
            None: where all flattened gates together cost at most 2 % of the network's MACs.
        input_shape: of the images, (C, H, W); flattened maps need it.
        open_bias: see ``Gate``.

    Raises:
        UserError: the model or the options do not allow it.
    """
    if head not in HEADS:
        raise UserError(f"unknown gate head '{head}'; {nearest(head, HEADS)}")
    if any(True for _ in gated_modules(model)):
        raise UserError("this model has gates already")
    if input_shape is not None:
        model.dist_prune_input_shape = tuple(input_shape)  # type: ignore[assignment]
    found = find_sites(model, kind, position)
    # Wrappers hide how the network was built, which its sliced checkpoint needs.
    architecture = architecture_of(model)
    shapes = _shapes(model, found, input_shape) if kind == "channel" and input_shape else None
    if shapes is None:
        if flatten and kind == "channel":
            raise UserError("flattened channel gates need input_shape=(C, H, W)")
        flatten = False
    elif flatten is None:
        # Large maps make gates that cost more than what they can save.
        outputs = [hidden if dense_layers > 1 else site.units for site in found]
        macs = sum(shape.numel() * out for shape, out in zip(shapes, outputs, strict=True))
        flatten = macs <= FLATTEN_LIMIT * count_macs(model, input_shape)  # type: ignore[arg-type]
    reference = next(model.parameters())
    for number, site in enumerate(found):
        gate = Gate(
            shapes[number].numel() if flatten and shapes else _width(model, site), site.units,
            hidden=hidden, dense_layers=dense_layers, head=head, open_bias=open_bias, flatten=flatten, number=number,
        )  # fmt: skip
        inner = model.get_submodule(site.gate_at)
        # A gate at a ResNet block needs the block's parts: its shortcut stays when the branch is closed.
        at_layer = GatedBlock if residual_form(inner) else GatedBranch
        wrapper = GatedChannels if site.kind == "channel" else at_layer
        model.set_submodule(site.gate_at, wrapper(inner, gate.to(reference.device, reference.dtype), site))
    return model if architecture is None else remember(model, architecture)


def _width(model: nn.Module, site: Site) -> int:
    """Return the number of channels that a gate reads."""
    if site.kind == "channel":
        return len(site.channels) or site.units
    # The first layer of a branch reads what its gate reads; norms in front of it do not change the width.
    for part in model.get_submodule(site.gate_at).modules():
        if isinstance(part, nn.Conv2d):
            return part.in_channels
        if isinstance(part, nn.MultiheadAttention):
            return part.embed_dim
        if isinstance(part, nn.Linear):
            return part.in_features
    raise UserError(f"cannot tell how many channels '{site.name}' reads")


def _shapes(model: nn.Module, found: Sequence[Site], input_shape: Sequence[int]) -> list[torch.Size]:
    """Return the shapes (C, H, W) that channel gates read, for images of ``input_shape``."""
    shapes: dict[str, torch.Size] = {}
    hooks = []
    for site in found:

        def note(_: nn.Module, inputs: tuple, output: torch.Tensor, site: Site = site) -> None:
            shapes[site.name] = (output if site.behind else inputs[0]).shape[1:]

        hooks.append(model.get_submodule(site.gate_at).register_forward_hook(note))
    reference = next(model.parameters())
    with torch.no_grad(), in_eval_mode(model):
        model(torch.zeros(1, *input_shape, device=reference.device, dtype=reference.dtype))
    for hook in hooks:
        hook.remove()
    return [shapes[site.name] for site in found]


def strip_gates(model: nn.Module) -> nn.Module:
    """Remove all gates, in place: every gated module becomes the module it wraps. Return the model."""
    # A list, since the network changes while it is walked.
    for name, wrapper in list(gated_modules(model)):
        model.set_submodule(name, wrapper.inner)
    return model


def shape_gates(model: nn.Module, open_bias: float, backprop_to_input: bool, logit_scale: float) -> None:
    """Set how gates begin and learn, before training.

    Args:
        model: the gated network.
        open_bias: initial bias of the last dense layer.
        backprop_to_input: the gradient of gates flows into the maps that they read.
        logit_scale: factor on what the last dense layer reads.
    """
    for gate in gates_of(model).values():
        nn.init.constant_(gate.last.bias, open_bias)
        gate.backprop_to_input = backprop_to_input
        gate.logit_scale.fill_(logit_scale)

"""The consensus mask of a gated network, and the network under it: with fixed gates, or sliced and plain."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dist_prune import distributed
from dist_prune.errors import NothingToEvaluate
from dist_prune.gates.insertion import strip_gates
from dist_prune.gates.means import sum_decisions
from dist_prune.gates.wrappers import gated_modules, gates_of, sites
from dist_prune.models.build import in_eval_mode
from dist_prune.pruning.mask import UnitMask, vote
from dist_prune.pruning.slicing import TensorSlice, slice_in_place


@torch.no_grad()
def consensus_mask(model: nn.Module, batches: Iterable[Any], round_to: int = 1) -> UnitMask:
    """Return the mask of a gated network over a data set; the same on every rank.

    The model runs in eval mode and gets its mode back. One all-reduce at the end, whatever the number of batches.

    Args:
        model: the gated network. Its buffers (batch-norm statistics) are averaged over ranks first.
        batches: this rank's share of the data: images (B, C, H, W), or tuples that begin with them. A rank may
            have none.
        round_to: numbers of kept channels become multiples of it (see ``vote``).

    Raises:
        NothingToEvaluate: there is no sample on any rank.
    """
    # Engines synchronize parameters only: without this, ranks would vote with different networks.
    distributed.average_buffers(model)
    device = next(model.parameters()).device
    gates, model_sites = gates_of(model), sites(model)
    totals = torch.zeros(sum(site.units for site in model_sites) + 1, dtype=torch.float64, device=device)
    with in_eval_mode(model):
        for batch in batches:
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            model(images.to(device))
            sums, _, samples = sum_decisions(gates)
            totals += torch.cat([sums, sums.new_tensor([samples])])
            # Frozen gates decide the same for every sample: further batches would change nothing.
            if all(gate.frozen for gate in gates.values()):
                break
    totals = distributed.all_reduce_sum(totals)
    if totals[-1] == 0:
        raise NothingToEvaluate("the consensus mask needs at least one sample")
    return vote(totals[:-1] / totals[-1], model_sites, round_to)


def masked(model: nn.Module, mask: UnitMask) -> nn.Module:
    """Return a copy of the gated network with its gates fixed to ``mask`` for every sample; eval mode."""
    fixed = copy.deepcopy(model)
    # Refuses a mask of another network, which would silently leave gates as they are.
    UnitMask.of(mask.kept, sites(fixed))
    for _, gated in gated_modules(fixed):
        opened = torch.zeros(gated.gate.units, dtype=torch.bool)
        opened[list(mask.kept[gated.site.name])] = True
        gated.gate.freeze(opened)
    return fixed.eval()


def collapse(model: nn.Module, mask: UnitMask) -> nn.Module:
    """Return a plain network, in eval mode, with the outputs of ``masked(model, mask)``; ``model`` is unchanged.

    Raises:
        UserError: the mask does not fit the model, or leaves no path through a site.
    """
    UnitMask.of(mask.kept, sites(model))
    return slice_gated_network(model, mask.kept)[0].eval()


def slice_gated_network(
    model: nn.Module, kept: Mapping[str, Sequence[int]]
) -> tuple[nn.Module, dict[str, TensorSlice]]:
    """Return a plain copy of a gated network with only the units ``kept``, and the origin of each of its tensors.

    As ``slice_network``, with origins named as in the gated network, whose optimizer state they select.
    """
    plain = copy.deepcopy(model)
    # Stripping gates changes names, not tensors: identity links the plain names to those with gates.
    gated_names = {id(tensor): name for name, tensor in plain.state_dict(keep_vars=True).items()}
    strip_gates(plain)
    tensors = plain.state_dict(keep_vars=True)
    origins = slice_in_place(plain, kept)
    return plain, {new: TensorSlice(gated_names[id(tensors[o.name])], o.indices) for new, o in origins.items()}

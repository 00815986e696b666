"""State that all ranks must share: compared by hash, so that a difference ends the run before it is saved."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dist_prune import distributed
from dist_prune.errors import RunError, UserError
from dist_prune.runtime.failures import Peer

_MAX_NAMES_SHOWN = 3


class RanksDiffer(RunError):
    """Ranks hold different state where it must be equal."""


def agree_to_start(facts: Mapping[str, Any] | str, peers: Sequence[Peer]) -> None:
    """Compare what the ranks were started with.

    facts: nested plain data; or a text, the reason why this rank cannot start. peers: all ranks. Raises UserError on
    all ranks, with that reason or with the first difference from rank 0.
    """
    gathered = distributed.gather_objects(facts if isinstance(facts, str) else flatten(facts))
    problems = {peer: problem for peer, problem in zip(peers, gathered, strict=True) if isinstance(problem, str)}
    if problems:
        first, problem = next(iter(problems.items()))
        # A mistake in the command line is met by all ranks; only a problem of one node needs the name of a rank.
        raise UserError(problem if len(problems) == len(peers) else f"{first}: {problem}")
    for peer, theirs in zip(peers[1:], gathered[1:], strict=True):
        for key in sorted(theirs.keys() | gathered[0].keys()):
            expected, found = gathered[0].get(key), theirs.get(key)
            if expected != found:
                raise UserError(
                    f"{peer} has {key}={found} where rank 0 has {expected}: start all ranks with the same command "
                    "line, DeepSpeed config, packages and data"
                )


def agree_on(state: Mapping[str, Any], moment: str, device: torch.device) -> None:
    """Compare tensors and plain data by name, with one small collective if all ranks agree.

    moment: when this is, for the message. Raises RanksDiffer on all ranks, with the names that differ.
    """
    if distributed.world_size() == 1:
        return
    digests = {name: _digest(value) for name, value in state.items()}
    # One number stands for the whole state. Two bits are cut off because the collective takes up to 62.
    if distributed.all_equal(int(_digest(digests), 16) >> 2, device):
        return
    # Only now, when the run has failed anyway, does every rank send the digest of every tensor.
    gathered = distributed.gather_objects(digests)
    for rank, theirs in enumerate(gathered):
        names = [name for name in gathered[0] | theirs if gathered[0].get(name) != theirs.get(name)]
        if names:
            more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
            raise RanksDiffer(
                f"{moment}, rank {rank} and rank 0 differ in {', '.join(names[:_MAX_NAMES_SHOWN])}{more}, so nothing "
                "was saved: continue with --resume; if it happens again, check for faulty memory or a rank with "
                "other code"
            )


def flatten(data: Any, key: str = "") -> dict[str, str]:
    """Return nested plain data as JSON texts by dotted key."""
    if isinstance(data, Mapping) and data:
        return {
            k: v for name, value in data.items() for k, v in flatten(value, f"{key}.{name}" if key else name).items()
        }
    return {key: json.dumps(data, default=str)}


def _digest(value: Any) -> str:
    """Return a hash of 64 bits, as hexadecimal digits, of a tensor or of plain data."""
    if isinstance(value, Tensor):
        # As bytes: numpy has no bfloat16, and equal bytes are what is asked for (NaN is not equal to itself).
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    else:
        content = json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()

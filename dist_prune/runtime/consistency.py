"""What ranks must have in common: compared by hash, so that a difference ends the run before it does harm."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dist_prune import distributed
from dist_prune.errors import RunError, UserError
from dist_prune.runtime.peers import Peer

_SHOWN = 3  # differences in the line


class RanksDiffer(RunError):
    """Ranks that must hold the same do not."""


def agree_to_start(facts: Mapping[str, Any] | str) -> list[Peer]:
    """Compare what ranks were started with, plain data by name, and return who they are.

    facts: or a text, why this rank cannot start. Raises UserError on all ranks, which says why, or else names the first
    difference to rank 0.
    """
    own = facts if isinstance(facts, str) else flat(facts)
    peers, told = zip(*distributed.gather_objects((Peer.this(), own)), strict=True)
    problems = {peer: problem for peer, problem in zip(peers, told, strict=True) if isinstance(problem, str)}
    if problems:
        first, problem = next(iter(problems.items()))
        raise UserError(problem if len(problems) == len(peers) else f"{first}: {problem}")
    for peer, theirs in zip(peers[1:], told[1:], strict=True):
        for key in sorted(theirs.keys() | told[0].keys()):
            mine, other = told[0].get(key), theirs.get(key)
            if mine != other:
                raise UserError(
                    f"{peer} has {key}={other} where rank 0 has {mine}: start all ranks with the same command line, "
                    "DeepSpeed config, packages and data"
                )
    return list(peers)


def agree_on(state: Mapping[str, Any], moment: str, device: torch.device) -> None:
    """Compare tensors and plain data by name; one small collective, and one more to say what differs.

    moment: when that is, for the message. Raises RanksDiffer on all ranks.
    """
    if distributed.world_size() == 1:
        return
    digests = {name: _digest(value) for name, value in state.items()}
    if distributed.all_equal(int(_digest(digests), 16) >> 2, device):
        return
    everyone = distributed.gather_objects(digests)
    for number, theirs in enumerate(everyone):
        names = [name for name in everyone[0] | theirs if everyone[0].get(name) != theirs.get(name)]
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise RanksDiffer(
                f"{moment}, rank {number} holds another {', '.join(names[:_SHOWN])}{more} than rank 0, so nothing was "
                "saved: go on with --resume; if it happens again, look for faulty memory or a rank with other code"
            )


def flat(data: Any, key: str = "") -> dict[str, str]:
    """Return nested plain data as JSON texts by dotted key."""
    if isinstance(data, Mapping) and data:
        return {
            k: v
            for name, value in data.items()
            for k, v in flat(value, f"{key}.{name}" if key else name).items()
        }
    return {key: json.dumps(data, default=str)}


def _digest(value: Any) -> str:
    """64 bits of a hash of a tensor, or of plain data, as hexadecimal digits."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return hashlib.blake2b(content.data, digest_size=8).hexdigest()
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()

"""Weights and optimizer state as full fp32 tensors by name, at every ZeRO stage.

Stage 0 keeps both as torch does. Stages 1 and 2 train flat fp32 copies, of which each rank holds a part; stage 3
partitions the module's own weights too.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dist_prune import distributed
from dist_prune.checkpoints.train_state import OptimizerState
from dist_prune.engine.deepspeed_import import ZeroParamStatus, deepspeed_utils
from dist_prune.errors import UserError

_STEP = "step"  # AdamW's count of steps: one number, where all other states have a value per weight


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the CPU."""
    return tensor.detach().cpu().clone()


def full_fp32(parameter: nn.Parameter) -> Tensor:
    """The whole weight in the precision in which it trains; at stage 3 the parameter must be gathered."""
    if parameter.dtype == torch.float32:
        return parameter.detach()
    master = deepspeed_utils.safe_get_full_fp32_param(parameter)
    return parameter.detach().float() if master is None else master


def set_weight(parameter: Any, stage: int, value: Tensor) -> None:
    """Overwrite a weight: what the module computes with, and the fp32 copy that trains."""
    # At stage 3 only small weights stay whole between forward passes.
    if parameter.numel() == value.numel():
        parameter.data.copy_(value)
    # ZeRO's next step copies its own fp32 weights over the module's, so both must change.
    if stage == 3:
        part = _own_part(parameter, value)
        parameter.ds_tensor.data.copy_(part)
        deepspeed_utils.safe_set_local_fp32_param(parameter, part)
    elif stage:
        deepspeed_utils.safe_set_full_fp32_param(parameter, value)


def optimizer_state(optimizer: Any, stage: int, parameters: Mapping[str, nn.Parameter]) -> OptimizerState:
    """The state of each parameter that has one; all ranks call it, once a step has been taken."""
    found: dict[str, dict[str, Any]]
    if stage == 0:
        found = {name: optimizer.state.get(p, {}) for name, p in parameters.items()}
    else:
        _link_states(optimizer)
        flat = _flat_states(optimizer)[0]
        # ZeRO counts steps once for all weights; checkpoints hold the number for each, as stage 0 does.
        common = {_STEP: flat[_STEP]} if _STEP in flat else {}
        each = [key for key, value in flat.items() if key != _STEP and value is not None]
        found = {
            name: {**{key: deepspeed_utils.safe_get_full_optimizer_state(p, key) for key in each}, **common}
            for name, p in parameters.items()
            if p.requires_grad
        }
    whole = {
        name: {key: to_host(torch.as_tensor(value)) for key, value in state.items() if value is not None}
        for name, state in found.items()
    }
    return {name: state for name, state in whole.items() if state}


def set_optimizer_state(
    optimizer: Any, stage: int, parameters: Mapping[str, nn.Parameter], state: OptimizerState
) -> None:
    """Overwrite the optimizer's state; at stages 1 to 3 its tensors must exist already.

    Parameters without a state of their own (constants that pruning has made, for example) get zeros, and the number
    of steps of the others: ZeRO counts steps once for all weights, and every stage is to train alike.
    """
    pattern = next(iter(state.values()))
    if stage:
        _link_states(optimizer)
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        for key, example in pattern.items():
            default = example if key == _STEP else torch.zeros(parameter_shape(parameter))
            _set_state(optimizer, stage, parameter, key, state.get(name, {}).get(key, default))


def parameter_shape(parameter: Any) -> torch.Size:
    """The shape of the whole weight, also where it is partitioned."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _set_state(optimizer: Any, stage: int, parameter: Any, key: str, value: Tensor) -> None:
    if key == _STEP:
        # torch keeps the count on the CPU; at ZeRO every flat copy has one.
        for state in [optimizer.state[parameter]] if stage == 0 else _flat_states(optimizer):
            state[_STEP] = value.clone()
    elif stage == 0:
        optimizer.state[parameter][key] = value.to(parameter.device, copy=True)
    elif stage == 3:
        # The setter for whole tensors of DeepSpeed 0.19.8 fails where the ranks do not divide the size.
        part = _own_part(parameter, value.to(parameter.ds_tensor.device))
        deepspeed_utils.safe_set_local_optimizer_state(parameter, part, key)
    else:
        deepspeed_utils.safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)


def _own_part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's part of a whole tensor, as stage 3 partitions it: flat, and padded to equal sizes."""
    size = parameter.ds_tensor.ds_numel
    padded = F.pad(value.flatten(), (0, size * distributed.world_size() - value.numel()))
    return padded.narrow(0, size * distributed.rank(), size)


def _flat_states(optimizer: Any) -> list[dict[str, Any]]:
    """The states of ZeRO's flat copies of the weights, by state name."""
    return [state for state in optimizer.optimizer.state.values() if state]


def _link_states(optimizer: Any) -> None:
    # DeepSpeed 0.19.8 links lazily created states of the first parameter group only; linking again
    # reaches all of them. Private, therefore pinned in pyproject.toml and covered by a test.
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


# What a partitioned weight says truly: everything but its shape and its values.
_HARMLESS = {Tensor.dtype.__get__, Tensor.device.__get__, Tensor.requires_grad.__get__}  # type: ignore[attr-defined]


class PartitionedWeightsRefused(TorchFunctionMode):
    """Refuses what reads a weight that ZeRO 3 has partitioned: it is empty between forward passes."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raise UserError instead of computing with an empty weight."""
        listed = args[0] if args and isinstance(args[0], (list, tuple)) else ()
        for value in (*args, *listed) if function not in _HARMLESS else ():
            status = getattr(value, "ds_status", None) if isinstance(value, nn.Parameter) else None
            if status == ZeroParamStatus.NOT_AVAILABLE:
                raise UserError(
                    "the method reads the network's weights outside of the forward pass, and no rank holds them whole "
                    "at ZeRO 3: change them in what project() returns, or use ZeRO 0, 1 or 2"
                )
        return function(*args, **(kwargs or {}))

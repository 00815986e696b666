"""The DeepSpeed JSON: read, checked against what works, and completed with the batch sizes.

DeepSpeed ignores unknown keys silently and accepts combinations that train wrongly; those are refused here.
Nothing in this file needs deepspeed.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_prune.errors import UserError, nearest

_TOP_LEVEL = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "torch_autocast",
    "bf16", "fp16", "communication_data_type", "prescale_gradients", "gradient_predivide_factor",
    "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger",
    "flops_profiler", "aio", "data_types", "disable_allgather",
}  # fmt: skip
_REFUSED = {
    "optimizer": "the recipe owns the optimizer (lr, momentum, weight_decay)",
    "scheduler": "the recipe owns the schedule (lr_schedule)",
    "compression_training": "DeepSpeed removed it; gates are set in the recipe",
    "elasticity": "DeepSpeed removed it; stop and continue with --resume at another world size",
    "tensorboard": "the run folder has its own TensorBoard records",
}
_AUTOCAST = {"enabled", "dtype", "lower_precision_safe_modules"}


@dataclass(frozen=True)
class Batching:
    """Division of a global batch: ``micro`` images per rank and forward pass, ``accumulation`` passes a step."""

    micro: int
    accumulation: int
    world_size: int

    @property
    def global_batch(self) -> int:
        """Images per optimizer step over all ranks."""
        return self.micro * self.accumulation * self.world_size


def load_ds_config(path: str | Path) -> dict[str, Any]:
    """Return the checked content of a DeepSpeed JSON file; raises UserError that names the file and the key."""
    try:
        config = json.loads(Path(path).read_text(), object_pairs_hook=_object, parse_constant=_refuse_constant)
        check_ds_config(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read the DeepSpeed config {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"the DeepSpeed config {path} is not valid JSON: {error}") from error
    return config


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON readers keep the last of equal keys: which one the user meant, nobody knows.
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise UserError(f"'{key}' stands there {count} times; keep one")
    return dict(pairs)


def _refuse_constant(text: str) -> float:
    raise UserError(f"{text} is no number that DeepSpeed can use; give a finite one")


def check_ds_config(config: dict[str, Any]) -> None:
    """Raise UserError for an unknown or foreign key, an "auto", or a combination known to train wrongly."""
    if not isinstance(config, dict):
        raise UserError("the DeepSpeed config must be a JSON object")
    # DeepSpeed ignores unknown keys, so that a typo would train with its default.
    for key, value in config.items():
        if key in _REFUSED:
            raise UserError(f"'{key}' does not belong here: {_REFUSED[key]}")
        if key not in _TOP_LEVEL:
            raise UserError(f"unknown key '{key}'; {nearest(key, _TOP_LEVEL)}")
        _refuse_auto(key, value)
    for key in ("zero_optimization", "torch_autocast", "bf16", "fp16"):
        if not isinstance(config.get(key, {}), dict):
            raise UserError(f"'{key}' must be an object, such as {{}}")
    for key in config.get("torch_autocast", {}):
        if key not in _AUTOCAST:
            raise UserError(f"unknown key 'torch_autocast.{key}'; {nearest(key, _AUTOCAST)}")
    for is_wrong, problem in _known_problems(config):
        if is_wrong:
            raise UserError(problem)


def _refuse_auto(key: str, value: Any) -> None:
    # DeepSpeed leaves "auto" to Hugging Face's integration, and drops it elsewhere.
    if value == "auto":
        raise UserError(f"'{key}' is \"auto\", which only means something to other programs; give a value")
    if isinstance(value, dict):
        for inner, inner_value in value.items():
            _refuse_auto(f"{key}.{inner}", inner_value)


def zero_stage(config: dict[str, Any]) -> int:
    """Return the ZeRO stage, 0 unless set."""
    return config.get("zero_optimization", {}).get("stage", 0)


def _known_problems(config: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    """Yield what DeepSpeed accepts and trains wrongly by: whether the JSON asks for it, and what to say then."""
    zero, stage = config.get("zero_optimization", {}), zero_stage(config)
    # The replacement lasts as long as the process, also for the next run in it.
    replaces = bool(zero.get("memory_efficient_linear"))
    yield replaces, "'zero_optimization.memory_efficient_linear' replaces torch's linear layer; remove it"
    # The norm is how ZeRO notices gradients that are not finite.
    is_blind = zero.get("compute_grad_norm") is False
    yield is_blind, "'zero_optimization.compute_grad_norm' false would let a loss of NaN into the weights; remove it"
    # bool is an int in Python, and true is not 1 here.
    is_stage = stage in (0, 1, 2, 3) and not isinstance(stage, bool)
    yield not is_stage, f"'zero_optimization.stage' is 0, 1, 2 or 3, not {stage!r}"
    enabled = [key for key in ("bf16", "fp16", "torch_autocast") if config.get(key, {}).get("enabled")]
    yield len(enabled) > 1, f"{' and '.join(map(repr, enabled[:2]))} contradict each other; enable one"
    # It casts the weights of batch norms and leaves their statistics fp32, which CPU kernels refuse.
    instead = "use 'torch_autocast' with dtype bfloat16 instead"
    yield enabled == ["bf16"], f"'bf16' also casts what batch norm needs in fp32; {instead}"
    unreadable = enabled == ["fp16"] and stage == 0
    yield unreadable, "'fp16' without ZeRO keeps fp32 weights that checkpoints cannot read; use stage 1 or 2"
    clipping = config.get("gradient_clipping", 0.0)
    is_number = isinstance(clipping, (int, float)) and not isinstance(clipping, bool)
    yield not is_number or clipping < 0, f"'gradient_clipping' is a number from 0 up, not {clipping!r}"
    dtype = config.get("torch_autocast", {}).get("dtype", "bfloat16") if enabled == ["torch_autocast"] else None
    is_known = dtype in (None, "bfloat16", "float16")
    yield not is_known, f"'torch_autocast.dtype' is bfloat16 or float16, not {dtype!r}"
    # There DeepSpeed 0.19.8 clips before it divides by the loss scale.
    clips_scaled = dtype == "float16" and clipping > 0 and stage >= 2
    clips = "'gradient_clipping' with float16 'torch_autocast' at ZeRO 2 and 3 clips the scaled gradient"
    yield clips_scaled, f"{clips}; use bfloat16 or 'fp16'"


def resolve_batching(config: dict[str, Any], global_batch: int, world_size: int) -> Batching:
    """Divide the recipe's global batch over ``world_size`` ranks.

    The JSON owns the micro-batch; without one each rank takes its whole share at once. Raises UserError if the numbers
    do not divide or if the JSON contradicts the recipe.
    """
    micro = config.get("train_micro_batch_size_per_gpu")
    if micro is None:
        steps = config.get("gradient_accumulation_steps", 1)
        valid = isinstance(steps, int) and steps > 0
        if not valid or global_batch % (world_size * steps):
            raise UserError(
                f"global_batch_size {global_batch} cannot be divided into {world_size} ranks x {steps} accumulation "
                f"steps; make it a multiple of {world_size * steps if valid else world_size}"
            )
        micro = global_batch // (world_size * steps)
    if not isinstance(micro, int) or isinstance(micro, bool) or micro < 1:
        raise UserError(f"'train_micro_batch_size_per_gpu' is a positive number of images, not {micro!r}")
    if global_batch % (micro * world_size):
        raise UserError(
            f"global_batch_size {global_batch} is not a multiple of {world_size} ranks x micro-batch {micro} "
            f"= {micro * world_size}; change global_batch_size, the micro-batch or the number of ranks"
        )
    if micro < 2:
        raise UserError("a micro-batch of 1 image gives batch norm nothing to average; use 2 or more")
    batching = Batching(micro, global_batch // (micro * world_size), world_size)
    for key, follows in (("gradient_accumulation_steps", batching.accumulation), ("train_batch_size", global_batch)):
        if config.get(key, follows) != follows:
            raise UserError(
                f"'{key}' is {config[key]} in the DeepSpeed config, but {follows} follows from the recipe's "
                "global_batch_size, the micro-batch and the number of ranks; remove the key or change one of them"
            )
    return batching

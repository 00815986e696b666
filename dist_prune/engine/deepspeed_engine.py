"""DeepSpeed behind one seam.

The rest of the program sees an engine that computes forward, backward and steps, and whose whole state is available as
full fp32 tensors by name, independent of world size and ZeRO stage.
"""

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dist_prune import distributed
from dist_prune.checkpoints.train_state import ModelState, OptimizerState
from dist_prune.engine import zero_state
from dist_prune.engine.deepspeed_import import DeepSpeedConfig, DeepSpeedZeroConfig, deepspeed
from dist_prune.engine.ds_config import Batching, zero_stage
from dist_prune.errors import UserError, first_problem, nearest
from dist_prune.runtime.environment import tune_cpu
from dist_prune.runtime.launch import complete_environment, local_rank


def check_with_deepspeed(ds_config: dict[str, Any], compiled: bool = False) -> None:
    """Raise UserError for what only DeepSpeed itself or this machine can refuse, before anything is written."""
    _autocast_dtype(ds_config)
    if compiled and zero_stage(ds_config) == 3:
        raise UserError("compile=true needs ZeRO 0, 1 or 2: ZeRO 3 fetches weights layer by layer, between graphs")
    try:
        DeepSpeedZeroConfig(**ds_config.get("zero_optimization", {}))
    except ValidationError as error:
        key, problem = first_problem(error)
        unknown = error.errors(include_url=False)[0]["type"] == "extra_forbidden"
        hint = nearest(key, DeepSpeedZeroConfig.model_fields) if unknown else problem
        raise UserError(f"'zero_optimization.{key}' is not what DeepSpeed takes: {hint}") from error
    whole = _complete(ds_config, Batching(1, 1, 1))
    # The ranks have not met yet, so the world size does not fit.
    del whole["train_batch_size"]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            DeepSpeedConfig(whole)
    except Exception as error:
        # Values that DeepSpeed does not expect fail anywhere in it, with any type of error.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"DeepSpeed cannot use the DeepSpeed config: {reason}") from error


def start_process_group(timeout: float = 600.0) -> torch.device:
    """Join the other ranks (NCCL on GPUs, gloo on CPUs) and return this rank's device.

    The ranks have met (``distributed.meet``). timeout: seconds that they wait for one another from here on.
    """
    complete_environment()
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", local_rank()), "nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
        tune_cpu()
    # Ours first: DeepSpeed would meet the other ranks without a time limit and without a readable error.
    if not torch.distributed.is_initialized():
        distributed.start(backend, timeout)
    with contextlib.redirect_stdout(io.StringIO()):
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return device


class Engine:
    """One module in training under DeepSpeed. All ranks call all methods but ``forward`` together."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        ds_config: dict[str, Any],
        batching: Batching,
        device: torch.device,
        timeout: float = 600.0,
    ) -> None:
        self.device = device
        self.batching = batching
        self.stage = zero_stage(ds_config)
        self._autocast = _autocast_dtype(ds_config)
        self._clipping = ds_config.get("gradient_clipping", 0.0) if _checks_gradients(ds_config) else None
        with contextlib.redirect_stdout(io.StringIO()):
            self._engine, *_ = deepspeed.initialize(
                model=module.to(device),
                optimizer=optimizer,
                config=_complete(ds_config, batching),
                dist_init_required=False,
            )
        # In DeepSpeed's own groups, too.
        distributed.limit_waiting(timeout)
        # The module in training; at ZeRO 3 its parameters are partitioned between forward passes.
        self.module: nn.Module = self._engine.module
        # Then forward passes have collectives of their own, beside which there should be no other (NCCL).
        self.gathers_weights = self.stage == 3
        self.lr = 0.0
        # A context in which reading a weight that ZeRO 3 has partitioned is refused in one line.
        self.refusing_partitioned_weights: contextlib.AbstractContextManager = (
            zero_state.PartitionedWeightsRefused() if self.stage == 3 else contextlib.nullcontext()
        )

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step; a parameter group's own ``lr_scale`` multiplies it."""
        self.lr = lr
        # DeepSpeed's scheduler is not used: its state would go through checkpoints.
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def autocast(self) -> torch.autocast:
        """The precision of training, for forward passes outside the engine (evaluation)."""
        dtype = self._autocast or torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self._autocast is not None)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) on the device -> logits (B, classes), in the precision of training."""
        # DeepSpeed's fp16 has half weights; under autocast images stay fp32.
        if self._engine.fp16_enabled():
            images = images.half()
        return self._engine(images)

    def compile(self, backend: str = "inductor") -> None:
        """Compute forward and backward by what torch.compile makes of the module; weights keep their names.

        Call it after ``restore_optimizer``, whose step would be compiled for itself. Not at ZeRO 3.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            self._engine.compile(backend=backend)

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro-batch; the engine divides by the accumulation steps and averages over ranks."""
        self._engine.backward(loss)

    def step(self) -> bool:
        """Finish a micro-batch, after its ``backward``; step the optimizer at the end of the window.

        False if it did not, on all ranks alike, since gradients are not finite: weights and optimizer are as they were.
        """
        at_end = self._engine.is_gradient_accumulation_boundary()
        if at_end and self._clipping is not None:
            self._check_gradients(self._clipping)
        self._engine.step()
        return not at_end or self._engine.was_step_applied()

    def _check_gradients(self, clipping: float) -> None:
        # ZeRO looks at the norm of all gradients by itself. Without ZeRO, DeepSpeed would put bad ones into the
        # weights, but it takes an optimizer's word for it. Gradients are averaged: all ranks find the same.
        optimizer = self._engine.optimizer
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        optimizer.overflow = not norm.isfinite().item()
        if optimizer.overflow:
            self.module.zero_grad()
        elif clipping:
            torch.nn.utils.clip_grads_with_norm_(self.module.parameters(), clipping, norm)

    def project(self, functions: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        """Put ``functions`` of parameters, by name, into the weights that train; all ranks call it after a step.

        Each function takes the whole weight in fp32 and returns its new value, the same on all ranks. What is written
        into the module alone would be undone at ZeRO 1 to 3, whose next step copies its own fp32 weights over it.
        """
        parameters = dict(self.module.named_parameters())
        for name in functions:
            if name not in parameters:
                raise UserError(f"no parameter '{name}' to project; {nearest(name, parameters)}")
        chosen = {name: parameters[name] for name in functions}
        with torch.no_grad():
            # Read all before writing any: a function may look at more than its own weight.
            with self._gathered(list(chosen.values())):
                values = {n: functions[n](zero_state.full_fp32(p).clone()) for n, p in chosen.items()}
            for name, parameter in chosen.items():
                # A value of another shape would be broadcast over the weight, silently.
                if values[name].shape != zero_state.parameter_shape(parameter):
                    raise UserError(
                        f"project gives '{name}' the shape {tuple(values[name].shape)}, it has "
                        f"{tuple(zero_state.parameter_shape(parameter))}"
                    )
                zero_state.set_weight(parameter, self.stage, values[name])

    def snapshot(self) -> ModelState:
        """The whole state, equal on all ranks; averages the buffers of all ranks first (collective)."""
        distributed.average_buffers(self.module)
        parameters = dict(self.module.named_parameters())
        with self._gathered(list(parameters.values())):
            weights = {name: zero_state.to_host(zero_state.full_fp32(p)) for name, p in parameters.items()}
        persistent = self.module.state_dict().keys()
        weights |= {n: zero_state.to_host(b) for n, b in self.module.named_buffers() if n in persistent}
        # ZeRO creates the optimizer's state in the first step that it applies.
        if self.stage and self._engine.global_steps == self._engine.skipped_steps:
            return ModelState(weights, {})
        return ModelState(weights, zero_state.optimizer_state(self._engine.optimizer, self.stage, parameters))

    def restore_optimizer(self, state: OptimizerState, images: Tensor) -> None:
        """Put the optimizer's state back (weights are loaded before the engine is built).

        images: a batch for the priming step, by which ZeRO creates its partitions of the state.
        """
        if not state:
            return
        if self.stage > 0:
            self._prime(images)
        parameters = dict(self.module.named_parameters())
        zero_state.set_optimizer_state(self._engine.optimizer, self.stage, parameters, state)

    def close(self) -> None:
        """Release the engine's memory and hooks, and what was compiled; the module is not usable afterwards."""
        self._engine.destroy()
        if self._engine.is_compiled:
            torch.compiler.reset()

    def _gathered(self, parameters: list[nn.Parameter]) -> contextlib.AbstractContextManager:
        if self.stage < 3:
            return contextlib.nullcontext()
        return deepspeed.zero.GatheredParameters(parameters)

    def _prime(self, images: Tensor) -> None:
        """A window of zero gradients at learning rate 0: changes no weight, creates every state tensor."""
        self.set_lr(0.0)
        # Batch norms learn in forward passes, whatever the learning rate: their buffers are put back.
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        for _ in range(self.batching.accumulation):
            # Without the phase's hooks: they may expect a step of training. A module may return more than logits.
            found = self.forward(images)
            outputs = found if isinstance(found, (tuple, list)) else [found]
            self.backward(torch.stack([output.float().sum() for output in outputs]).sum() * 0.0)
            self.step()
        for buffer, before in zip(self.module.buffers(), buffers, strict=True):
            buffer.detach().copy_(before)


def _complete(ds_config: dict[str, Any], batching: Batching) -> dict[str, Any]:
    """Return the JSON completed by recipe and world size."""
    zero = ds_config.get("zero_optimization", {})
    return {
        # SGD at ZeRO 1 to 3, and SGD with offload.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        **ds_config,
        # Without ZeRO the engine clips by itself. DeepSpeed's own default is 1.0: it would clip unasked.
        "gradient_clipping": 0.0 if _checks_gradients(ds_config) else ds_config.get("gradient_clipping", 0.0),
        # ZeRO 3 would replace torch's linear layer in the whole process, permanently.
        "zero_optimization": {**zero, "memory_efficient_linear": False} if zero.get("stage") == 3 else zero,
        "train_batch_size": batching.global_batch,
        "train_micro_batch_size_per_gpu": batching.micro,
        "gradient_accumulation_steps": batching.accumulation,
    }


def _checks_gradients(ds_config: dict[str, Any]) -> bool:
    """Return True if our engine itself refuses bad gradients and clips: without ZeRO and torch's scaler."""
    return zero_stage(ds_config) == 0 and _autocast_dtype(ds_config) != torch.float16


def _autocast_dtype(ds_config: dict[str, Any]) -> torch.dtype | None:
    if ds_config.get("fp16", {}).get("enabled"):
        if not torch.cuda.is_available():
            raise UserError("'fp16' needs a GPU; on CPUs use ds_configs/zero2_bf16.json")
        return torch.float16
    autocast = ds_config.get("torch_autocast", {})
    return getattr(torch, autocast.get("dtype", "bfloat16")) if autocast.get("enabled") else None

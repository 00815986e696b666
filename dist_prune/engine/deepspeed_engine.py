"""DeepSpeed behind one seam: the only file that imports it.

What the rest of the program sees is an engine that computes forward, backward and steps, and that can hand
out and take back its whole state as full fp32 tensors by name, independent of world size and ZeRO stage.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from dist_prune.runtime.environment import prepare_environment

prepare_environment()
with contextlib.redirect_stdout(io.StringIO()):
    import deepspeed
    from deepspeed.runtime import compiler
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils import (
        safe_get_full_fp32_param,
        safe_get_full_optimizer_state,
        safe_set_full_optimizer_state,
        safe_set_local_optimizer_state,
    )

    # Every optimizer is compared with DeepSpeed's Muon, whose decorators load torch's whole compiler, which adds a
    # quarter to what it takes to start. Imported here, it is not compiled.
    compile_, compiler.compile = compiler.compile, lambda: lambda function: function
    with contextlib.suppress(ImportError):  # then there is nothing to compare with
        import deepspeed.runtime.zero.muon.muon_optimizer
    compiler.compile = compile_

from dist_prune import distributed  # noqa: E402
from dist_prune.engine.ds_config import Batching  # noqa: E402
from dist_prune.errors import UserError, nearest  # noqa: E402
from dist_prune.runtime.cpu import tune_cpu  # noqa: E402
from dist_prune.runtime.launch import complete_environment, local_rank  # noqa: E402

_BY_GROUP = ("base_lrs", "_last_lr")  # what torch's schedulers keep for each parameter group


@dataclass
class TrainState:
    """The whole state of a module in training, equal on all ranks: full fp32 tensors on the CPU by name.

    weights: parameters and buffers; momentum: the optimizer's state of the parameters that have one.
    """

    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]


def check_with_deepspeed(ds_config: dict[str, Any], compiled: bool = False) -> None:
    """Raise UserError for what only DeepSpeed itself or this machine can refuse, before anything is written."""
    _autocast_dtype(ds_config)
    if compiled and ds_config.get("zero_optimization", {}).get("stage") == 3:
        raise UserError(
            "compile=true needs ZeRO 0, 1 or 2: ZeRO 3 fetches weights layer by layer, between graphs"
        )
    try:
        DeepSpeedZeroConfig(**ds_config.get("zero_optimization", {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        hint = (
            nearest(key, DeepSpeedZeroConfig.model_fields)
            if first["type"] == "extra_forbidden"
            else first["msg"]
        )
        raise UserError(f"'zero_optimization.{key}' is not what DeepSpeed takes: {hint}") from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            whole = _complete(ds_config, Batching(1, 1, 1))
            del whole["train_batch_size"]  # the ranks have not met yet
            DeepSpeedConfig(whole)
    except Exception as error:  # values that it does not expect fail somewhere in it, in whatever way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"DeepSpeed cannot use the DeepSpeed config: {reason}") from error


def start_process_group(timeout: float = 600.0) -> torch.device:
    """Join the other ranks (NCCL on GPUs, gloo on CPUs) and return this rank's device.

    timeout: seconds that ranks wait for one another, in this and all that follows.
    """
    complete_environment()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        tune_cpu()
    backend = "nccl" if on_gpu else "gloo"
    if not torch.distributed.is_initialized():
        distributed.start(backend, timeout)
    with contextlib.redirect_stdout(io.StringIO()):
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return device


class Engine:
    """One module in training under DeepSpeed. All methods but ``forward`` are called by all ranks alike."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        ds_config: dict[str, Any],
        batching: Batching,
        device: torch.device,
        timeout: float = 600.0,
    ) -> None:
        self.device = device
        self.batching = batching
        self.stage = ds_config.get("zero_optimization", {}).get("stage", 0)
        self._autocast = _autocast_dtype(ds_config)
        self._clipping = ds_config.get("gradient_clipping", 0.0) if _settles_gradients(ds_config) else None
        self._scheduler = scheduler
        with contextlib.redirect_stdout(io.StringIO()):
            self._engine, *_ = deepspeed.initialize(
                model=module.to(device),
                optimizer=optimizer,
                lr_scheduler=scheduler,
                config=_complete(ds_config, batching),
                dist_init_required=False,
            )
        distributed.limit_waiting(timeout)  # in DeepSpeed's own groups, too

    @property
    def module(self) -> nn.Module:
        """The module in training; at ZeRO 3 its parameters are partitioned between forward passes."""
        return self._engine.module

    @property
    def gathers_weights(self) -> bool:
        """Whether forward passes have collectives of their own, beside which there should be no other (NCCL)."""
        return self.stage == 3

    @property
    def lr(self) -> float:
        """The learning rate of the next step (of the first parameter group)."""
        return float(self._engine.optimizer.param_groups[0]["lr"])

    def autocast(self) -> torch.autocast:
        """The precision of training, for forward passes outside the engine (evaluation)."""
        dtype = self._autocast or torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self._autocast is not None)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) on the device -> logits (B, classes), in the precision of training."""
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
        """Called after every ``backward``; steps optimizer and schedule at the end of the window.

        False if it did not, on all ranks alike, since gradients are not finite: weights, optimizer and schedule are
        as they were.
        """
        at_end = self._engine.is_gradient_accumulation_boundary()
        if at_end and self._clipping is not None:
            self._settle_gradients(self._clipping)
        self._engine.step()
        return not at_end or self._engine.was_step_applied()

    def _settle_gradients(self, clipping: float) -> None:
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

    def snapshot(self) -> TrainState:
        """The whole state, equal on all ranks; averages the buffers of all ranks first (collective)."""
        distributed.average_buffers(self.module)
        parameters = dict(self.module.named_parameters())
        with self._gathered(list(parameters.values())):
            weights = {name: _to_host(_full_fp32(p)) for name, p in parameters.items()}
        persistent = self.module.state_dict().keys()
        weights |= {n: _to_host(b) for n, b in self.module.named_buffers() if n in persistent}
        return TrainState(weights, self._momentum(parameters))

    def restore_optimizer(
        self, momentum: dict[str, Tensor], schedule: dict[str, Any] | None, images: Tensor
    ) -> None:
        """Put optimizer state and schedule back (weights are loaded before the engine is built).

        schedule: as ``schedule_state`` returned it, None to begin it; images: a batch for the priming step by
        which ZeRO creates its partitions of the state.
        """
        schedule = schedule or self.schedule_state()  # the priming step must not count
        if momentum:
            if self.stage > 0:
                self._prime(images)
            for name, parameter in self.module.named_parameters():
                if name in momentum:
                    self._set_momentum(parameter, momentum[name].to(self.device))
        groups = self._engine.optimizer.param_groups
        # What a phase left may have another number of groups: without gates and norms there is one less.
        by_group = {k: v[:1] * len(groups) for k, v in schedule["scheduler"].items() if k in _BY_GROUP}
        self._scheduler.load_state_dict({**schedule["scheduler"], **by_group})
        for group in groups:
            group.update(schedule["settings"])

    def schedule_state(self) -> dict[str, Any]:
        """The schedule as plain data: its own state, and what it has set in all parameter groups alike."""
        group = self._engine.optimizer.param_groups[0]
        settings = {key: group[key] for key in ("lr", "momentum")}
        return {"scheduler": dict(self._scheduler.state_dict()), "settings": settings}

    def close(self) -> None:
        """Release the engine's memory and hooks, and what was compiled; the module is not usable afterwards."""
        self._engine.destroy()
        if self._engine.is_compiled:
            torch.compiler.reset()

    def _gathered(self, parameters: list[nn.Parameter]) -> contextlib.AbstractContextManager:
        if self.stage < 3:
            return contextlib.nullcontext()
        return deepspeed.zero.GatheredParameters(parameters)

    def _momentum(self, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        if self.stage == 0:
            state = self._engine.optimizer.state
            found = {name: state[p].get("momentum_buffer") for name, p in parameters.items() if p in state}
        elif self._engine.global_steps == self._engine.skipped_steps:
            found = {}  # ZeRO creates the state with the first step that it takes
        else:
            self._link_states()
            found = {
                name: safe_get_full_optimizer_state(p, "momentum_buffer") for name, p in parameters.items()
            }
        return {name: _to_host(tensor) for name, tensor in found.items() if tensor is not None}

    def _set_momentum(self, parameter: Any, value: Tensor) -> None:
        if self.stage == 0:
            self._engine.optimizer.state[parameter]["momentum_buffer"] = value.clone()
        elif self.stage == 3:
            # The setter for whole tensors of DeepSpeed 0.19.8 fails where the ranks do not divide the size.
            size = parameter.ds_tensor.ds_numel
            padded = F.pad(value.flatten(), (0, size * distributed.world_size() - value.numel()))
            part = padded.narrow(0, size * distributed.rank(), size)
            safe_set_local_optimizer_state(parameter, part, "momentum_buffer")
        else:
            safe_set_full_optimizer_state(parameter, value, "momentum_buffer")

    def _prime(self, images: Tensor) -> None:
        """A window of zero gradients at learning rate 0: changes no weight, creates every state tensor."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = 0.0
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        for _ in range(self.batching.accumulation):
            self.backward(self.forward(images).float().sum() * 0.0)
            self.step()
        for buffer, before in zip(self.module.buffers(), buffers, strict=True):
            buffer.detach().copy_(before)
        self._link_states()

    def _link_states(self) -> None:
        # DeepSpeed 0.19.8 links lazily created states of the first parameter group only; linking again
        # reaches all of them. Private, therefore pinned in pyproject.toml and covered by a test.
        optimizer = self._engine.optimizer
        if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()


def _complete(ds_config: dict[str, Any], batching: Batching) -> dict[str, Any]:
    """The JSON with what follows from recipe and world size."""
    zero = ds_config.get("zero_optimization", {})
    return {
        "zero_allow_untested_optimizer": True,  # SGD at ZeRO >= 1
        "zero_force_ds_cpu_optimizer": False,  # SGD with offload
        "steps_per_print": 10**9,
        "gradient_clipping": 0.0,  # DeepSpeed's own default is 1.0: it would clip where nobody asked for it
        **ds_config,
        **({"gradient_clipping": 0.0} if _settles_gradients(ds_config) else {}),  # the engine clips
        # ZeRO 3 would put its own linear in the place of torch's in the whole process, for good.
        "zero_optimization": {**zero, "memory_efficient_linear": False} if zero.get("stage") == 3 else zero,
        "train_batch_size": batching.global_batch,
        "train_micro_batch_size_per_gpu": batching.micro,
        "gradient_accumulation_steps": batching.accumulation,
    }


def _settles_gradients(ds_config: dict[str, Any]) -> bool:
    """Whether nobody but our engine refuses bad gradients, and clips good ones: no ZeRO, and no scaler of torch's."""
    stage = ds_config.get("zero_optimization", {}).get("stage", 0)
    return stage == 0 and _autocast_dtype(ds_config) != torch.float16


def _autocast_dtype(ds_config: dict[str, Any]) -> torch.dtype | None:
    if ds_config.get("fp16", {}).get("enabled"):
        if not torch.cuda.is_available():
            raise UserError("'fp16' needs a GPU; on CPUs use ds_configs/zero2_bf16.json")
        return torch.float16
    autocast = ds_config.get("torch_autocast", {})
    return getattr(torch, autocast.get("dtype", "bfloat16")) if autocast.get("enabled") else None


def _full_fp32(parameter: nn.Parameter) -> Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    master = safe_get_full_fp32_param(parameter)
    return parameter.float() if master is None else master


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()

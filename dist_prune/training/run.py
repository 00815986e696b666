"""One run from options to results: everything around the training loop."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_prune import distributed
from dist_prune.checkpoints.restore import find_checkpoint
from dist_prune.checkpoints.train_state import Origin, Progress, TrainState
from dist_prune.checkpoints.writer import CheckpointWriter
from dist_prune.config import RunConfig, without_effect
from dist_prune.data import ImageData, ShardError
from dist_prune.engine.deepspeed_engine import check_with_deepspeed, start_process_group
from dist_prune.engine.ds_config import load_ds_config, resolve_batching
from dist_prune.errors import UserError
from dist_prune.gates.cpu_kernels.build import compile_kernels
from dist_prune.monitor.status import RunStatus
from dist_prune.runtime.consistency import agree_to_start
from dist_prune.runtime.failures import Peer, meet_ranks, remove_old_marks, translate_rank_failures
from dist_prune.runtime.folders import check_code_folder, check_compiler
from dist_prune.runtime.launch import complete_environment, refuse_missing_hostfile, world_size
from dist_prune.runtime.signals import StopRequest
from dist_prune.training.context import RunContext, build_method, open_images
from dist_prune.training.evaluate import advice, finish
from dist_prune.training.loop import Trainer
from dist_prune.training.recorder import Recorder
from dist_prune.training.run_folder import open_run_folder, package_versions, record_of


@dataclass(frozen=True)
class Options:
    """Options of the command line beside the recipe."""

    ds_config: str
    out: str | None = None
    resume: bool = False
    max_steps: int | None = None
    max_hours: float | None = None
    # Dotted recipe fields that the user has set by hand: one that does nothing gets a line.
    keys_set: Sequence[str] = ()


def run(config: RunConfig, options: Options) -> bool:
    """Train, collapse and record; True when the run is done, False when it stopped on request, after saving.

    Raises UserError for a mistake of the user.
    """
    complete_environment()
    facts: dict[str, Any] | str
    try:
        ds_config, data = _open(config, options)
        shared = {"ds_config": ds_config, "versions": package_versions(), "shards": data.identity()}
        facts = {**config.model_dump(mode="json"), **shared}
    except (UserError, ShardError) as error:
        if world_size() == 1:
            raise
        # The error may be this rank's alone. The other ranks wait in the first collective, so it is raised there.
        facts = str(error)
    remove_old_marks()
    # A first build takes half a minute, which may be more than ranks wait for one another once they have met.
    if not torch.cuda.is_available():
        compile_kernels()
    peers: list[Peer] = []
    with translate_rank_failures(peers, config.rank_timeout):
        peers += meet_ranks(config.rank_timeout)
        device = start_process_group(config.rank_timeout)
        # It raises if a rank could not open DeepSpeed config or data, or has others.
        agree_to_start(facts, peers)
        batching = resolve_batching(ds_config, config.global_batch_size, distributed.world_size())
        method = build_method(config, data)
        method.check()
        # Rank 0 holds the lock until the end: a second run in this folder would overwrite the first.
        with open_run_folder(config, options.out, options.resume) as (folder, done):
            if done:
                if distributed.is_main():
                    print(f"{folder.path} is already finished; its results are in {folder.sliced}")
                return True
            origin = Origin(
                recipe=config.model_dump(mode="json"),
                ds_config=ds_config,
                micro_batch=batching.micro,
                versions=package_versions(),
            )
            state = find_checkpoint(folder, config, origin, data)
            state = state or TrainState(Progress(), data.identity(), origin)  # type: ignore[arg-type]
            context = RunContext(config, ds_config, batching, data, method, device, folder)
            return _train_and_finish(context, options, state, peers)


def _open(config: RunConfig, options: Options) -> tuple[dict[str, Any], ImageData]:
    """Open the DeepSpeed config and the data; each rank opens its own."""
    refuse_missing_hostfile()
    ds_config = load_ds_config(options.ds_config)
    check_with_deepspeed(ds_config, config.compile)
    if config.checkpoint_activations and ds_config.get("zero_optimization", {}).get("stage") == 3:
        raise UserError("checkpoint_activations=true needs ZeRO 0, 1 or 2: ZeRO 3 has no whole weights to recompute by")
    if config.compile:
        check_compiler()
        check_code_folder(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]), "TORCHINDUCTOR_CACHE_DIR")
    if options.resume and not options.out:
        raise UserError("--resume needs the run folder to continue: --out RUN")
    data = open_images(config)
    # Both raise UserError now rather than after an epoch: for a batch larger than the data, for a missing test split.
    data.steps_per_epoch(config.global_batch_size)
    data.num_samples("test")
    return ds_config, data


def _train_and_finish(context: RunContext, options: Options, state: TrainState, peers: list[Peer]) -> bool:
    first_step = state.progress.step
    resumed_from = first_step if state.progress.phase else None
    status = RunStatus(context.folder, lambda: state.progress.step, resumed_from)
    total_steps = context.method.epochs * context.steps_per_epoch
    # From here on the folder says that a run has begun, and why it ended.
    with context.capture_write_errors():
        if distributed.is_main():
            context.folder.write_json(context.folder.config, record_of(context))
        status.write("running")
        recorder = Recorder(context, total_steps, first_step)
        for line in without_effect(context.config, context.method.reads, options.keys_set):
            recorder.say(line)
    context.sync_errors()
    try:
        with translate_rank_failures(peers, context.config.rank_timeout):
            reason = _work(context, options, state, recorder)
    except BaseException as error:
        with context.capture_write_errors():
            status.fail(error)
        recorder.close()
        raise
    # Status after the records: whoever waits for "done" finds everything written.
    recorder.close()
    with context.capture_write_errors():
        status.write("stopped" if reason else "done", reason)
    recorder.report()
    context.sync_errors()
    return reason is None


def _work(context: RunContext, options: Options, state: TrainState, recorder: Recorder) -> str | None:
    """Train and collapse; return None, or the reason of a stop on request."""
    with StopRequest(options.max_steps, options.max_hours) as stop:
        with CheckpointWriter(context.folder, context.config, context.capture_write_errors) as writer:
            trainer = Trainer(context, recorder, stop, writer, state)
            trained = trainer.train()
        # Within StopRequest: a second signal must not end a rank while rank 0 still writes.
        context.sync_errors()
    if trained is None:
        # The request may have reached any rank, and rank 0 writes the reason.
        reason = distributed.first_object(stop.reason)
        recorder.say(f"stopped: {reason}; saved at step {state.progress.step}, continue with --resume")
        return reason
    last, result = trained
    if line := advice(result.decision):
        recorder.say(line)
    summary = finish(context, last.phase, result, state.progress.max_abs_difference, last.engine.autocast())
    recorder.summary({**summary, **trainer.accounts.summary(), "world_size": distributed.world_size()})
    context.sync_errors()
    return None

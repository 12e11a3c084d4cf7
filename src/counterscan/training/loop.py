"""The training loop: the same for every system, which brings its own step.

A run is a folder: config.yaml, metrics.jsonl, checkpoints/, samples/, tensorboard/, README.md. The same command resumes
it, bit for bit on the same CPU and thread count, however the earlier attempt ended. On several GPUs or processes start
it with ``torchrun --nproc-per-node N``; the folder must be visible to all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from counterscan.errors import InputError
from counterscan.memory import keep_freed_memory
from counterscan.training import distributed
from counterscan.training.config import TrainConfig, settle_config
from counterscan.training.feed import DataSource, Feed
from counterscan.training.guards import Signals, sole_owner
from counterscan.training.run import Run
from counterscan.training.sampler import Sampler, uniform_sampler
from counterscan.training.seeding import seed_everything
from counterscan.training.task import Task, TrainResult


def train(
    task: Task,
    data: DataSource,
    config: TrainConfig,
    folder: str | Path,
    *,
    sampler: Sampler | None = None,
    settings: Any = None,
) -> TrainResult:
    """Train ``task`` into ``folder``, or go on where an earlier attempt stopped.

    Args:
        task: networks, optimizers and the step; see ``Task``.
        data: rows to train on.
        config: see ``TrainConfig``.
        folder: the run folder; made when missing.
        sampler: which rows make a batch, of ``config.batch_size``; each row once per pass by default.
        settings: the system's own configuration, kept in config.yaml and compared on resume.

    Raises:
        InputError: the folder holds a run with other settings or is in use; the disk is full.
        NonFiniteError: a loss, gradient or weight is not finite; the message tells which, and where to look.
        Interrupted: SIGTERM or SIGINT came; the step was finished and saved.
    """
    with _prepared(task, data, config, Path(folder), sampler, settings) as run:
        for step in range(run.step, config.steps):
            seed_everything(config.seed, step, run.world.rank)
            run.set_rates(step)
            batch = run.ctx.begin(step)
            reported = task.step(run.ctx, batch)
            run.ctx.verify()
            done = step + 1
            run.average(done)
            run.tell(done, reported, line=due(config.log_every, done, config.steps))
            if due(config.validate_every, done, config.steps):
                run.validate(done)
            if due(config.sample_every, done, config.steps):
                run.sample(done)
            stop = run.stop_asked()
            if stop or done == config.steps or due(config.checkpoint_every, done, config.steps):
                run.save(done)
            if stop and done < config.steps:
                raise run.interrupted(stop)
        return run.finish()


def due(every: int, done: int, steps: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens after ``done`` steps; 0 is never."""
    return every > 0 and (done % every == 0 or done == steps)


@contextlib.contextmanager
def _prepared(
    task: Task, data: DataSource, config: TrainConfig, folder: Path, sampler: Sampler | None, settings: Any
) -> Iterator[Run]:
    """A run on its device, alone in its folder, listening for signals; all of it undone at the end."""
    with contextlib.ExitStack() as stack:
        joined_before = torch.distributed.is_initialized()
        world = distributed.join(config.device)
        if torch.distributed.is_initialized() and not joined_before:
            stack.callback(distributed.leave)
        if config.threads:
            torch.set_num_threads(config.threads)
        keep_freed_memory()
        if config.batch_size % world.size:
            raise InputError(f"must be a multiple of the {world.size} processes", field="batch_size")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot be made ({error.strerror})", path=folder, remedy="Choose another folder"
            ) from None
        if world.main:
            stack.enter_context(sole_owner(folder))
            settle_config(folder, config, settings)
        chosen = sampler or uniform_sampler(len(data), config.batch_size, config.seed)
        if len(chosen.batch_indices(0, world.rank, world.size)) * world.size != config.batch_size:
            raise InputError("the sampler was built for another batch size", field="batch_size")
        feed = Feed(data, chosen, world, channels_last=config.channels_last, prefetch=config.prefetch)
        stack.callback(feed.close)
        signals = stack.enter_context(Signals())
        run = Run(task, config, folder, world, feed, signals)
        stack.callback(run.log.close)
        yield run

"""Batches on the device, the next one read while the current one is used."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from counterscan.training.distributed import World
from counterscan.training.sampler import Sampler


class DataSource(Protocol):
    """Anything with a length and ``batch``; a prepared store wrapped in a few lines."""

    def __len__(self) -> int: ...

    def batch(self, indices: Any) -> Mapping[str, Any]:
        """Tensors or arrays of rows ``indices`` (B,) int64. A pure function: it is called from another thread."""
        ...


class Feed:
    """Reads batches by (step, stream).

    Args:
        data: where rows come from.
        sampler: which rows.
        world: this process; its device receives the batches.
        channels_last: order of 4-D tensors.
        prefetch: read ahead in a thread.
    """

    def __init__(
        self, data: DataSource, sampler: Sampler, world: World, *, channels_last: bool = False, prefetch: bool = True
    ) -> None:
        self.data, self.sampler, self.world, self.channels_last = data, sampler, world, channels_last
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed") if prefetch else None
        self._ahead: tuple[tuple[int, int], Future[dict[str, Tensor]]] | None = None
        self._drawn = self._before = 1  # batches drawn in this step so far, and in the step before

    def get(self, step: int, stream: int = 0) -> dict[str, Tensor]:
        """The batch, with "index" and "group" (B,) int64 beside what the source gave."""
        if self._ahead is not None and self._ahead[0] == (step, stream):
            batch = self._ahead[1].result()
        else:
            batch = self._read(step, stream)
        if stream == 0:
            self._before = self._drawn
        self._drawn = stream + 1
        following = (step, stream + 1) if self._drawn < self._before else (step + 1, 0)
        if self._pool is not None and (self._ahead is None or self._ahead[0] != following):
            self._ahead = (following, self._pool.submit(self._read, *following))
        return {name: self._place(tensor) for name, tensor in batch.items()}

    def close(self) -> None:
        """Stop the reading thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int, stream: int) -> dict[str, Tensor]:
        where = (step, self.world.rank, self.world.size)
        indices = self.sampler.batch_indices(*where, stream=stream)
        batch = {name: torch.as_tensor(value) for name, value in self.data.batch(indices).items()}
        batch["index"] = torch.from_numpy(indices)
        batch["group"] = torch.from_numpy(self.sampler.batch_groups(*where))
        if self.world.device.type == "cuda":
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch

    def _place(self, tensor: Tensor) -> Tensor:
        layout = torch.channels_last if self.channels_last and tensor.ndim == 4 else torch.preserve_format
        return tensor.to(self.world.device, non_blocking=True, memory_format=layout)

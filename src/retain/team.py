"""Several processes as one: who computes what, and what all of them computed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class ProcessLostError(RuntimeError):
    """Another process of the run is gone, so nothing can be computed together any more."""


@dataclass(frozen=True, slots=True)
class Team:
    """`size` processes that run one program on the same data; this one is number `rank`, and number 0 keeps the files.

    Work is dealt out by `share` and put together by `total` or `gather`, after which every process holds the same.
    All processes must make the same calls in the same order.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def launched(cls) -> Team:
        """The processes that a launcher started, once they are connected; this one alone where there was none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that this process computes: every `size`-th."""
        return items[self.rank :: self.size]

    def total(self, tensors: Sequence[torch.Tensor], device: torch.device | None = None) -> None:
        """Put the sum over all processes in place of each of the tensors, which are of one dtype; it travels on
        `device`."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(device)
        with _connected():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, found: Sequence[T]) -> list[T]:
        """What all processes found for their `share` of some items, in the order of the items."""
        if self.size == 1:
            return list(found)
        parts: list[Sequence[T]] = [()] * self.size
        with _connected():
            dist.all_gather_object(parts, list(found))
        missing = object()
        return [one for one in chain(*zip_longest(*parts, fillvalue=missing)) if one is not missing]

    def agree(self, value: T) -> T:
        """Number 0's value, on every process."""
        return self.gather([value])[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is raised on any process."""
        return any(self.gather([flag]))

    def most(self, count: int) -> int:
        """The largest count of all processes."""
        return max(self.gather([count]))

    @contextmanager
    def first(self) -> Iterator[None]:
        """Number 0 passes this block first, then the others, and nobody goes on before all have passed it."""
        if self.rank:
            self.gather([None])
        yield
        if not self.rank:
            self.gather([None])
        self.gather([None])


@contextmanager
def _connected() -> Iterator[None]:
    """torch says in many ways that a process it waits for is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ProcessLostError(
            "another process of this run is gone, and what it said tells why; start the same command again to "
            f"resume ({reason})"
        ) from error

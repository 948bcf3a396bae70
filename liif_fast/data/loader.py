"""Load a wrapper's samples as float batches on the model's device."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from liif_fast.data.device import DeviceLoader
from liif_fast.data.samples import Batches, Sample, collate, group, unpack
from liif_fast.signals import held


def make_loader(
    wrapper: Any,
    batches: Batches,
    device: str | torch.device,
    *,
    data_device: str | torch.device | None = None,
    num_workers: int = 0,
    grouped: bool = False,
) -> "WorkerLoader | DeviceLoader":
    """Return a loader of float batches on the model's device; `len()` is their number.

    Workers and `data_device` make the same samples, bit for bit. They depend on the wrapper's seed, its epoch and their
    indices alone; call `wrapper.set_epoch` before iterating.

    Args:
        wrapper: one of `liif_fast.data.wrappers`, or a user's dataset of float samples.
        batches: the indices of every batch, as a `torch.utils.data.BatchSampler` yields them. It decides the order,
            the share of each rank, and where a resumed epoch continues.
        device: the model's device.
        data_device: device that makes the samples (`liif_fast.data.device`); None uses CPU workers.
        num_workers: worker processes; 0 makes the samples in this process. Ignored with `data_device`.
        grouped: yield each batch as a list of groups, so that its samples may differ in size (`samples.group`).

    Raises:
        ValueError: the wrapper or the device cannot make samples there.
    """
    if data_device is None:
        return WorkerLoader(wrapper, batches, device, num_workers, grouped)
    return DeviceLoader(wrapper, batches, data_device, target=device, grouped=grouped)


class WorkerLoader:
    """Let CPU workers make packed samples, a quarter of the bytes, and unpack them on the model's device."""

    def __init__(
        self,
        wrapper: Any,
        batches: Batches,
        device: str | torch.device,
        num_workers: int = 0,
        grouped: bool = False,
    ) -> None:
        self.grouped = grouped
        self.device, self.is_packed = torch.device(device), hasattr(wrapper, "packed")
        self.loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(
            _Batches(wrapper, self.is_packed, group if grouped else collate),
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=leave_signals,
            pin_memory=self.device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._start():  # not kept in a variable, because a traceback would keep the workers
            if isinstance(batch, Exception):
                raise batch
            yield [self._arrived(each) for each in batch] if self.grouped else self._arrived(batch)

    def _start(self) -> Iterator[Any]:
        with held():  # PyTorch prints a traceback if the start of its workers is interrupted
            return iter(self.loader)

    def _arrived(self, batch: dict[str, torch.Tensor]) -> Sample:
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        return unpack(batch) if self.is_packed else batch


def leave_signals(worker: int) -> None:
    """Ignore the terminal's and the job's signals, so that the main process can finish its step and end the workers."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # absent on macOS and Windows, where anybody's SIGTERM ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_end, daemon=True).start()


def _await_end() -> None:
    """End this worker, even within a sample, when the main process sends SIGTERM; ignore it from other processes."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class _Batches(Dataset[Any]):
    """Make a wrapper's batches; in a worker return errors as items, because PyTorch would raise a traceback."""

    def __init__(self, wrapper: Any, packed: bool, collate: Callable[[list[Any]], Any]) -> None:
        self.wrapper, self.packed, self.collate = wrapper, packed, collate

    def __len__(self) -> int:
        return len(self.wrapper)

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            if not self.packed and hasattr(self.wrapper, "__getitems__"):  # a user's dataset, called as PyTorch does
                return self.collate(self.wrapper.__getitems__(indices))
            make = self.wrapper.packed if self.packed else self.wrapper.__getitem__
            return self.collate([make(index) for index in indices])
        except (OSError, ValueError) as reason:
            if get_worker_info() is None:
                raise
            if not isinstance(reason, OSError):
                return ValueError(str(reason))  # a copy, because pickle may fail to restore a subclass
            return OSError(reason.errno, reason.strerror, reason.filename) if reason.strerror else OSError(str(reason))


def _as_it_is(batch: Any) -> Any:
    return batch

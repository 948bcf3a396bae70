"""From a wrapper to float batches on the model's device."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from liif_fast.data.device import DeviceLoader
from liif_fast.data.samples import Batches, Sample, collate, group, unpack


def make_loader(
    wrapper: Any,
    batches: Batches,
    device: str | torch.device,
    *,
    data_device: str | torch.device | None = None,
    num_workers: int = 0,
    grouped: bool = False,
) -> "WorkerLoader | DeviceLoader":
    """Make what a training iterates over: float batches on its device, `len()` of them.

    Either way makes the same samples, bit for bit. They depend on the wrapper's seed, its epoch and their indices
    alone; call `wrapper.set_epoch` before an iteration starts.

    Args:
        wrapper: one of `liif_fast.data.wrappers`, or a dataset of float samples of one's own.
        batches: the indices of every batch, as a `torch.utils.data.BatchSampler` yields them. Order, sharding by rank,
            and where a resumed epoch goes on, are its business.
        device: of the model.
        data_device: where samples are made (`liif_fast.data.device`); None means on the CPU, by workers.
        num_workers: worker processes; 0 makes the samples in this one. A device needs none.
        grouped: yield each batch as a list of groups, so that its samples may differ in size (`samples.group`).

    Returns:
        The loader.

    Raises:
        ValueError: if the wrapper or the device cannot make samples there.
    """
    if data_device is None:
        return WorkerLoader(wrapper, batches, device, num_workers, grouped)
    return DeviceLoader(wrapper, batches, data_device, target=device, grouped=grouped)


class WorkerLoader:
    """Samples made by CPU workers and sent packed, a quarter of their bytes; floats are made on the model's device."""

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
            _Items(wrapper, self.is_packed),
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=partial(_collated, group if grouped else collate),
            worker_init_fn=_leave_signals,
            pin_memory=self.device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if isinstance(batch, Exception):
                raise batch
            yield [self._arrived(each) for each in batch] if self.grouped else self._arrived(batch)

    def _arrived(self, batch: dict[str, torch.Tensor]) -> Sample:
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        return unpack(batch) if self.is_packed else batch


def _leave_signals(worker: int) -> None:
    """What a terminal or a job's end sends to all processes is the main one's to handle.

    It may want to finish its step, for which it needs the workers, and ends them itself.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows, where SIGTERM ends a worker whoever sends it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_end, daemon=True).start()


def _await_end() -> None:
    """End this worker when the main process terminates it, even in the midst of a sample; nobody else may."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class _Items(Dataset[Any]):
    """A wrapper's samples. In a worker one that cannot be made is the reason why: PyTorch would raise a traceback."""

    def __init__(self, wrapper: Any, packed: bool) -> None:
        self.make, self.length = wrapper.packed if packed else wrapper.__getitem__, len(wrapper)
        if not packed and hasattr(wrapper, "__getitems__"):  # PyTorch looks for it: the samples of a batch at once
            self.make_all, self.__getitems__ = wrapper.__getitems__, self._made

    def __len__(self) -> int:
        return self.length

    def _made(self, indices: list[int]) -> Any:
        try:
            return self.make_all(indices)
        except (OSError, ValueError) as reason:
            return [_told(reason)]

    def __getitem__(self, index: int) -> Any:
        try:
            return self.make(index)
        except (OSError, ValueError) as reason:
            return _told(reason)


def _collated(make: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    """Make a batch, or give the first reason why there is none."""
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
    try:
        return make(samples)
    except ValueError as reason:
        return _told(reason)


def _told(reason: Exception) -> Exception:
    """What is raised here, and sent from a worker."""
    if get_worker_info() is None:
        raise reason
    if isinstance(reason, OSError):  # not itself: a subclass may not be one that pickle can make again
        return OSError(reason.errno, reason.strerror, reason.filename) if reason.strerror else OSError(str(reason))
    return ValueError(str(reason))

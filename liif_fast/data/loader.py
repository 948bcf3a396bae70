"""From a wrapper to float batches on the model's device."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
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
            _Batches(wrapper, self.is_packed, group if grouped else collate),
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_as_it_is,
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
    """Leave a terminal's or a job's signals to the main process: it may finish its step, and ends the workers."""
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


class _Batches(Dataset[Any]):
    """A wrapper's batches. In a worker one that cannot be made is the reason why: PyTorch would raise a traceback."""

    def __init__(self, wrapper: Any, packed: bool, collate: Callable[[list[Any]], Any]) -> None:
        self.wrapper, self.packed, self.collate = wrapper, packed, collate

    def __len__(self) -> int:
        return len(self.wrapper)

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            if not self.packed and hasattr(self.wrapper, "__getitems__"):  # the user's, as PyTorch calls it
                return self.collate(self.wrapper.__getitems__(indices))
            make = self.wrapper.packed if self.packed else self.wrapper.__getitem__
            return self.collate([make(index) for index in indices])
        except (OSError, ValueError) as reason:
            if get_worker_info() is None:
                raise
            if not isinstance(reason, OSError):
                return ValueError(str(reason))  # not itself: a subclass may not be one that pickle can make again
            return OSError(reason.errno, reason.strerror, reason.filename) if reason.strerror else OSError(str(reason))


def _as_it_is(batch: Any) -> Any:
    return batch

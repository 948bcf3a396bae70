"""Pixels on their way to the device and back; on a GPU beside the work, each direction on a stream of its own."""

from collections.abc import Callable

import torch
from torch import Tensor


class Transfers:
    """The ways between the host and a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.beside = device.type == "cuda"
        if self.beside:
            self.there, self.back = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def to_device(self, host: Tensor) -> Tensor:
        """A copy on the device (on a CPU the tensor itself); work that is queued after this call waits for it."""
        if not self.beside:
            return host.to(self.device)
        with torch.cuda.stream(self.there):
            copy = host.pin_memory().to(self.device, non_blocking=True)
        work = torch.cuda.current_stream(self.device)
        work.wait_stream(self.there)
        copy.record_stream(work)
        return copy

    def to_host(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start a copy to the host."""
        if not self.beside:
            copy = tensor.cpu()
            return lambda: copy
        self.back.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.back):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
        arrived = self.back.record_event()
        tensor.record_stream(self.back)

        def wait() -> Tensor:
            arrived.synchronize()
            return host

        return wait

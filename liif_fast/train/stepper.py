"""One optimizer step and the state that it changes."""

import contextlib
import copy
import gc
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from liif_fast import distributed
from liif_fast.convolution import fast_convolutions
from liif_fast.data.samples import Sample
from liif_fast.models.catalogue import find_model, load_upscaler
from liif_fast.train.config import OPTIMIZERS, Config
from liif_fast.train.objective import Objective

Batch = list[Sample]


class Result(NamedTuple):
    """The result of a step, on its device."""

    loss: Tensor  # [], this process's share of the mean over all pixels of all processes
    errors: list[Tensor]  # one [b] per batch, in the order of its groups


class Stepper:
    """A model with its optimizer, gradient scaler and averaged weights. A step does not wait for the device.

    Attributes:
        average: the averaged model; None without `ema`.
        backend: the decoder's backend; None before `trial.settle`, or if the model leaves no choice.
    """

    def __init__(self, model: Any, config: Config) -> None:
        self.model, self.config, self.steps = model, config, 0
        self.backend: str | None = None
        self.device = next(model.parameters()).device
        self.average = copy.deepcopy(model).requires_grad_(False) if config.ema else None
        if config.compile:
            if not isinstance(getattr(model, "encoder", None), nn.Module):
                raise ValueError(f"compile: model {config.model['name']!r} has no encoder to compile")
            model.encoder.compile()
        lesson = {"teacher": _teacher(config), "weight": config.teacher["weight"]} if config.teacher else {}
        self.objective = Objective(model, config.data_norm, config.autocast, config.channels_last, **lesson)
        self.objective.to(self.device)
        self._call: nn.Module = self.objective
        if distributed.world_size() > 1:
            self._call = DistributedDataParallel(self.objective, gradient_as_bucket_view=True)
            self._call.broadcast_buffers = False  # the argument's name depends on PyTorch's version
        args = config.optimizer["args"]
        if not args.get("foreach") and args.get("fused") is None:
            # One kernel for all parameters; it reads the scaler's result on the device.
            args = {**args, "fused": True}
        # Frozen parameters too, because the original's optimizer state counts them.
        self.optimizer = OPTIMIZERS[config.optimizer["name"]](model.parameters(), **args)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.autocast == torch.float16)
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def step(self, batches: list[Batch], counts: list[bool]) -> Result:
        """Minimise the mean error over all pixels of all processes' batches; batches not counted weigh 0."""
        values = sum(g["gt"].numel() for batch, counted in zip(batches, counts, strict=True) if counted for g in batch)
        share = self._share(values)
        self.optimizer.zero_grad(set_to_none=True)
        loss, errors = torch.zeros((), dtype=torch.float32, device=self.device), []
        for number, (batch, counted) in enumerate(zip(batches, counts, strict=True)):
            exchange = self._without_exchange() if number < len(batches) - 1 else contextlib.nullcontext()
            with exchange:
                with self._fast_convolutions():
                    error = self._call(batch)
                part = error.sum() * (share if counted else 0.0)
                self.scaler.scale(part).backward()
            loss += part.detach()
            errors.append(error.detach())
        if self.config.grad_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.steps += 1
        self._follow()
        return Result(loss / distributed.world_size(), errors)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            group["initial_lr"] = self.config.optimizer["args"]["lr"]

    def release(self) -> None:
        """Drop DDP's reference to the process group, so `distributed.cleanup` holds the last one.

        DDP would destroy the group while holding the GIL and wait for gloo threads that may need the GIL.
        """
        self._call = self.objective
        gc.collect()  # DDP is part of reference cycles

    def is_finite(self) -> bool:
        """Return whether all weights are finite; waits for the device."""
        sums = torch.stack([p.detach().sum() for p in (self.average or self.model).parameters()])
        return bool(sums.isfinite().all())

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state as the original writes it, without `fused`, which depends on the machine."""
        state = self.optimizer.state_dict()
        state["param_groups"] = [{**group, "fused": None} for group in state["param_groups"]]
        return state

    def load_optimizer_state(self, state: dict[str, Any]) -> list[str]:
        """Load an optimizer's state, ours or the original's; keep the configuration's settings, return the changes."""
        settings = {key: value for key, value in self.optimizer.defaults.items() if key != "lr"}  # the schedule sets lr
        groups = [{**group, "fused": settings["fused"]} for group in state["param_groups"]]  # decides the steps' device
        self.optimizer.load_state_dict({**state, "param_groups": groups})
        (group,) = self.optimizer.param_groups
        missing = [key for key in settings if key not in group]
        if missing:
            raise ValueError(f"optimizer.sd: a group of parameters lacks {', '.join(missing)}")
        remarks = [
            f"optimizer.args: {key} is {value} from here on, it was {group[key]}"
            for key, value in settings.items()
            if key not in ("fused", "foreach") and _comparable(group[key]) != _comparable(value)
        ]
        group.update(settings)
        for parameter, values in self.optimizer.state.items():
            if settings.get("amsgrad") and "max_exp_avg_sq" not in values:
                raise ValueError("optimizer.args.amsgrad: the checkpoint's steps were made without it")
            for key, value in values.items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    shapes = f"{list(value.shape)}, its parameter {list(parameter.shape)}"
                    raise ValueError(f"optimizer.sd: a {key} has shape {shapes}")
                if isinstance(value, Tensor) and value.ndim:
                    # In its parameter's strides, because fused optimizers on a CPU walk raw memory.
                    values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        return remarks

    def _fast_convolutions(self) -> contextlib.AbstractContextManager[object]:
        fast = self.device.type == "cpu" and not self.config.compile
        return fast_convolutions() if fast else contextlib.nullcontext()

    def _share(self, values: int) -> float | Tensor:
        """Return the weight of one value's error with which DDP's mean over processes is the mean over all values."""
        if distributed.world_size() == 1:
            return 1 / values
        total = torch.tensor(float(values), dtype=torch.float64)
        total = total.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else total
        dist.all_reduce(total)
        return (distributed.world_size() / total).float()

    def _without_exchange(self) -> contextlib.AbstractContextManager[Any]:
        return self._call.no_sync() if isinstance(self._call, DistributedDataParallel) else contextlib.nullcontext()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights towards the weights, faster in the first steps."""
        if self.average is not None:
            decay = min(self.config.ema or 0.0, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
            for kept, buffer in zip(self.average.buffers(), self.model.buffers(), strict=True):
                kept.copy_(buffer)


def _teacher(config: Config) -> Any:
    """Load the teacher; raise an error that names the key if it does not fit."""
    assert config.teacher is not None
    name = config.teacher["model"]
    try:
        teacher: Any = load_upscaler(find_model(name))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"teacher.model: {error.args[-1]}") from error
    if teacher.data_norm != config.data_norm:
        raise ValueError(f"teacher.model: {name} has data_norm {teacher.data_norm}, the training {config.data_norm}")
    return teacher.to(memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)


def _comparable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # YAML has no tuples

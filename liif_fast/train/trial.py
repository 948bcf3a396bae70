"""Run one sample through the model before anything is written, and choose the decoder's backend for the training."""

import copy
from typing import Any

import torch
from torch import nn

from liif_fast import backends, distributed
from liif_fast.backends import verdict
from liif_fast.call import Call, Switches
from liif_fast.train.stepper import Batch, Stepper


def automatic(device: torch.device, autocast: torch.dtype | None) -> tuple[str, ...]:
    """Return the backends that "auto" tries in a training, the same in every process.

    The main process reads the verdict of `liif-fast qualify`. It counts if all processes have the same device model,
    kernels and libraries.

    Args:
        device: this process's device.
        autocast: dtype of the forward pass.
    """
    step = Call(
        op="decode",
        device=device,
        dtype=torch.float32,
        shape=(16, 64, 48, 48),  # the paper's setting, for which the verdict's speed was measured
        queries=2304,
        widths=(256, 256, 256, 256, 3),
        switches=Switches(),
        coord_dtype=torch.float32,
        autocast=autocast,
        requires_grad=True,
        coord_requires_grad=False,
    )
    validation = [step._replace(op=op, autocast=None, requires_grad=False) for op in ("decode", "render")]
    names = backends.order(step, *validation) if distributed.is_main() else ()
    if distributed.world_size() == 1:
        return names
    found = distributed.gather((names, verdict.key(device.type, device.index)))
    return found[0][0] if all(key == found[0][1] for _, key in found) else backends.AUTO


def settle(stepper: Stepper, batch: Batch, asked: str | None, recorded: Any) -> list[str]:
    """Set the decoder to the first backend that can run a batch as training and validation do; return remarks.

    "auto" is decided once, here, so that a resume elsewhere does not change the backend unnoticed.

    Args:
        asked: the configuration's backend, "auto" for the fastest; None keeps the recorded one if it can run.
        recorded: the checkpoint's backend; None if it has none.
    """
    names: list[Any] = [asked]
    if not _undecided(stepper.model):
        if asked not in (None, "auto"):
            raise ValueError(
                f"backend: {asked} has no effect: no decoder of the model has backend 'auto'; remove the key"
            )
        names = [None]
    elif asked in (None, "auto"):
        before = [recorded] if asked is None and recorded is not None else []
        names = [*before, *automatic(stepper.device, stepper.config.autocast)]
    refusals = list[str]()
    for name in names:
        refusal = _refusal(stepper, batch, name)
        if refusal is None:
            break
        refusals.append(refusal)
    else:
        raise ValueError(refusals[-1])
    for model in (stepper.model, stepper.average):
        _decide(model, name)
    stepper.backend = name
    if recorded in (None, name) or name is None:
        return []
    why = f": {refusals[0]}" if asked is None else ""
    return [f"backend: {name} from here on, it was {recorded}{why}"]


def _refusal(stepper: Stepper, batch: Batch, name: Any) -> str | None:
    """Return why a backend cannot run what training needs; None if it can."""
    if name is not None and name not in backends.NAMES:
        return f"there is no backend {name!r:.80} here"
    trial = copy.deepcopy(stepper.objective).train()  # with dropout, which not every backend has
    _decide(trial, name)
    devices = [stepper.device] if stepper.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            trial(batch)
        trial.eval()
        with torch.no_grad():
            trial.images(trial.model, batch)
    except backends.RefusedError as error:
        return str(error)
    except (IndexError, RuntimeError, TypeError) as error:
        raise ValueError(f"model: cannot compute a sample of the training set: {error}") from error
    return None


def _undecided(model: nn.Module | None) -> list[Any]:
    """Return the modules whose backend is "auto"."""
    return [] if model is None else [part for part in model.modules() if getattr(part, "backend", None) == "auto"]


def _decide(model: nn.Module | None, name: str | None) -> None:
    for part in _undecided(model):
        part.backend = name

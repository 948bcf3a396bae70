"""The training loop, in one process or in several started by torchrun.

A step depends only on the configuration, its number and the state before it. So a resumed training equals an
uninterrupted one bit for bit.
"""

import contextlib
import datetime
import math
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import yaml
from tqdm import tqdm

from liif_fast import data, distributed, models
from liif_fast.config.reading import placed
from liif_fast.data import make_loader
from liif_fast.data.datasets import headers
from liif_fast.devices import out_of_memory, pick_device
from liif_fast.files import reason
from liif_fast.models.checkpoint import naming, write_checkpoint
from liif_fast.signals import end
from liif_fast.train import state
from liif_fast.train.config import Config, load_config
from liif_fast.train.order import Order, mix
from liif_fast.train.records import Records
from liif_fast.train.stepper import Stepper
from liif_fast.train.stopping import Stop
from liif_fast.train.trial import settle
from liif_fast.train.validation import Validation, first_batch

_ADVICE = "--resume continues from the last checkpoint, with any number of processes"
LOOK_EVERY = 20  # steps between reads of the loss, because each read waits for the GPU


class DivergedError(ValueError):
    """The loss or the weights are no longer finite numbers."""


def train(
    config_path: str | Path,
    *,
    name: str | None = None,
    tag: str | None = None,
    resume: bool = False,
    save_root: str | Path = "save",
    device: str | torch.device = "auto",
) -> Path:
    """Train from a configuration; under torchrun, together with the other processes.

    Args:
        config_path: YAML file (see `liif_fast.train.config`).
        name: name of the run folder; None means `_<config>[_tag]`.
        tag: suffix of the folder's default name.
        resume: continue from the folder's epoch-last.pth if it exists.
        save_root: parent of the run folder.
        device: "auto" takes a GPU if there is one.

    Returns:
        The run folder, with config.yaml, log.txt, log.csv, epoch-last.pth, epoch-best.pth and epoch-N.pth.

    Raises:
        FileNotFoundError: a file or folder named by the configuration is missing.
        FileExistsError: the folder holds a training already and `resume` is not set.
        ValueError: the configuration is wrong, does not fit the checkpoint, or the device does not exist.
        DivergedError: the loss is not finite.
        OSError: a checkpoint cannot be written; the previous one is unchanged.
        ConnectionError: another process is gone, or does not answer within `LIIF_FAST_TIMEOUT`.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint of the current step.
    """
    config = load_config(config_path)
    folder = Path(save_root) / (name or "_" + Path(config_path).stem + (f"_{tag}" if tag else ""))
    last = folder / "epoch-last.pth"
    asked = None if config.resume is None else Path(config.resume)
    present = asked is not None and asked.exists()  # not before the first epoch of a configuration that resumes itself
    if last.exists() and not resume and not (asked and present and asked.samefile(last)):
        raise FileExistsError(f"{folder} holds a training already: resume it (--resume) or give another --name")
    source = last if last.exists() else asked if present else None
    try:
        with distributed.reporting(_ADVICE), _arithmetic(bool(config.deterministic)):
            device = distributed.init(pick_device(device))
            with placed(config_path):
                run = Run(config, folder, device, source)
            if source is None and asked is not None:
                run.log(f"resume: {asked} is not there yet; the training begins")
            if resume and source != last:
                begin = "training starts from the beginning" if source is None else f"training continues from {source}"
                run.log(f"--resume: {folder} has no epoch-last.pth; {begin}")
            try:
                run.train()
            finally:
                run.close()
    finally:
        distributed.cleanup()
    return folder


class Run:
    """A training in progress."""

    def __init__(self, config: Config, folder: Path, device: torch.device, source: Path | None = None) -> None:
        self.config, self.folder, self.device = config, folder, device
        self.look_every = 1 if device.type == "cpu" else LOOK_EVERY
        if len(set(distributed.gather(None if source is None else str(source)))) > 1:
            raise ValueError(f"{folder}: not all processes see it; put it on a file system that they share")
        checkpoint = None if source is None else state.read(source)
        torch.manual_seed(config.seed)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        try:
            spec = config.model if checkpoint is None else checkpoint["model"]
            model: Any = models.make(spec, load_sd=checkpoint is not None)
            model = model.to(device, memory_format=layout)
        except RuntimeError as error:
            if checkpoint is not None or not out_of_memory(error):
                raise
            raise ValueError(f"model: {reason(error)}") from error
        self.spec = _spec(spec)
        self.stepper = Stepper(model, config)
        self._read_data()
        self.progress, remarks = state.Progress(), list[str]()
        if checkpoint is not None:
            with naming(str(source)):
                self.progress, remarks = state.restore(checkpoint, self.stepper, config, self._ordered_by())
        remarks += self._try((checkpoint or {}).get("liif_fast", {}).get("backend"))
        main = distributed.is_main()
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(yaml.safe_dump(config.raw, sort_keys=False), encoding="utf-8")
        self.records = Records(folder, config.tensorboard, main, self.stepper.steps)
        self.records.trim(self.progress.epoch)
        self.stop = Stop()
        self.begun, self.saved = (time.monotonic(), self.done()), time.monotonic()
        processes = f", {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
        if checkpoint is None:
            parameters = sum(p.numel() for p in model.parameters())
            where = f"device: {device.type}{processes}; backend: {self.stepper.backend}"
            self.log(f"model: {self.spec['name']}, {parameters:,} parameters; {where}")
            return
        where = f" and {self.progress.step} steps" if self.progress.step else ""
        self.log(f"resumed from {source} after epoch {self.progress.epoch}{where}{processes}")
        for remark in remarks:
            self.log(remark)
        if self.spec != _spec(config.model):
            self.log("the configuration's model differs from the checkpoint's; training continues the checkpoint's")

    def _read_data(self) -> None:
        config, world = self.config, distributed.world_size()
        size = config.train_dataset["batch_size"]
        self.train_set = data.make_split(config.train_dataset, "train_dataset", config.seed)
        if size < world:
            raise ValueError(f"train_dataset.batch_size: {world} processes cannot share batches of {size}")
        self.order = Order(len(self.train_set), size, config.seed)
        self.steps = -(-self.order.batches // config.grad_accum)  # per epoch
        workers = config.num_workers
        if workers is None:
            cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            workers = max(1, min(8, cores)) if self.device.type == "cuda" else 0  # on a CPU they take cores away
        self.loader = make_loader(
            self.train_set,
            self.order,
            self.device,
            data_device=config.data_device,
            num_workers=0 if config.data_device else workers,
            grouped=True,
        )
        self.validation = None
        if config.val_dataset is not None:
            seed = config.seed + 1 if config.val_seed is None else config.val_seed
            val_set = data.make_split(config.val_dataset, "val_dataset", seed)
            self.validation = Validation(val_set, config, self.stepper.objective, self.device, workers)

    def _ordered_by(self) -> list[int]:
        return [self.order.length, self.order.size, self.config.grad_accum, self.config.seed]

    def _try(self, recorded: Any) -> list[str]:
        """Make a sample of each set and run the training sample through the model, before anything is written."""
        if self.validation is not None:
            first_batch(self.validation.dataset, self.device)
        batch = first_batch(self.train_set, self.device, self.config.data_device)
        return settle(self.stepper, batch, self.config.backend, recorded)

    def train(self) -> None:
        """Train until epoch_max, writing a checkpoint after every epoch and on Ctrl-C or SIGTERM.

        A further call continues where the last one stopped.
        """
        self.stop.reset()  # a signal may have ended an earlier call
        while self.progress.epoch < self.config.epoch_max:
            self._train_epoch()
            self._finish_epoch()
        # Wait until the main process has written everything, and act on a signal that arrived meanwhile.
        if signum := max(distributed.gather(self.stop.signum)):
            end(signum)

    def close(self) -> None:
        """Close the records and the connection to the other processes. The run cannot train afterwards."""
        self.records.close()
        if distributed.world_size() > 1:
            self.stepper.release()

    def _train_epoch(self) -> None:
        """Train to the end of the current epoch."""
        config, progress, stepper = self.config, self.progress, self.stepper
        epoch = progress.epoch + 1
        self.train_set.set_epoch(epoch)
        self.order.begin(epoch, progress.step * config.grad_accum)
        torch.manual_seed(mix(config.seed, epoch))  # for user wrappers that draw from the global generator
        stepper.objective.train()
        self.unread: list[tuple[Any, ...]] = []  # loss, shares, errors, places of each step since the last look
        before, started = progress.seconds, time.perf_counter()
        description = f"epoch {epoch}/{config.epoch_max}"
        hidden = None if distributed.is_main() else True
        with (
            self.stop,
            tqdm(total=self.steps, initial=progress.step, desc=description, leave=False, disable=hidden) as bar,
        ):
            batches = iter(self.loader)
            while progress.step < self.steps:
                first = progress.step * config.grad_accum
                self._set_rate(progress.epoch + progress.step / self.steps)
                torch.manual_seed(mix(config.seed, stepper.steps, distributed.rank()))  # for layers such as dropout
                taken = list(islice(batches, config.grad_accum))
                shares = [self.order.share(first + number) for number in range(len(taken))]
                result = stepper.step(taken, [bool(share) for share in shares])
                places = [torch.cat([group["place"] for group in batch]) for batch in taken]
                self.unread.append((result.loss, shares, result.errors, places))
                progress.step += 1
                bar.update()
                progress.seconds = before + time.perf_counter() - started
                if self._asked() or progress.step % self.look_every == 0 or progress.step == self.steps:
                    self._look(bar)
            if self._asked():  # several processes agree on it in the next epoch instead
                self._save("epoch-last")
                self._end(self.stop.signum)

    def _asked(self) -> bool:
        """Return whether a signal has arrived that this process may obey without asking others."""
        return bool(self.stop.signum) and distributed.world_size() == 1

    def _look(self, bar: Any) -> None:
        """Read the losses since the last look, agree with the other processes, and save if due or asked to stop."""
        progress, minutes = self.progress, self.config.save_minutes
        losses = torch.stack([loss for loss, *_ in self.unread])
        signum, due = self.stop.signum, minutes is not None and time.monotonic() - self.saved >= 60 * minutes
        if distributed.world_size() > 1:  # any process's signal, and the main process's clock
            wishes = torch.tensor([signum, int(due and distributed.is_main())], device=self.device)
            dist.all_reduce(losses)
            dist.all_reduce(wishes, dist.ReduceOp.MAX)
            signum, due = wishes.tolist()
        values: list[float] = losses.tolist()
        bad = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
        if bad is not None:
            self._diverged(progress.step - len(values) + bad + 1, values[bad], bad)
        self.unread.clear()
        progress.losses += values
        self.records.steps(self.stepper.steps, values[-1], self._rate())
        best = f", best {progress.best:.2f} dB" if math.isfinite(progress.best) else ""
        loss = sum(progress.losses) / len(progress.losses)
        bar.set_postfix_str(f"loss {loss:.4f}{best}, {self._left()} in all", refresh=False)
        if signum or due:
            self._save("epoch-last")
        if signum:
            self._end(signum)

    def _end(self, signum: int) -> NoReturn:
        """Log the position, which is saved already, and end."""
        step, epoch = self.progress.step, self.progress.epoch + 1
        self.log(f"stopped after step {step} of epoch {epoch}; --resume continues from there")
        end(signum)

    def _diverged(self, step: int, loss: float, number: int) -> None:
        """Raise DivergedError naming the step and the samples."""
        _, *batches = self.unread[number]
        found = []
        for share, errors, places in zip(*batches, strict=True):
            bad = places[~errors.isfinite()].tolist()
            found += [share[place] for place in bad if share]
        samples = sorted(index for part in distributed.gather(found) for index in part)
        which = ", ".join(self._sample_name(index) for index in samples[:4]) or "none alone"
        raise DivergedError(
            f"the loss is {loss} at step {step} of epoch {self.progress.epoch + 1}; samples: {which}"
            f"{' and others' if len(samples) > 4 else ''}; no checkpoint was written since"
        )

    def _sample_name(self, index: int) -> str:
        """Return a sample's number and, if the dataset names it, its image (of a pair, the larger one)."""
        found = headers(getattr(self.train_set, "dataset", None), index)
        return f"{index} ({found[-1].name})" if found else str(index)

    def _finish_epoch(self) -> None:
        """Save, validate if due, record the epoch, and save again."""
        config, progress, best = self.config, self.progress, False
        epoch, model = progress.epoch + 1, self.stepper.average or self.stepper.model
        record: dict[str, Any] = {"epoch": epoch, "steps": self.stepper.steps, "lr": self._rate()}
        record["loss"] = sum(progress.losses) / len(progress.losses)
        record["seconds"] = round(progress.seconds, 2)
        speed = self.steps / max(progress.seconds, 1e-9)
        line = f"epoch {epoch}/{config.epoch_max}, loss {record['loss']:.5f}, {speed:.2f} it/s, lr {record['lr']:.3g}"
        if self.validation is not None and config.epoch_val and epoch % config.epoch_val == 0:
            self._save("epoch-last")
            record["psnr"], record["psnr_per_image"] = self.validation.psnr(model, epoch)
            line += f", val psnr {record['psnr']:.4f} (per image {record['psnr_per_image']:.4f})"
            best = record["psnr"] > progress.best
            progress.best = max(progress.best, record["psnr"])
            self._picture(model, epoch)
        self.records.epoch(record)  # before the checkpoint, because resuming drops rows beyond it
        self.progress = state.Progress(epoch, best=progress.best)
        self._set_rate(epoch)  # the original's files hold the next epoch's rate
        names = ["epoch-best"] * best + [f"epoch-{epoch}"] * bool(config.epoch_save and epoch % config.epoch_save == 0)
        self._save(*names, "epoch-last")  # epoch-last last, because resuming starts from it
        self.log(f"{line}, {self._left()} left")

    def _picture(self, model: Any, epoch: int) -> None:
        count = 4 if self.config.val_images is None else self.config.val_images
        if not distributed.is_main() or self.validation is None:
            return
        picture = self.validation.picture(model, count)
        if picture is not None:
            self.records.image(picture, "epoch-last", self.stepper.steps)
            if self.config.epoch_save and epoch % self.config.epoch_save == 0:
                self.records.image(picture, f"epoch-{epoch}", self.stepper.steps)

    def _save(self, *names: str) -> None:
        """Write the state under each name; raise DivergedError instead if it is not finite."""
        if not self.stepper.is_finite():
            raise DivergedError(
                f"the weights are not finite after step {self.progress.step} of epoch {self.progress.epoch + 1}; "
                "no checkpoint was written since they were"
            )
        self.saved = time.monotonic()
        if distributed.is_main():
            content = self.checkpoint()
            for name in names:
                write_checkpoint(content, self.folder / f"{name}.pth")

    def checkpoint(self) -> Any:
        """Return the state in the original's format, with what resuming needs (`state.compose`)."""
        return state.compose(self.spec, self.stepper, self.config, self.progress, self._ordered_by())

    def done(self) -> int:
        """Return the number of completed steps."""
        return self.progress.epoch * self.steps + self.progress.step

    def _left(self) -> datetime.timedelta:
        """Estimate the remaining time from this process's pace so far."""
        begun, first = self.begun
        pace = (time.monotonic() - begun) / max(self.done() - first, 1)
        return datetime.timedelta(seconds=round(pace * (self.config.epoch_max * self.steps - self.done())))

    def _rate(self) -> float:
        return self.stepper.optimizer.param_groups[0]["lr"]

    def _set_rate(self, epochs: float) -> None:
        self.stepper.set_rate(self.config.rate(epochs))

    def log(self, line: str) -> None:
        """Print a line and append it to log.txt, in the main process."""
        self.records.log(line)


def _spec(spec: Any) -> dict[str, Any]:
    return {"name": spec["name"], "args": spec.get("args") or {}}


@contextlib.contextmanager
def _arithmetic(deterministic: bool) -> Iterator[None]:
    """Let PyTorch benchmark its kernels, or restrict it to deterministic ones."""
    before = (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its start
    torch.use_deterministic_algorithms(deterministic or before[0])
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]

"""The training loop: one process, one device.

An epoch depends on the configuration, the epoch's number and the state at its start alone, so that a resumed training
is bit for bit the uninterrupted one.
"""

import copy
import datetime
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from liif_fast import models
from liif_fast.data import registry
from liif_fast.data.samples import Sample, collate
from liif_fast.files import atomic_file
from liif_fast.metrics import parse_eval_type, psnr
from liif_fast.models.checkpoint import _as_model_file_error, _check_state, _read_pth, _split
from liif_fast.train.config import OPTIMIZERS, Config, load_config
from liif_fast.upscaling import pick_device

CHECK_EVERY = 20  # steps between looks at the loss, each of which makes a GPU wait


class DivergedError(ValueError):
    """The loss is no longer a finite number."""


def train(
    config_path: str | Path,
    *,
    name: str | None = None,
    tag: str | None = None,
    resume: bool = False,
    save_root: str | Path = "save",
    device: str | torch.device = "auto",
) -> Path:
    """Train as a configuration says.

    Args:
        config_path: YAML file (see `liif_fast.train.config`).
        name: name of the run folder; None means `_<config>[_tag]`.
        tag: added to the folder's default name.
        resume: continue from the folder's epoch-last.pth if there is one.
        save_root: folder of the run folders.
        device: "auto" takes a GPU if there is one.

    Returns:
        The run folder, with config.yaml, log.txt, log.jsonl, epoch-last.pth, epoch-best.pth and epoch-N.pth.

    Raises:
        FileNotFoundError: if something that the configuration names is missing.
        FileExistsError: if the folder holds a training already and resume is not set.
        ValueError: if the configuration is wrong or does not fit the checkpoint, or there is no such device.
        DivergedError: if the loss is not finite.
    """
    config = load_config(config_path)
    folder = Path(save_root) / (name or "_" + Path(config_path).stem + (f"_{tag}" if tag else ""))
    last = folder / "epoch-last.pth"
    if last.exists() and not resume:
        raise FileExistsError(f"{folder} holds a training already: resume it (--resume) or give another --name")
    source = last if last.exists() else config.resume
    run = Run(config, folder, pick_device(device), None if source is None else Path(source))
    run.train()
    return folder


class Run:
    """A training in progress.

    Args:
        config: the checked configuration.
        folder: where its files go; made if missing.
        device: where it computes.
        source: checkpoint to continue from, ours or the original's.

    Raises:
        ValueError: if the samples do not fit the model.
        ModelFileError: if the checkpoint is none that a training can continue from, naming its file.
    """

    def __init__(self, config: Config, folder: Path, device: torch.device, source: Path | None = None) -> None:
        self.config, self.folder, self.device = config, folder, device
        checkpoint = None if source is None else _read_checkpoint(source)
        torch.manual_seed(config.seed)
        model: Any = models.make(config.model) if checkpoint is None else models.make(checkpoint["model"], load_sd=True)
        self.model = model.to(device, memory_format=torch.channels_last)  # the faster layout, on a CPU too
        self.spec = {"name": config.model["name"], "args": config.model.get("args") or {}}
        if checkpoint is not None:
            self.spec = {key: checkpoint["model"][key] for key in ("name", "args")}
        # Frozen parameters too: the original's optimizer states count them.
        self.optimizer = OPTIMIZERS[config.optimizer["name"]](self.model.parameters(), **config.optimizer["args"])
        self.average = copy.deepcopy(self.model) if config.ema else None
        self.epoch, self.best, self.steps = 0, -math.inf, 0
        self.pending: tuple[dict[str, Any], str] | None = None  # an epoch's record and line, while it is validated
        if checkpoint is not None:
            with _as_model_file_error(str(source)):
                self._restore(checkpoint)
        self.train_set, self.train_batch = _make_split(config.train_dataset, config.seed)
        self.val_set, self.val_batch = None, 1
        if config.val_dataset is not None:
            seed = config.seed + 1 if config.val_seed is None else config.val_seed
            self.val_set, self.val_batch = _make_split(config.val_dataset, seed)
        self._try()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.raw, sort_keys=False))
        if checkpoint is None:
            parameters = sum(p.numel() for p in self.model.parameters())
            self.log(f"model: {self.spec['name']}, {parameters:,} parameters; device: {device}")
        else:
            self._trim_log()
            self.log(f"resumed from {source} after epoch {self.epoch}")
            if self.spec != {"name": config.model["name"], "args": config.model.get("args") or {}}:
                self.log("the configuration's model differs from the checkpoint's, which is the one that is trained")

    @torch.inference_mode()
    def _try(self) -> None:
        """Make a sample of each set, and put the training's through the model, before anything is written."""
        if self.val_set is not None:
            self.val_set[0]
        sample = {key: value.to(self.device) for key, value in collate([self.train_set[0]]).items()}
        try:
            pred = copy.deepcopy(self.model).eval()(sample["inp"], sample["coord"], sample["cell"])
        except (IndexError, RuntimeError, TypeError) as error:
            raise ValueError(f"model: cannot compute a sample of the training set: {error}") from error
        _same_shape(pred, sample["gt"])

    def train(self) -> None:
        """Train until epoch_max, leaving a checkpoint after every epoch."""
        config, begin, first = self.config, time.perf_counter(), self.epoch
        if self.pending is not None:
            self._finish_epoch(*self.pending)
        while self.epoch < config.epoch_max:
            start, before = time.perf_counter(), self.steps
            loss = self._train_epoch()
            self.epoch += 1
            self._set_rate(self.epoch)  # as the original's files have it: the next epoch's
            seconds = time.perf_counter() - start
            left = datetime.timedelta(
                seconds=round((start + seconds - begin) / (self.epoch - first) * (config.epoch_max - self.epoch))
            )
            rate = self.optimizer.param_groups[0]["lr"]
            record: dict[str, Any] = {"epoch": self.epoch, "steps": self.steps, "loss": loss}
            record |= {"seconds": round(seconds, 2), "lr": rate}
            speed = (self.steps - before) / seconds
            line = f"epoch {self.epoch}/{config.epoch_max}, loss {loss:.5f}, {speed:.2f} it/s"
            self._finish_epoch(record, line + f", lr {rate:.3g}, {left} left")

    def _finish_epoch(self, record: dict[str, Any], line: str) -> None:
        """Validate if it is time, log, and save; what has been trained is saved before."""
        config, last, best = self.config, self.folder / "epoch-last.pth", False
        if self.val_set is not None and config.epoch_val and self.epoch % config.epoch_val == 0:
            self.pending = (record, line)
            _save(self.checkpoint(), last)
            record["psnr"], record["psnr_per_image"] = self.validate()
            line += f", val psnr {record['psnr']:.4f} (per image {record['psnr_per_image']:.4f})"
            best = record["psnr"] > self.best
            self.best = max(self.best, record["psnr"])
        self.pending = None
        with (self.folder / "log.jsonl").open("a") as file:  # before the checkpoint: resuming drops what is beyond it
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        state = self.checkpoint()
        if best:
            _save(state, self.folder / "epoch-best.pth")
        if config.epoch_save and self.epoch % config.epoch_save == 0:
            _save(state, self.folder / f"epoch-{self.epoch}.pth")
        _save(state, last)  # at the end: resuming starts from it
        self.log(line)

    def _trim_log(self) -> None:
        """Drop the records of log.jsonl beyond the checkpoint, and a line that was not finished."""
        path, done = self.folder / "log.jsonl", self.epoch - (self.pending is not None)
        kept = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                if json.loads(line)["epoch"] <= done:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        with atomic_file(path) as file:
            file.write("".join(kept).encode())

    def _train_epoch(self) -> float:
        """One pass over the training set; returns the mean loss."""
        config, epoch = self.config, self.epoch + 1
        torch.manual_seed(_mix(config.seed, epoch))  # for layers that draw, such as dropout
        self.train_set.set_epoch(epoch)
        loader = self._loader(self.train_set, self.train_batch, torch.Generator().manual_seed(_mix(config.seed, epoch)))
        losses = torch.zeros(len(loader), device=self.device)
        checked = 0
        self.model.train()
        with tqdm(total=len(loader), desc=f"epoch {epoch}/{config.epoch_max}", leave=False, disable=None) as bar:
            for step, batch in enumerate(loader):
                self._set_rate(self.epoch + step / len(loader))
                losses[step] = self._step(batch)
                bar.update()
                if (step + 1) % CHECK_EVERY == 0:
                    checked = self._check(losses, checked, step + 1)
                    bar.set_postfix(loss=f"{losses[: step + 1].mean().item():.4f}", refresh=False)
        self._check(losses, checked, len(loader))
        return losses.mean().item()

    def _step(self, batch: Sample) -> Tensor:
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        norm, inp = self.config.data_norm, batch["inp"].contiguous(memory_format=torch.channels_last)
        inp = (inp - _channels(norm["inp"]["sub"], inp)) / _channels(norm["inp"]["div"], inp)
        gt = (batch["gt"] - batch["gt"].new_tensor(norm["gt"]["sub"])) / batch["gt"].new_tensor(norm["gt"]["div"])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp is not None):
            pred = self.model(inp, batch["coord"], batch["cell"])
        _same_shape(pred, gt)
        loss = nn.functional.l1_loss(pred.float(), gt)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        if self.average is not None:
            decay = min(self.config.ema or 0.0, (1 + self.steps) / (10 + self.steps))  # short at first
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return loss.detach()

    def _check(self, losses: Tensor, start: int, stop: int) -> int:
        bad = (~losses[start:stop].isfinite()).nonzero()
        if len(bad):
            step = start + int(bad[0])
            raise DivergedError(
                f"the loss is {losses[step].item()} at step {step + 1} of epoch {self.epoch + 1}; epoch-last.pth holds "
                f"the state after epoch {self.epoch}"
            )
        return stop

    @torch.inference_mode()
    def validate(self) -> tuple[float, float]:
        """PSNR on the validation set, by the averaged weights where there are any.

        Returns:
            dB of each batch's pooled error, averaged by batch size, as the original reports it; and the mean over
            images.
        """
        assert self.val_set is not None
        config = self.config
        if config.val_seed is None:
            self.val_set.set_epoch(self.epoch)
        model = (self.average or self.model).eval()
        norm, pooled, single, count = config.data_norm, 0.0, 0.0, 0
        for batch in self._loader(self.val_set, self.val_batch):
            batch = {key: value.to(self.device) for key, value in batch.items()}
            inp = batch["inp"]
            inp = (inp - _channels(norm["inp"]["sub"], inp)) / _channels(norm["inp"]["div"], inp)
            model.gen_feat(inp)
            size = config.eval_bsize or batch["coord"].shape[1]
            parts = zip(batch["coord"].split(size, 1), batch["cell"].split(size, 1), strict=True)
            pred = torch.cat([model.query_rgb(coord, cell) for coord, cell in parts], 1)
            _same_shape(pred, batch["gt"])
            pred = (pred * pred.new_tensor(norm["gt"]["div"]) + pred.new_tensor(norm["gt"]["sub"])).clamp(0, 1)
            gt = batch["gt"]
            if config.eval_type is not None:
                pred, gt = (_as_images(x, inp, config.eval_type) for x in (pred, gt))
            values = psnr(pred, gt, config.eval_type, per_image=True).cpu().double()
            pooled += len(values) * psnr(pred, gt, config.eval_type).item()
            single += values.sum().item()
            count += len(values)
        self.model.train()
        return pooled / count, single / count

    def checkpoint(self) -> dict[str, Any]:
        """The state after an epoch in the original's format, and what resuming needs beside it under `liif_fast`.

        With `ema` the model's weights are the averaged ones, and the trained ones are in `liif_fast`.
        """
        optimizer = self.config.optimizer
        extra: dict[str, Any] = {"best": self.best, "steps": self.steps}
        if self.pending is not None:
            extra["pending"] = self.pending
        if self.average is not None:
            extra["trained"] = self.model.state_dict()
        return {
            "model": {**self.spec, "sd": (self.average or self.model).state_dict()},
            "optimizer": {"name": optimizer["name"], "args": optimizer["args"], "sd": self.optimizer.state_dict()},
            "epoch": self.epoch,
            "data_norm": self.config.data_norm,  # what load_model reads; the original leaves it to the reader
            "liif_fast": extra,
        }

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        extra = checkpoint.get("liif_fast", {})  # the original's files have none
        if "trained" in extra:
            self.model.load_state_dict(extra["trained"])
        if self.average is not None:
            self.average.load_state_dict(checkpoint["model"]["sd"])
        name = checkpoint["optimizer"]["name"]
        if name != self.config.optimizer["name"]:
            raise ValueError(f"optimizer.name: the checkpoint has {name!r}, got {self.config.optimizer['name']!r}")
        self.optimizer.load_state_dict(checkpoint["optimizer"]["sd"])
        for group in self.optimizer.param_groups:
            missing = [key for key in self.optimizer.defaults if key not in group]
            if missing:
                raise ValueError(f"optimizer.sd: a group of parameters lacks {', '.join(missing)}")
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    shapes = f"{list(value.shape)}, its parameter {list(parameter.shape)}"
                    raise ValueError(f"optimizer.sd: a {key} has shape {shapes}")
        self.epoch, self.best = checkpoint["epoch"], extra.get("best", -math.inf)
        self.steps = extra.get("steps", 0)
        if "pending" in extra:
            record, line = extra["pending"]
            self.pending = (dict(record), str(line))

    def _set_rate(self, epochs: float) -> None:
        rate = self.config.rate(epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            group["initial_lr"] = self.config.optimizer["args"]["lr"]

    def _loader(self, dataset: Any, batch_size: int, generator: torch.Generator | None = None) -> DataLoader[Sample]:
        """Batches in order, or in an order drawn from the generator."""
        gpu = self.device.type == "cuda"
        workers = self.config.num_workers
        if workers is None:
            workers = min(8, os.cpu_count() or 1) if gpu else 0  # on a CPU they would only take cores from the training
        return DataLoader(
            dataset,
            batch_size,
            shuffle=generator is not None,
            generator=generator,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=gpu,
        )

    def log(self, line: str) -> None:
        """Print a line and append it to log.txt."""
        tqdm.write(line)
        with (self.folder / "log.txt").open("a") as file:
            file.write(line + "\n")


def _make_split(split: dict[str, Any], seed: int) -> tuple[Any, int]:
    dataset = registry.make(split["dataset"])
    return registry.make(split["wrapper"], dataset=dataset, seed=seed), split["batch_size"]


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a training, whose model is one that can be built and fits its weights."""
    with _as_model_file_error(str(path)):
        checkpoint = dict(_read_pth(path))
        missing = [key for key in ("model", "optimizer", "epoch") if key not in checkpoint]
        if missing:
            raise ValueError(f"no checkpoint of a training: it has no {' and no '.join(missing)}")
        _check_state(*_split(checkpoint))
        optimizer, epoch = checkpoint["optimizer"], checkpoint["epoch"]
        if not isinstance(optimizer, dict) or not {"name", "sd"} <= optimizer.keys():
            raise ValueError("no checkpoint of a training: its optimizer has no name or no sd")
        if not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"epoch must be a whole number of at least 0, got {epoch!r:.80}")
    return checkpoint


def _same_shape(pred: Tensor, gt: Tensor) -> None:
    """A loss would broadcast them."""
    if pred.shape != gt.shape:
        raise ValueError(
            f"model: its output must have the shape of the targets {list(gt.shape)} (batch, queries, channels), "
            f"got {list(pred.shape)}"
        )


def _mix(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


def _channels(values: list[float], image: Tensor) -> Tensor:
    return image.new_tensor(values).view(1, -1, 1, 1)


def _as_images(samples: Tensor, inp: Tensor, eval_type: str) -> Tensor:
    """All pixels [B, H * W, C] of whole images as [B, C, H, W], the scale being that of eval_type."""
    scale = parse_eval_type(eval_type)[1]
    height, width = inp.shape[-2] * scale, inp.shape[-1] * scale
    if samples.shape[1] != height * width:
        raise ValueError(f"eval_type {eval_type} needs all {height} x {width} pixels, got {samples.shape[1]} queries")
    return samples.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _save(state: dict[str, Any], path: Path) -> None:
    with atomic_file(path) as file:
        torch.save(state, file)

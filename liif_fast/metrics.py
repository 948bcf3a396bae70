"""Image quality."""

import torch
from torch import Tensor

_LUMA = (65.738 / 256, 129.057 / 256, 25.064 / 256)  # RGB to the Y of BT.601, as the published figures take it


def psnr(pred: Tensor, target: Tensor, eval_type: str | None = None, *, per_image: bool = False) -> Tensor:
    """Peak signal-to-noise ratio of values in [0, 1], not rounded to 8 bits.

    Args:
        pred: [B, ...], or images [B, C, H, W] if eval_type is given.
        target: the same shape.
        eval_type: None compares everything; "div2k-s" leaves out s + 6 pixels at each border; "benchmark-s" leaves
            out s and compares the weighted difference of the channels (Y) where there are three.
        per_image: one value per image instead of one of the pooled error of the batch.

    Returns:
        float32 in dB, [] or [B].

    Raises:
        ValueError: if the shapes differ, eval_type is of another form, or no pixel is left.
    """
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must have equal shapes, got {list(pred.shape)} and {list(target.shape)}")
    diff = pred - target
    if eval_type is not None:
        kind, scale = parse_eval_type(eval_type)
        if diff.ndim != 4:
            raise ValueError(f"pred must be images [B, C, H, W] for {eval_type}, got shape {list(pred.shape)}")
        if kind == "benchmark" and diff.shape[1] == 3:
            diff = (diff * diff.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        shave = scale + 6 if kind == "div2k" else scale
        diff = diff[..., shave : diff.shape[-2] - shave, shave : diff.shape[-1] - shave]
        if 0 in diff.shape[-2:]:
            raise ValueError(f"pred must be larger than the {shave} pixels shaved at each border, got {pred.shape}")
    error = diff.square().flatten(1).mean(1)  # the images of a batch are equally large
    return -10 * torch.log10(error if per_image else error.mean())


def parse_eval_type(eval_type: str) -> tuple[str, int]:
    """Split "div2k-4" or "benchmark-2" into its kind and its scale.

    Args:
        eval_type: as a configuration writes it.

    Returns:
        (kind, scale).

    Raises:
        ValueError: if it is of another form.
    """
    kind, _, scale = str(eval_type).partition("-")
    if kind not in ("div2k", "benchmark") or not scale.isdecimal() or int(scale) < 1:
        raise ValueError(f"eval_type must be div2k-s or benchmark-s with a whole scale s, got {eval_type!r}")
    return kind, int(scale)

"""Measure image quality as LIIF's published figures do."""

import torch
from torch import Tensor

_LUMA = (65.738 / 256, 129.057 / 256, 25.064 / 256)  # RGB to the Y of BT.601 without its offset
_LUMA_OFFSET = 16 / 255
_SSIM_WINDOW = 11


def psnr(pred: Tensor, target: Tensor, eval_type: str | None = None, *, per_image: bool = False) -> Tensor:
    """Return the peak signal-to-noise ratio of values in [0, 1], not rounded to 8 bits.

    Args:
        pred: [B, ...], or images [B, C, H, W] if eval_type is given.
        target: the same shape.
        eval_type: None compares everything. "div2k-s" leaves out s + 6 pixels at each border. "benchmark-s" leaves
            out s pixels and, if there are three channels, compares their weighted sum (Y).
        per_image: return one value per image instead of one for the pooled error of the batch.

    Returns:
        float32 in dB, [] or [B].

    Raises:
        ValueError: the shapes differ, eval_type has another form, or no pixel is left.
    """
    error = mse(pred, target, eval_type)
    return -10 * torch.log10(error if per_image else error.mean())


def mse(pred: Tensor, target: Tensor, eval_type: str | None = None) -> Tensor:
    """Return the mean squared error of each image of a batch, float32 [B]; arguments and errors as for `psnr`."""
    _check_shapes(pred, target)
    return _compared(pred - target, eval_type).square().flatten(1).mean(1)


def ssim(pred: Tensor, target: Tensor, eval_type: str | None = None) -> Tensor:
    """Return the structural similarity of each image of a batch, on the pixels that `psnr` compares.

    scikit-image computes it with the paper's settings: Gaussian window of 11 x 11 and sigma 1.5, K1 = 0.01, K2 = 0.03,
    population covariances, data range 1. The result is the mean over channels. Y has its offset of 16/255.

    Args:
        pred: images [B, C, H, W] in [0, 1].
        target: the same shape.
        eval_type: as for `psnr`.

    Returns:
        float64 [B], on the CPU.

    Raises:
        ValueError: the shapes differ, or fewer than 11 x 11 pixels are compared.
        ImportError: scikit-image is not installed.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", TIP 2004.
    """
    try:
        from skimage.metrics import structural_similarity as measure
    except ImportError:
        raise ImportError("SSIM needs scikit-image (pip install scikit-image)") from None
    _check_shapes(pred, target)
    channels = pred.shape[1] if pred.ndim == 4 else 0
    pred, target = (_compared(x, eval_type).cpu().double() for x in (pred, target))
    if pred.ndim != 4 or min(pred.shape[-2:]) < _SSIM_WINDOW:
        raise ValueError(f"pred must have {_SSIM_WINDOW} x {_SSIM_WINDOW} pixels to compare, got {list(pred.shape)}")
    offset = _LUMA_OFFSET if pred.shape[1] < channels else 0.0
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    values = [
        measure(a.numpy() + offset, b.numpy() + offset, channel_axis=0, **settings)
        for a, b in zip(pred, target, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


def parse_eval_type(eval_type: str) -> tuple[str, int]:
    """Split "div2k-4" or "benchmark-2" into its kind and its scale; raise ValueError for another form."""
    kind, _, scale = str(eval_type).partition("-")
    if kind not in ("div2k", "benchmark") or not scale.isdecimal() or int(scale) < 1:
        raise ValueError(f"eval_type must be div2k-s or benchmark-s with a whole scale s, got {eval_type!r}")
    return kind, int(scale)


def _check_shapes(pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must have equal shapes, got {list(pred.shape)} and {list(target.shape)}")


def _compared(images: Tensor, eval_type: str | None) -> Tensor:
    """Return what an eval_type compares, Y or the channels without the border; linear in the images."""
    if eval_type is None:
        return images
    kind, scale = parse_eval_type(eval_type)
    if images.ndim != 4:
        raise ValueError(f"pred must be images [B, C, H, W] for {eval_type}, got shape {list(images.shape)}")
    if kind == "benchmark" and images.shape[1] == 3:
        images = (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    shave = scale + 6 if kind == "div2k" else scale
    height, width = images.shape[-2:]
    if min(height, width) <= 2 * shave:
        raise ValueError(f"pred must be larger than the {shave} pixels shaved at each border, got {height} x {width}")
    return images[..., shave : height - shave, shave : width - shave]

"""Convert between images in [0, 1] and a network's normalised values."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

DataNorm = dict[str, dict[str, list[float]]]

HALF = {"sub": [0.5], "div": [0.5]}
DATA_NORM: DataNorm = {"inp": HALF, "gt": HALF}  # of every config of the original, whose .pth files hold none


class Norm(nn.Module):
    """Normalise images and undo it; a module so that `to(device)` moves its constants, which are not saved.

    Args:
        data_norm: `{'inp': {'sub': [...], 'div': [...]}, 'gt': {...}}`, each one value or one per channel.
    """

    inp_sub: Tensor
    inp_div: Tensor
    gt_sub: Tensor
    gt_div: Tensor

    def __init__(self, data_norm: DataNorm) -> None:
        super().__init__()
        for part, values in data_norm.items():
            for key, value in values.items():
                self.register_buffer(f"{part}_{key}", torch.tensor(value, dtype=torch.float32), persistent=False)

    def inp(self, image: Tensor, out: Tensor | None = None) -> Tensor:
        """Normalise inputs `[..., C, H, W]` in [0, 1]; outside autograd `out` may be `image` itself."""
        sub, div = (values.view(-1, 1, 1) for values in (self.inp_sub, self.inp_div))
        return torch.sub(image, sub, out=out).div_(div)

    def target(self, values: Tensor) -> Tensor:
        """Normalise targets `[..., C]` in [0, 1]."""
        return (values - self.gt_sub) / self.gt_div

    def values(self, pred: Tensor) -> Tensor:
        """Undo the normalisation of predictions `[..., C]`; the result is not clamped to [0, 1]."""
        return pred * self.gt_div + self.gt_sub

    def image(self, pred: Tensor) -> Tensor:
        """Undo the normalisation of predictions `[..., C, H, W]`; the result is not clamped to [0, 1]."""
        return pred * self.gt_div.view(-1, 1, 1) + self.gt_sub.view(-1, 1, 1)


def check_data_norm(value: Any) -> dict[str, dict[str, list[float]]]:
    """Return a data_norm with lists of floats for inp/gt x sub/div; absent ones become sub 0 and div 1."""
    fallback = {"sub": [0.0], "div": [1.0]}
    if not isinstance(value, Mapping) or not set(value) <= {"inp", "gt"}:
        raise ValueError(f"data_norm must be a mapping with 'inp' and 'gt', got {value!r:.80}")
    result = {}
    for part in ("inp", "gt"):
        given = value.get(part, fallback)
        if not isinstance(given, Mapping) or not set(given) <= {"sub", "div"}:
            raise ValueError(f"data_norm[{part!r}] must be a mapping with 'sub' and 'div', got {given!r:.80}")
        result[part] = {
            key: _floats(f"data_norm[{part!r}][{key!r}]", given.get(key, fallback[key])) for key in fallback
        }
        if 0.0 in result[part]["div"]:
            raise ValueError(f"data_norm[{part!r}]['div'] must not be 0")
    return result


def _floats(name: str, value: Any) -> list[float]:
    values = value if isinstance(value, list | tuple) else [value]
    if len(values) not in (1, 3) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise ValueError(f"{name} must be one number or three, got {value!r:.80}")
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"{name} must be finite, got {value!r:.80}")
    return [float(v) for v in values]

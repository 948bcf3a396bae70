"""Compute the models' formulas after the encoder in plain PyTorch, for comparison with training."""

import torch
import torch.nn.functional as F


def axis(coord, n, shift):
    """Return the index of the nearest latent along an axis and the coordinate's distance from it in latents."""
    moved = (coord + (shift / n + 1e-6 if shift else 0)).clamp(-1 + 1e-6, 1 - 1e-6)
    index = (((moved + 1) * n - 1) / 2).round().long()
    centres = torch.arange(n).float() * (2 / n) + (-1 + 1 / n)
    return index, (coord - centres[index]) * n


def unfolded(feat):
    return F.unfold(feat, 3, padding=1).unflatten(2, feat.shape[2:]).permute(0, 2, 3, 1)


def liif(model, feat, coord, cell):
    (height, width), z = feat.shape[2:], unfolded(feat)
    image = torch.arange(len(feat))[:, None]
    outputs, areas = [], []
    for row_shift in (-1, 1):
        for column_shift in (-1, 1):
            row, row_rel = axis(coord[..., 0], height, row_shift)
            column, column_rel = axis(coord[..., 1], width, column_shift)
            rel = torch.stack((row_rel, column_rel), -1)
            outputs.append(
                model.imnet(torch.cat((z[image, row, column], rel, cell * cell.new_tensor((height, width))), -1))
            )
            areas.append((row_rel * column_rel).abs() + 1e-9)
    total = areas[0] + areas[1] + areas[2] + areas[3]
    return sum(out * (area / total)[..., None] for out, area in zip(outputs, reversed(areas), strict=True))


def metasr(model, feat, coord, cell):
    height, width = feat.shape[2:]
    q = coord - cell / 2
    image = torch.arange(len(feat))[:, None]
    indices, inputs = [], []
    for k, n in enumerate((height, width)):
        index = ((((q[..., k] + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6) + 1) * n - 1) / 2).round().long()
        indices.append(index)
        corner = index.float() * (2 / n) + (-1 + 1 / n) - 1 / n
        inputs.append((q[..., k] - corner) * (n / 2))
    inputs.append(cell[..., 0] * (height / 2))
    z = unfolded(feat)[image, indices[0], indices[1]]
    weights = model.imnet(torch.stack(inputs, -1)).unflatten(-1, (-1, 3))
    return (z[..., None, :] @ weights)[..., 0, :]

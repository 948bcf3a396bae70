"""Compare MetaSR with a loop over single queries."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from liif_fast import make_cell, make_coord, models

ENCODER = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
SPEC = {
    "name": "metasr",
    "args": {"encoder_spec": ENCODER},
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.make(SPEC)


def one_query(z, mlp, coord, cell):
    """Compute MetaSR: one neighbour, the index from the shifted and clamped q, the rest in float32 step by step."""
    f32 = np.float32
    n = z.shape[:2]
    index, inp = [], []
    for axis in (0, 1):
        q = f32(coord[axis]) - f32(cell[axis]) / f32(2)
        c = min(max(q + f32(1e-6), f32(-1 + 1e-6)), f32(1 - 1e-6))
        index.append(int(np.rint(((c + f32(1)) * f32(n[axis]) - f32(1)) / f32(2))))
        centre = f32(2 / n[axis]) * f32(index[-1]) + f32(-1 + 1 / n[axis])
        inp.append((q - (centre - f32(1 / n[axis]))) * f32(n[axis] / 2))
    inp.append(f32(cell[0]) * f32(n[0] / 2))
    weights = mlp(torch.tensor(np.array(inp)))
    return torch.stack([(z[index[0], index[1]] * weights[rgb::3]).sum() for rgb in range(3)])


def test_against_single_queries(model):
    inp = torch.rand(2, 3, 5, 7)
    size = (15, 14)
    coord = torch.cat((make_coord(size), torch.rand(40, 2) * 2.2 - 1.1)).expand(2, -1, 2)
    cell = torch.cat((make_cell(size), torch.rand(40, 2) * 0.3)).expand(2, -1, 2)
    with torch.no_grad():
        out = model(inp, coord, cell)
        z = F.unfold(model.feat, 3, padding=1).unflatten(2, (5, 7)).permute(0, 2, 3, 1)
        for b in range(2):
            expected = [one_query(z[b], model.imnet, *q) for q in zip(coord[b].tolist(), cell[b].tolist(), strict=True)]
            torch.testing.assert_close(out[b], torch.stack(expected), rtol=0, atol=2e-6)


def test_names_and_shapes(model):
    shapes = {key: list(v.shape) for key, v in model.state_dict().items() if key.startswith("imnet")}
    assert shapes == {
        "imnet.layers.0.weight": [256, 3],
        "imnet.layers.0.bias": [256],
        "imnet.layers.2.weight": [4 * 9 * 3, 256],
        "imnet.layers.2.bias": [4 * 9 * 3],
    }
    assert model.spec == SPEC == models.MetaSR(**SPEC["args"]).spec


def test_chunks_and_render(model, monkeypatch):
    inp = torch.rand(2, 3, 5, 7)
    size = (9, 11)
    coord, cell = make_coord(size).expand(2, -1, 2), make_cell(size).expand(2, -1, 2)
    whole = model(inp, coord, cell)
    monkeypatch.setattr("liif_fast.models.metasr.CHUNK_QUERIES", 14)
    monkeypatch.setattr("liif_fast.family.STRIP_QUERIES", 25)
    with torch.no_grad():
        torch.testing.assert_close(model(inp, coord, cell), whole, rtol=0, atol=1e-6)
        image = model.render(inp, size)
        torch.testing.assert_close(image.flatten(2).transpose(1, 2), whole, rtol=0, atol=1e-6)
        torch.testing.assert_close(model.render(inp, size, (2, 3, 4, 5)), image[:, :, 2:6, 3:8], rtol=0, atol=1e-6)


def test_training(model):
    coord, cell = make_coord((6, 6)).expand(1, -1, 2), make_cell((6, 6)).expand(1, -1, 2)
    model(torch.rand(1, 3, 5, 7), coord, cell).sum().backward()
    frozen = ("sub_mean", "add_mean")
    missing = [key for key, p in model.named_parameters() if p.grad is None and not any(f in key for f in frozen)]
    assert missing == []


def test_half_and_double(model):
    coord, cell = make_coord((6, 6)).expand(1, -1, 2), make_cell((6, 6)).expand(1, -1, 2)
    inp = torch.rand(1, 3, 5, 7)
    expected = model(inp, coord, cell)
    torch.testing.assert_close(model.double()(inp.double(), coord, cell).float(), expected, rtol=0, atol=1e-6)
    low = model.half()(inp.half(), coord, cell)
    assert low.dtype == torch.float16
    torch.testing.assert_close(low.float(), expected, rtol=0, atol=1e-2)


def test_bad_cells(model):
    model.gen_feat(torch.rand(1, 3, 5, 7))
    coord = make_coord((6, 6)).expand(1, -1, 2)
    with pytest.raises(ValueError, match="cell must be a tensor"):
        model.query_rgb(coord)
    with pytest.raises(ValueError, match="cell must have the shape of coord"):
        model.query_rgb(coord, torch.rand(1, 5, 2))

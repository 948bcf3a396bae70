"""Test LIIF's interface: queries, rendering, users' networks, the residual, and its behaviour as a module."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from liif_fast import layers, make_cell, make_coord, models

SWITCHES = [
    {"local_ensemble": e, "feat_unfold": u, "cell_decode": c}
    for e in (True, False)
    for u in (True, False)
    for c in (True, False)
]


def grid(size, batch):
    coord, cell = make_coord(size), make_cell(size)
    return coord.expand(batch, -1, 2), cell.expand(batch, -1, 2)


def image(pred, size):
    return pred.transpose(1, 2).unflatten(2, size)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@models.register("test-tanh")
class TanhNet(nn.Module):
    """Map rows by a network that is no `mlp`."""

    def __init__(self, in_dim: int, out_dim: int = 3):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_dim, 8), nn.Tanh(), nn.Linear(8, out_dim))

    def forward(self, x):
        assert x.ndim == 2
        return self.layers(x)


@pytest.mark.parametrize("switches", SWITCHES)
def test_forward_is_the_plain_formula(plain, tiny_spec, switches):
    theirs = plain.LIIF(**switches)
    model = models.make(tiny_spec(**switches))
    model.encoder = theirs.encoder
    model.imnet.load_state_dict(theirs.imnet.state_dict())
    inp = torch.rand(2, 3, 9, 11)
    coord, cell = grid((27, 33), 2)
    torch.testing.assert_close(model(inp, coord, cell), theirs(inp, coord, cell), rtol=0, atol=2e-6)
    assert torch.equal(model.feat, theirs.feat)


@pytest.mark.parametrize("residual", [None, "bilinear"])
@pytest.mark.parametrize("imnet", ["mlp", "test-tanh", None])
@pytest.mark.parametrize("switches", [SWITCHES[0], SWITCHES[-1]])
def test_render_is_forward_on_the_grid(tiny_spec, residual, imnet, switches):
    imnet_spec = imnet and {"name": imnet, "args": {"out_dim": 3, **({"hidden_list": [16]} if imnet == "mlp" else {})}}
    spec = tiny_spec(imnet_spec=imnet_spec, residual=residual, **switches)
    spec["args"]["encoder_spec"]["args"]["n_feats"] = 3  # without a network the features are the output
    model = models.make(spec)
    inp = torch.rand(2, 3, 7, 5)
    size = (16, 13)
    coord, cell = grid(size, 2)
    expected = image(model(inp, coord, cell), size)
    torch.testing.assert_close(model.render(inp, size), expected, rtol=0, atol=1e-6)
    window = model.render(inp, size, region=(3, 2, 9, 10))
    torch.testing.assert_close(window, expected[:, :, 3:12, 2:12], rtol=0, atol=1e-6)
    other_cell = torch.tensor([[0.3, 0.2], [0.1, 0.4]])
    expected = image(model(inp, coord, other_cell[:, None].expand_as(coord)), size)
    torch.testing.assert_close(model.render(inp, size, cell=other_cell), expected, rtol=0, atol=1e-6)


def test_own_network_in_chunks_and_gradients(tiny_spec, monkeypatch):
    model = models.make(tiny_spec(imnet_spec={"name": "test-tanh", "args": {}}))
    inp = torch.rand(2, 3, 6, 5)
    coord = torch.rand(2, 100, 2) * 2 - 1
    cell = torch.rand(2, 100, 2)
    whole = model(inp, coord, cell)
    monkeypatch.setattr("liif_fast.layers.GATHER_QUERIES", 7)
    with torch.no_grad():
        torch.testing.assert_close(model(inp, coord, cell), whole, rtol=0, atol=1e-6)
    whole.sum().backward()
    assert all(p.grad is not None for p in model.imnet.parameters())
    assert model.encoder.head[0].weight.grad.abs().sum() > 0


def test_own_network_gets_what_an_mlp_gets(tiny_spec):
    class Shifted(layers.MLP):
        def forward(self, x):
            return super().forward(x) + 1

    model = models.make(tiny_spec())
    inp, coord, cell = torch.rand(1, 3, 6, 5), torch.rand(1, 50, 2) * 2 - 1, torch.rand(1, 50, 2)
    fused = model(inp, coord, cell)
    handle = model.imnet.register_forward_hook(lambda module, args, out: out)
    torch.testing.assert_close(model(inp, coord, cell), fused, rtol=0, atol=1e-6)
    handle.remove()
    model.imnet.__class__ = Shifted
    torch.testing.assert_close(model(inp, coord, cell), fused + 1, rtol=0, atol=1e-6)
    assert (model.renders_parts, model.channels_out) == (False, None)
    model.imnet = model.imnet.layers  # a Sequential is the same chain
    assert torch.equal(model(inp, coord, cell), fused)
    assert (model.renders_parts, model.channels_out) == (True, 3)


def test_no_network_reads_the_nearest_feature(tiny_spec):
    model = models.make(tiny_spec(imnet_spec=None))
    inp = torch.rand(2, 3, 6, 5)
    coord = torch.cat((torch.rand(2, 300, 2) * 2.4 - 1.2, make_coord((12, 15)).expand(2, -1, 2)), 1)
    feat = model.gen_feat(inp)
    expected = F.grid_sample(feat, coord.flip(-1)[:, None], mode="nearest", align_corners=False)[:, :, 0].transpose(
        1, 2
    )
    assert torch.equal(model.query_rgb(coord), expected)
    assert (model.query_rgb(torch.full((2, 1, 2), 1.5)) == 0).all()
    feat[1, :, 2, 2] = float("nan")
    model.feat = feat.double()
    assert model.query_rgb(coord)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bilinear_residual(tiny_spec, dtype):
    spec = tiny_spec(residual="bilinear")
    model = models.make(spec).to(dtype)
    bare = models.make(tiny_spec()).to(dtype)
    bare.load_state_dict(model.state_dict())
    inp = torch.rand(2, 3, 6, 5, dtype=dtype)
    size = (17, 9)
    coord, cell = grid(size, 2)
    added = model(inp, coord, cell) - bare(inp, coord, cell)
    expected = F.interpolate(inp, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(image(added, size), expected, rtol=0, atol=1e-5)
    model.gen_feat(inp)
    assert torch.equal(model.query_rgb(coord, cell), model(inp, coord, cell))
    base = model.interpolate_grid(size, (3, 2, 9, 6), None, (6, 5))
    assert torch.equal(base, image(model.interpolate(coord), size)[:, :, 3:12, 2:8])


@pytest.mark.parametrize("imnet", ["mlp", "test-tanh", None])
def test_bad_queries(tiny_spec, monkeypatch, imnet):
    monkeypatch.setattr("liif_fast.layers.GATHER_QUERIES", 2)
    imnet_spec = imnet and {"name": imnet, "args": {"out_dim": 3, **({"hidden_list": [16]} if imnet == "mlp" else {})}}
    model = models.make(tiny_spec(imnet_spec=imnet_spec))
    with torch.no_grad():
        model.gen_feat(torch.rand(1, 3, 4, 4))
        with pytest.raises(TypeError, match="coord must be float32"):
            model.query_rgb(torch.rand(1, 5, 2).half(), torch.rand(1, 5, 2))
        with pytest.raises(ValueError, match="coord must have shape"):
            model.query_rgb(torch.rand(2, 5, 2), torch.rand(2, 5, 2))
        if imnet:
            with pytest.raises(ValueError, match="cell must have the shape of coord"):
                model.query_rgb(torch.rand(1, 5, 2), torch.rand(1, 3, 2))
            with pytest.raises(ValueError, match="cell must be a tensor"):
                model.query_rgb(torch.rand(1, 5, 2))


def test_bad_residual(tiny_spec):
    with pytest.raises(ValueError, match="residual must be None or 'bilinear', got 'bicubic'"):
        models.make(tiny_spec(residual="bicubic"))
    one = {"name": "mlp", "args": {"out_dim": 1, "hidden_list": [8]}}
    model = models.make(tiny_spec(residual="bilinear", imnet_spec=one))
    with pytest.raises(ValueError, match="as many output channels as the input has, 3, got 1"):
        model(torch.rand(1, 3, 4, 4), *grid((4, 4), 1))


def test_query_before_features(tiny_spec):
    model = models.make(tiny_spec())
    with pytest.raises(RuntimeError, match="call gen_feat"):
        model.query_rgb(*grid((4, 4), 1))


def test_bad_regions(tiny_spec):
    model = models.make(tiny_spec(imnet_spec=None))
    for region in ((0, 0, 5), (2, 0, 3, 4), (-1, 0, 2, 2)):
        with pytest.raises(ValueError, match="region must"):
            model.render(torch.rand(1, 3, 3, 3), (4, 4), region=region)


def test_features_are_left_without_a_graph(tiny_spec):
    model = models.make(tiny_spec(residual="bilinear"))
    inp = torch.rand(1, 3, 4, 4, requires_grad=True)
    model(inp * 1, *grid((5, 5), 1)).sum().backward()
    assert not model.feat.requires_grad
    assert not model.inp.requires_grad
    assert inp.grad.abs().sum() > 0
    assert model.gen_feat(inp).requires_grad


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(tiny_spec, clone):
    model = models.make(tiny_spec(residual="bilinear"))
    inp, args = torch.rand(1, 3, 4, 4), grid((5, 5), 1)
    out = model(inp, *args)
    model.gen_feat(inp * 1)  # features with a graph
    twin = clone(model)
    assert twin.feat is None
    assert torch.equal(twin(inp, *args), out)
    assert twin.spec == model.spec
    assert model.feat is not None
    with torch.no_grad():
        twin.imnet.layers[0].weight.zero_()
    assert torch.equal(model(inp, *args), out)


def test_half(tiny_spec):
    model = models.make(tiny_spec(residual="bilinear"))
    inp, args = torch.rand(1, 3, 6, 5), grid((13, 11), 1)
    expected = model(inp, *args)
    low = model.half()(inp.half(), *args)
    assert low.dtype == torch.float16
    torch.testing.assert_close(low.float(), expected, rtol=0, atol=1e-2)
    assert model.render(inp.half(), (13, 11)).dtype == torch.float16


def test_autocast(tiny_spec):
    for imnet in ({"name": "mlp", "args": {"out_dim": 3, "hidden_list": [16]}}, {"name": "test-tanh", "args": {}}):
        model = models.make(tiny_spec(residual="bilinear", imnet_spec=imnet))
        inp, args = torch.rand(1, 3, 6, 5), grid((13, 11), 1)
        expected = model(inp, *args)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(inp, *args)
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, expected, rtol=0, atol=3e-2)


def test_data_parallel(tiny_spec):
    model = models.make(tiny_spec())
    inp, args = torch.rand(2, 3, 6, 5), grid((7, 8), 2)
    assert torch.equal(nn.DataParallel(model)(inp, *args), model(inp, *args))


@pytest.mark.parametrize("residual", [None, "bilinear"])
def test_compile(tiny_spec, residual):
    torch._dynamo.reset()
    model = models.make(tiny_spec(residual=residual))
    inp, args = torch.rand(2, 3, 6, 5), grid((7, 8), 2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(inp, *args), model(inp, *args), rtol=0, atol=1e-6)
    compiled(inp, *args).sum().backward()
    assert model.imnet.layers[0].weight.grad is not None


def test_empty(tiny_spec):
    for imnet in ({"name": "mlp", "args": {"out_dim": 3, "hidden_list": [16]}}, {"name": "test-tanh", "args": {}}):
        model = models.make(tiny_spec(residual="bilinear", imnet_spec=imnet))
        assert model(torch.rand(2, 3, 4, 4), torch.zeros(2, 0, 2), torch.zeros(2, 0, 2)).shape == (2, 0, 3)


def test_spec_rebuilds_the_model(tiny_spec):
    spec = tiny_spec(local_ensemble=False)
    direct = models.LIIF(**spec["args"])
    assert "residual" not in direct.spec["args"]  # the original's constructor must accept it
    assert models.make(spec).spec == spec
    models.make(direct.spec).load_state_dict(direct.state_dict())

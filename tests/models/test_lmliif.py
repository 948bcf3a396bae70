"""Compare LM-LIIF with a plain form of its formula, corner by corner."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from liif_fast import accelerate, functional, load_model, make_cell, make_coord, models, save_model, upscale
from liif_fast.verification import verify

# local_ensemble, feat_unfold, cell_decode, mod_input, mod_scale, mod_shift
SWITCHES = [
    (True, True, True, True, True, True),
    (True, False, True, False, True, True),
    (False, True, False, True, True, False),
    (True, True, False, False, False, True),
]


def build(ensemble=True, unfold=True, cell=True, mod_input=True, mod_scale=True, mod_shift=True, depth=3, width=5):
    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"no_upsampling": True, "n_resblocks": 1, "n_feats": 6}}
    own = {"out_dim": 3, "hidden_dim": width, "hidden_depth": depth, "mod_scale": mod_scale, "mod_shift": mod_shift}
    hypernet = {"name": "mlp", "args": {"out_dim": 1, "hidden_list": [12]}}
    args = {"encoder_spec": encoder, "imnet_spec": {"name": "lmmlp", "args": own}, "hypernet_spec": hypernet}
    args |= {"local_ensemble": ensemble, "feat_unfold": unfold, "cell_decode": cell, "mod_input": mod_input}
    return models.make({"name": "lmliif", "args": args}).eval()


def chain(layers, x):
    for number, layer in enumerate(layers[::2]):
        x = F.linear(F.relu(x) if number else x, layer.weight, layer.bias)
    return x


def plain(model, feat, coord, cell):
    """Compute the formula, with one cell per image."""
    batch, _, height, width = feat.shape
    n = torch.tensor([height, width])
    inputs = F.unfold(feat, 3, padding=1) if model.feat_unfold else feat.flatten(2)
    inputs = inputs.transpose(1, 2)
    if model.cell_decode:
        inputs = torch.cat((inputs, (cell * n)[:, :1].expand(-1, height * width, -1)), -1)
    made = chain(model.hypernet.layers, inputs)
    net = model.imnet
    count = net.hidden_dim * net.hidden_depth
    scales = made[..., :count] if net.mod_scale else torch.zeros(batch, height * width, count)
    made = made[..., count:] if net.mod_scale else made
    shifts = made[..., :count] if net.mod_shift else torch.zeros(batch, height * width, count)
    features = made[..., count * net.mod_shift :] if model.mod_input else feat.flatten(2).mT
    index, rel, weight = functional.corner_plan(coord, (height, width), local_ensemble=model.local_ensemble)
    out = 0
    for corner in range(weight.shape[2]):
        at = (index[:, :, corner, 0] * width + index[:, :, corner, 1]).unsqueeze(-1)
        s, t, z = (each.gather(1, at.expand(-1, -1, each.shape[-1])) for each in (scales, shifts, features))
        x = torch.cat((z, rel[:, :, corner], *([cell * n] if model.cell_decode else [])), -1)
        for layer in range(net.hidden_depth):
            part = slice(layer * net.hidden_dim, (layer + 1) * net.hidden_dim)
            linear = net.layers[2 * layer]
            x = F.relu(F.linear(x, linear.weight, linear.bias) * (s[..., part] + 1) + t[..., part])
        out = out + weight[:, :, corner, None] * F.linear(x, net.layers[-1].weight, net.layers[-1].bias)
    return out


def batch(shape=(7, 9)):
    generator = torch.Generator().manual_seed(1)
    coord = torch.rand(2, 50, 2, generator=generator) * 2.2 - 1.1
    cell = torch.tensor([[0.1, 0.05], [0.04, 0.07]])[:, None].expand(2, 50, 2)
    return torch.rand(2, 3, *shape, generator=generator) * 2 - 1, coord, cell


def close(ours, expected, tolerance=1e-5):
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_output_and_gradients_are_those_of_the_plain_form(switches, backend):
    model, (inp, coord, cell) = build(*switches), batch()
    model.backend = backend
    grad = torch.randn(2, 50, 3)
    used = {key: value for key, value in model.named_parameters() if value.requires_grad}
    out = model(inp, coord, cell)
    expected = plain(model, model.encoder(inp), coord, cell)
    close(out, expected)
    grads = (torch.autograd.grad((each * grad).sum(), list(used.values())) for each in (out, expected))
    for key, ours, wanted in zip(used, *grads, strict=True):
        assert wanted.abs().max() > 0, key
        close(ours, wanted, 1e-4)


@pytest.mark.parametrize("switches", SWITCHES)
def test_a_rendered_image_is_its_queries(switches, monkeypatch):
    monkeypatch.setattr("liif_fast.models.base.STRIP_QUERIES", 300)
    model, inp, size = build(*switches), batch((31, 17))[0], (85, 47)
    coord, cell = make_coord(size).expand(2, -1, -1), make_cell(size).expand(2, -1, -1)
    with torch.no_grad():
        feat = model.gen_feat(inp)
        expected = plain(model, feat, coord, cell).mT.unflatten(2, size)
        close(model.render_rgb(size), expected)
        close(model.render_rgb(size, (50, 7, 8, 9)), expected[:, :, 50:58, 7:16])
        part, place = (11.3, 2.5, 7.25, 9.0), (5, 0, 31, 17)  # of the input's pixels; of its features
        coord = make_coord((20, 30), extent=part, of=(31, 17)).expand(2, -1, -1)
        cell = torch.tensor([2 * 7.25 / 31 / 20, 2 * 9.0 / 17 / 30]).expand(coord.shape)
        over = plain(model, feat, coord, cell).mT.unflatten(2, (20, 30))
        close(model.render_rgb((20, 30), extent=part), over)
        model.feat = feat[:, :, 5:25]
        close(model.render_rgb((20, 30), (3, 4, 10, 9), place=place, extent=part), over[:, :, 3:13, 4:13])
        model.feat = feat[:, :, 10:]
        close(model.render_rgb(size, (50, 0, 35, 47), place=(10, 0, 31, 17)), expected[:, :, 50:])


def test_no_queries_and_bad_ones():
    model, (inp, coord, cell) = build(), batch()
    assert model(inp, coord[:, :0], cell[:, :0]).shape == (2, 0, 3)
    with pytest.raises(ValueError, match="cell must be a tensor"):
        model.query_rgb(coord)


@pytest.mark.parametrize("part", ["imnet", "hypernet"])
def test_a_changed_network_runs_as_it_is(part):
    model, (inp, coord, cell) = build(), batch()
    getattr(model, part).layers[1].register_forward_hook(lambda module, args, out: out)
    close(model(inp, coord, cell), plain(model, model.encoder(inp), coord, cell))
    if part == "imnet":
        assert model.channels_out is None
        with pytest.raises(ValueError, match="place needs an imnet that runs fused"):
            model.render_rgb((9, 9), place=(0, 0, 7, 9))


def test_names_are_those_of_the_authors():
    """Names and shapes are those of edsr-b_lm-liif, after LMF's configuration."""
    args = {"out_dim": 3, "hidden_dim": 16, "hidden_depth": 6, "mod_scale": True, "mod_shift": True}
    spec = {
        "encoder_spec": {"name": "edsr-baseline", "args": {"no_upsampling": True}},
        "imnet_spec": {"name": "lmmlp", "args": args},
        "hypernet_spec": {"name": "mlp", "args": {"out_dim": 208, "hidden_list": [208]}},
        "mod_input": True,
    }
    with torch.device("meta"):
        model = models.make({"name": "lmliif", "args": spec})
    shapes = {key: list(value.shape) for key, value in model.state_dict().items() if "encoder" not in key}
    assert shapes.pop("hypernet.layers.0.weight") == [208, 578]
    assert shapes.pop("hypernet.layers.2.weight") == [208, 208]
    assert [shapes.pop(f"hypernet.layers.{i}.bias") for i in (0, 2)] == [[208]] * 2
    ins = {f"imnet.layers.{2 * i}.weight": [16, 16 if i else 20] for i in range(6)}
    assert shapes == ins | {f"imnet.layers.{2 * i}.bias": [16] for i in range(6)} | {
        "imnet.layers.12.weight": [3, 16],
        "imnet.layers.12.bias": [3],
    }


def test_files_and_commands(tmp_path):
    model, queries = build(), batch()
    renamed = {"name": "lm-liif", "args": model.spec["args"], "sd": model.state_dict()}
    with torch.no_grad():
        expected = model(*queries)
        assert torch.equal(load_model(renamed)(*queries), expected)
        for name in ("model.safetensors", "model.pth"):
            save_model(model, tmp_path / name)
            assert torch.equal(load_model(tmp_path / name)(*queries), expected)
    described = {**model.spec, "args": model.spec["args"] | {"cmsr_spec": {"log": False}}, "sd": model.state_dict()}
    with pytest.raises(models.ModelFileError, match="cmsr_spec"):
        load_model(described)
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 36, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    report = verify(model, tmp_path / "photo.png", 4, turns=1, names=("torch", "cpu"))
    assert report.disagreements() == []
    size, clipped = (216, 240), [2 * 1.5 / 240, 2 * 1.5 / 216]  # x6, with the cell of x4
    inp = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        wanted = model.render(inp, size[::-1], cell=clipped)[0].permute(1, 2, 0) * 127.5 + 127.5
    assert (upscale(pixels, model, size=size) - wanted.clamp(0, 255).numpy()).max() <= 0.51


def test_bad_arguments():
    with pytest.raises(ValueError, match="hidden_depth must be at least 1"):
        build(depth=0)
    weights, biases = [torch.zeros(5, 8), torch.zeros(3, 5)], [torch.zeros(5), torch.zeros(3)]
    coord = torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match=r"2 L h \+ C = 14 channels, L = 1, h = 5, C = 4, got 13"):
        functional.modulated_decode(torch.zeros(1, 13, 2, 2), coord, coord, weights, biases)
    uneven = [torch.zeros(5, 8), torch.zeros(4, 5), torch.zeros(3, 4)], [torch.zeros(n) for n in (5, 4, 3)]
    with pytest.raises(ValueError, match="hidden layers of one width"):
        functional.modulated_decode(torch.zeros(1, 13, 2, 2), coord, coord, *uneven)


class PlainLMLIIF(nn.Module):
    """Have the attributes of the authors' class, and compute the formula."""

    def __init__(self):
        super().__init__()
        ours = build()
        self.encoder, self.hypernet, self.imnet = ours.encoder, ours.hypernet, ours.imnet
        self.local_ensemble = self.feat_unfold = self.cell_decode = self.mod_input = True
        self.mod_dim = 2 * 3 * 5

    def gen_feats(self, inp):
        self.feat = self.encoder(inp)
        return self.feat, F.unfold(self.feat, 3, padding=1).unflatten(2, self.feat.shape[2:])

    def gen_modulations(self, feat, cell=None):
        n = torch.tensor(feat.shape[2:])
        x = torch.cat((feat.flatten(2).mT, cell[:, : n.prod()] * n), -1)
        return chain(self.hypernet.layers, x).mT.unflatten(2, tuple(n.tolist()))

    def query_rgb(self, feat, mod, coord, cell=None):
        return plain(self, self.feat, coord, cell)

    query_rgb_fast = query_rgb

    def forward(self, inp, coord, cell):
        _, rich = self.gen_feats(inp)
        mod = self.gen_modulations(rich, cell)
        return (self.query_rgb if self.training else self.query_rgb_fast)(mod[:, self.mod_dim :], mod, coord, cell)


def test_accelerate(monkeypatch):
    module, size, inp = PlainLMLIIF(), (21, 27), batch()[0]
    coord, cell = make_coord(size).expand(2, -1, -1), make_cell(size).expand(2, -1, -1)
    expected = module(inp, coord, cell)
    assert accelerate(module) is module
    for training in (True, False):
        module.train(training)
        close(module(inp, coord, cell), expected)
    close(module.render(inp, size), expected.mT.unflatten(2, size))
    module.imnet.layers[0].register_forward_hook(lambda *args: None)
    with monkeypatch.context() as patch:
        patch.delattr("liif_fast.functional.modulated_decode")
        close(module(inp, coord, cell), expected)

    class Different(PlainLMLIIF):
        def query_rgb_fast(self, feat, mod, coord, cell=None):
            return super().query_rgb(feat, mod, coord, cell) * 1.01

    with pytest.raises(ValueError, match="forward does not compute LM-LIIF"):
        accelerate(Different())

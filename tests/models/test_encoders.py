"""Every encoder has the original's tensors (names, shapes, order), and its radius bounds the pixels that it reads."""

import pytest
import torch

from liif_fast import models


def conv(name, out_channels, in_channels, k=3):
    return {f"{name}.weight": [out_channels, in_channels, k, k], f"{name}.bias": [out_channels]}


def mean_shifts():
    return conv("sub_mean", 3, 3, 1) | conv("add_mean", 3, 3, 1)


def tail(n, convs, factor):
    shapes = {}
    for i in range(convs):
        shapes |= conv(f"tail.0.{2 * i}", n * factor, n)
    return shapes | conv("tail.1", 3, n)


def edsr(blocks, n, upsampled=None):
    shapes = mean_shifts() | conv("head.0", n, 3)
    for i in range(blocks):
        shapes |= conv(f"body.{i}.body.0", n, n) | conv(f"body.{i}.body.2", n, n)
    shapes |= conv(f"body.{blocks}", n, n)
    return shapes | (tail(n, *upsampled) if upsampled else {})


def rcan(groups, blocks, n, reduction, upsampled=None):
    shapes = mean_shifts() | conv("head.0", n, 3)
    for g in range(groups):
        for b in range(blocks):
            name = f"body.{g}.body.{b}.body"
            shapes |= conv(f"{name}.0", n, n) | conv(f"{name}.2", n, n)
            shapes |= conv(f"{name}.3.conv_du.0", n // reduction, n, 1)
            shapes |= conv(f"{name}.3.conv_du.2", n, n // reduction, 1)
        shapes |= conv(f"body.{g}.body.{blocks}", n, n)
    shapes |= conv(f"body.{groups}", n, n)
    return shapes | (tail(n, *upsampled) if upsampled else {})


def rdn(blocks, layers, growth, n=64, upsampled=()):
    shapes = conv("SFENet1", n, 3) | conv("SFENet2", n, n)
    for i in range(blocks):
        for j in range(layers):
            shapes |= conv(f"RDBs.{i}.convs.{j}.conv.0", growth, n + j * growth)
        shapes |= conv(f"RDBs.{i}.LFF", n, n + layers * growth, 1)
    shapes |= conv("GFF.0", n, blocks * n, 1) | conv("GFF.1", n, n)
    for i, step in enumerate(upsampled):
        shapes |= conv(f"UPNet.{2 * i}", growth * step**2, growth if i else n)
    return shapes | (conv(f"UPNet.{2 * len(upsampled)}", 3, growth) if upsampled else {})


PLAIN = {"no_upsampling": True}
CASES = [
    ("edsr-baseline", PLAIN, edsr(16, 64), 64),
    ("edsr-baseline", {}, edsr(16, 64, (1, 4)), 3),
    ("edsr-baseline", {"scale": 3}, edsr(16, 64, (1, 9)), 3),
    ("edsr-baseline", {"scale": 8, "n_feats": 8, "n_resblocks": 2}, edsr(2, 8, (3, 4)), 3),
    ("edsr", PLAIN, edsr(32, 256), 256),
    ("edsr", {"scale": 4}, edsr(32, 256, (2, 4)), 3),
    ("rcan", PLAIN, rcan(10, 20, 64, 16), 64),
    ("rcan", {"scale": 4, "n_resgroups": 2}, rcan(2, 20, 64, 16, (2, 4)), 3),
    ("rcan", {"scale": 3, "n_resblocks": 2, "reduction": 8}, rcan(10, 2, 64, 8, (1, 9)), 3),
    ("rdn", PLAIN, rdn(16, 8, 64), 64),
    ("rdn", {**PLAIN, "RDNconfig": "A", "G0": 32}, rdn(20, 6, 32, 32), 32),
    ("rdn", {"scale": 2}, rdn(16, 8, 64, upsampled=(2,)), 3),
    ("rdn", {"scale": 3}, rdn(16, 8, 64, upsampled=(3,)), 3),
    ("rdn", {"scale": 4, "RDNconfig": "A"}, rdn(20, 6, 32, upsampled=(2, 2)), 3),
]


@pytest.mark.parametrize(("name", "args", "shapes", "out_dim"), CASES)
def test_names_shapes_and_order(name, args, shapes, out_dim):
    with torch.device("meta"):
        encoder = models.make({"name": name, "args": args})
    assert [(key, list(value.shape)) for key, value in encoder.state_dict().items()] == list(shapes.items())
    assert [key for key, _ in encoder.named_parameters()] == list(shapes)  # the optimizer's state relies on this order
    assert encoder.out_dim == out_dim


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [("edsr-baseline", 82, 1_567_323), ("rdn", None, 22_320_835), ("rcan", None, 15_642_107)],
)
def test_size_of_liif(name, tensors, parameters):
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [256] * 4}}
    with torch.device("meta"):
        model = models.make(
            {"name": "liif", "args": {"encoder_spec": {"name": name, "args": PLAIN}, "imnet_spec": imnet}}
        )
    assert sum(p.numel() for p in model.parameters()) == parameters
    if tensors is not None:
        assert len(model.state_dict()) == tensors
    assert [key for key in model.state_dict() if key.startswith("imnet")] == [
        f"imnet.layers.{i}.{part}" for i in (0, 2, 4, 6, 8) for part in ("weight", "bias")
    ]
    assert model.imnet.layers[0].in_features == 580


@pytest.mark.parametrize("name", ["edsr-baseline", "rcan"])
def test_mean_tensors_are_frozen(name):
    encoder = models.make({"name": name, "args": {**PLAIN, "n_resblocks": 1, "rgb_range": 255}})
    frozen = [key for key, p in encoder.named_parameters() if not p.requires_grad]
    assert frozen == ["sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias"]
    torch.testing.assert_close(encoder.add_mean.bias, 255 * torch.tensor([0.4488, 0.4371, 0.4040]))
    assert torch.equal(encoder.sub_mean.bias, -encoder.add_mean.bias)
    assert torch.equal(encoder.sub_mean.weight, torch.eye(3)[:, :, None, None])


@pytest.mark.parametrize(
    ("name", "args", "radius"),
    [
        ("edsr-baseline", {}, 34),
        ("edsr", {}, 66),
        ("rdn", {}, 131),
        ("rdn", {"RDNconfig": "A"}, 123),
        ("rdn", {"RDNkSize": 5}, 262),
        ("rcan", {}, None),
    ],
)
def test_receptive_radius(name, args, radius):
    with torch.device("meta"):
        assert models.make({"name": name, "args": {**PLAIN, **args}}).receptive_radius == radius


def test_receptive_radius_is_what_an_output_reads():
    encoder = models.make({"name": "edsr-baseline", "args": {**PLAIN, "n_resblocks": 2, "n_feats": 4}}).double()
    for conv_layer in (m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)):
        torch.nn.init.uniform_(conv_layer.weight, 0.1, 1)  # with positive weights every path reaches the output
    inp = torch.rand(1, 3, 33, 33, dtype=torch.float64, requires_grad=True)
    encoder(inp)[0, :, 16, 16].sum().backward()
    rows = inp.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert (rows.min().item(), rows.max().item()) == (16 - encoder.receptive_radius, 16 + encoder.receptive_radius)


@pytest.mark.parametrize(
    ("name", "args", "factor"),
    [
        ("edsr-baseline", {"n_resblocks": 1, "n_feats": 4, "scale": 4}, 4),
        ("edsr", {"n_resblocks": 1, "n_feats": 4, "scale": 3, "no_upsampling": False}, 3),
        ("rcan", {"n_resgroups": 1, "n_resblocks": 2, "n_feats": 16, "scale": 2}, 2),
        ("rdn", {"G0": 4, "scale": 4}, 4),
        ("rdn", {"G0": 4, "RDNconfig": "A", "no_upsampling": True}, 1),
    ],
)
def test_output_size(name, args, factor):
    encoder = models.make({"name": name, "args": args})
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 5, 7)).shape == (1, encoder.out_dim, 5 * factor, 7 * factor)


def test_edsr_is_its_formula():
    encoder = models.make({"name": "edsr", "args": {**PLAIN, "n_resblocks": 2, "n_feats": 4}})
    inp = torch.rand(2, 3, 6, 5)
    x = head = encoder.head(inp)
    for block in encoder.body[:-1]:
        x = x + 0.1 * block.body(x)
    torch.testing.assert_close(encoder(inp), encoder.body[-1](x) + head)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "edsr-baselin"}, r"unknown name 'edsr-baselin' \(known: edsr"),
        ({"name": 3}, "unknown name 3"),
        ({"name": "rdn", "args": {"n_feats": 3}}, r"unknown key 'n_feats' \(rdn takes G0, RDNkSize"),
        ({"name": "rdn", "args": {"RDNconfig": "C"}}, "RDNconfig must be one of A, B, got 'C'"),
        ({"name": "edsr", "args": {"scale": 6}}, "scale must be 3 or a power of two, got 6"),
        ({"name": "liif"}, r"'encoder_spec' is missing \(liif needs it"),
    ],
)
def test_bad_specs(spec, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        models.make(spec)


@pytest.mark.parametrize(
    "spec", ["edsr", {"name": "edsr", "args": [1]}, {"name": "edsr", "args": {"n_feats": "64"}},
             {"name": "edsr", "args": {"no_upsampling": 1}}]
)  # fmt: skip
def test_specs_of_the_wrong_type(spec):
    with pytest.raises(TypeError):
        models.make(spec)


def test_a_module_is_no_spec():
    with pytest.raises(TypeError, match="got Conv2d; register your own class"):
        models.LIIF(torch.nn.Conv2d(3, 4, 1))


def test_args_override_and_extend():
    spec = {"name": "edsr-baseline", "args": {"n_resblocks": 5, "no_upsampling": True}}
    encoder = models.make(spec, args={"n_resblocks": 1, "n_feats": 4})
    assert len(encoder.body) == 2
    assert encoder.out_dim == 4
    assert spec["args"] == {"n_resblocks": 5, "no_upsampling": True}


def test_taken_name_is_refused():
    with pytest.raises(ValueError, match="'rdn' is taken"):
        models.register("rdn")(torch.nn.Identity)

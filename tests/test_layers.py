"""Test the decoder as a module: names, shapes, copying, moving, replicating and compiling."""

import copy
import io
import pickle
import textwrap

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import liif_fast
from liif_fast.coord import make_cell, make_coord
from liif_fast.functional import gather_corners, liif_decode
from liif_fast.layers import MLP, LIIFDecoder, linear_chain


@pytest.fixture
def queries():
    torch.manual_seed(0)
    return torch.randn(2, 4, 5, 6), torch.rand(2, 9, 2) * 2 - 1, torch.rand(2, 9, 2)


@pytest.fixture
def decoder():
    torch.manual_seed(1)
    return LIIFDecoder(4, 3, (8, 8), backend="torch")


def test_default_is_the_papers():
    shapes = {name: tuple(tensor.shape) for name, tensor in liif_fast.LIIFDecoder().state_dict().items()}
    expected = {"layers.0.weight": (256, 580), "layers.0.bias": (256,)}
    for layer in (2, 4, 6):
        expected |= {f"layers.{layer}.weight": (256, 256), f"layers.{layer}.bias": (256,)}
    assert shapes == expected | {"layers.8.weight": (3, 256), "layers.8.bias": (3,)}


@pytest.mark.parametrize(("switches", "width"), [({"cell_decode": False}, 578), ({"feat_unfold": False}, 68)])
def test_input_width_follows_the_switches(switches, width):
    assert LIIFDecoder(64, **switches).layers[0].in_features == width


def test_mlp_has_the_decoders_names_and_values(decoder):
    mlp = MLP(40, 3, [8, 8])
    mlp.load_state_dict(decoder.state_dict())
    x = torch.randn(2, 3, 40)
    torch.testing.assert_close(mlp(x), decoder.layers(x))


@pytest.mark.parametrize("widths", [256, 25.6, None, "256", [256.0], [[256]], [0], [256, -1], [True]])
def test_a_wrong_hidden_list_is_named(widths):
    for build in (lambda: MLP(4, 3, widths), lambda: LIIFDecoder(4, hidden_list=widths)):
        with pytest.raises(
            (TypeError, ValueError), match=r"hidden_list must (be a list of positive|hold) integers, got "
        ):
            build()
    assert MLP(4, 3, np.array([8, 9])).layers[2].out_features == 9


def test_forward_and_render_are_the_functions(decoder, queries):
    feat, coord, cell = queries
    out = decoder(feat, coord, cell)
    assert torch.equal(out, liif_decode(feat, coord, cell, *linear_chain(decoder.layers), backend="torch"))
    full = decoder.render(feat, (7, 8))
    assert full.shape == (2, 3, 7, 8)
    torch.testing.assert_close(decoder.render(feat, (7, 8), (1, 2, 3, 4)), full[:, :, 1:4, 2:6], rtol=0, atol=1e-6)
    assert not torch.allclose(decoder.render(feat, (7, 8), cell=(0.9, 0.9)), full)


def test_recompute_reaches_the_function(decoder, queries, monkeypatch):
    asked = []
    for name in ("liif_decode", "liif_render"):
        function = getattr(liif_fast.functional, name)
        monkeypatch.setattr(
            liif_fast.functional, name, lambda *args, f=function, **o: asked.append(o["recompute"]) or f(*args, **o)
        )
    decoder.recompute = True
    kept = LIIFDecoder(4, 3, (8, 8), recompute=False)
    for each in (decoder, kept, LIIFDecoder(4)):
        each(*queries)
        each.render(queries[0], (3, 4))
    assert asked == [True, True, False, False, None, None]


def test_the_network_of_a_whole_liif_is_loaded(queries):
    """Load `imnet.*` of the original's file, also into a decoder inside a module, but no other prefix."""
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8, 8]}}
    model = liif_fast.LIIF(encoder, imnet)
    whole = model.state_dict()
    decoder = LIIFDecoder(4, 3, (8, 8))
    decoder.load_state_dict(whole)
    assert "imnet.layers.0.weight" in whole
    model.feat, coord, cell = queries
    assert torch.equal(decoder(*queries), model.query_rgb(coord, cell))
    outer = torch.nn.ModuleDict({"imnet": LIIFDecoder(4, 3, (8, 8)), "other": LIIFDecoder(4, 3, (8, 8))})
    inner = {f"other.{key}": value for key, value in whole.items()}
    outer.load_state_dict({**inner, **{f"imnet.{key}": value for key, value in decoder.state_dict().items()}})
    assert torch.equal(outer["other"](*queries), decoder(*queries))
    assert torch.equal(outer["imnet"](*queries), decoder(*queries))
    with pytest.raises(RuntimeError, match="size mismatch for layers"):
        LIIFDecoder(5, 3, (8, 8)).load_state_dict(whole)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        decoder.load_state_dict({**decoder.state_dict(), "encoder.weight": torch.zeros(1)})


def test_the_example_of_the_docstring_trains():
    text = LIIFDecoder.__doc__.partition("like any module:\n")[2]
    example = textwrap.dedent(text.partition("\n\n    `torch")[0])
    torch.manual_seed(0)
    encoder = torch.nn.Conv2d(3, 64, 3, padding=1)
    grid = [make((5, 6))[None] for make in (make_coord, make_cell)]
    batches = [(torch.rand(1, 3, 3, 4), *grid, torch.rand(1, 30, 3))] * 2
    before = encoder.weight.detach().clone()
    exec(example, {"torch": torch, "LIIFDecoder": LIIFDecoder, "encoder": encoder, "batches": batches})
    assert not torch.equal(encoder.weight, before)


def test_switches_reach_the_function(queries):
    feat, coord, _ = queries
    decoder = LIIFDecoder(4, 3, (), local_ensemble=False, feat_unfold=False, cell_decode=False, backend="reference")
    assert decoder(feat, coord).shape == (2, 9, 3)
    assert "local_ensemble=False, feat_unfold=False, cell_decode=False, backend='reference'" in repr(decoder)


def test_copies_are_independent_and_equal(decoder, queries):
    expected = decoder(*queries)
    stream = io.BytesIO()
    torch.save(decoder, stream)
    stream.seek(0)
    copies = [copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder)), torch.load(stream, weights_only=False)]
    with torch.no_grad():
        decoder.layers[0].weight.zero_()
    for each in copies:
        assert torch.equal(each(*queries), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(decoder, queries, dtype):
    feat, coord, cell = queries
    expected = decoder(*queries)
    out = copy.deepcopy(decoder).to(dtype)(feat.to(dtype), coord, cell)
    assert out.dtype == dtype
    # three layers, each rounded once, of values of order 1; float64 is compared with a float32 result
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=8 * max(torch.finfo(dtype).eps, 1e-7))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_to_another_device(decoder, queries, backend):
    decoder.backend = backend
    feat, coord, cell = (tensor.to("meta") for tensor in queries)
    out = decoder.to("meta")(feat, coord, cell)
    assert out.device.type == "meta"
    assert out.shape == (2, 9, 3)


def test_replicas_have_no_parameters_but_decode(decoder, queries):
    """DataParallel's replicas hold plain tensors instead of parameters."""
    replica = decoder._replicate_for_data_parallel()
    replica.layers = decoder.layers._replicate_for_data_parallel()
    for name, layer in decoder.layers.named_children():
        part = layer._replicate_for_data_parallel()
        for key, parameter in layer.named_parameters():
            setattr(part, key, parameter.detach().clone())
        replica.layers._modules[name] = part
    assert not list(replica.parameters())
    assert torch.equal(replica(*queries), decoder(*queries))
    assert torch.equal(torch.nn.DataParallel(decoder)(*queries), decoder(*queries))


def by_hand(decoder, feat, coord, cell):
    """Compute the decoder's formula by calling its layers."""
    x, weight = gather_corners(feat, coord, cell, backend="reference")
    return (decoder.layers(x) * weight[..., None]).sum(2)


def check_by_hand(decoder, feat, coord, cell):
    torch.testing.assert_close(decoder(feat, coord, cell), by_hand(decoder, feat, coord, cell))
    size = (7, 8)
    coord, cell = (make(size).expand(2, -1, 2) for make in (make_coord, make_cell))
    image = by_hand(decoder, feat, coord, cell).transpose(1, 2).unflatten(2, size)
    torch.testing.assert_close(decoder.render(feat, size), image)
    torch.testing.assert_close(decoder.render(feat, size, (1, 2, 3, 4)), image[:, :, 1:4, 2:6])
    x = torch.randn(5, 40)
    mlp = MLP(40, 3, (8, 8))
    mlp.layers = decoder.layers
    torch.testing.assert_close(mlp(x), decoder.layers(x))


def test_other_layers_run_as_they_are(decoder, queries, monkeypatch):
    fused = decoder(*queries)
    decoder.layers[1] = torch.nn.GELU()
    check_by_hand(decoder, *queries)
    assert not torch.allclose(decoder(*queries), fused)
    monkeypatch.setattr("liif_fast.layers.GATHER_QUERIES", 4)
    with torch.no_grad():
        check_by_hand(decoder, *queries)
    decoder.layers[1] = torch.nn.ReLU()
    assert torch.equal(decoder(*queries), fused)
    decoder.layers[2].bias = None
    check_by_hand(decoder, *queries)
    decoder.layers = decoder.layers[:2].append(torch.nn.Linear(8, 3))
    assert linear_chain(decoder.layers) is not None
    check_by_hand(decoder, *queries)


def test_hooks_are_called(decoder, queries):
    fused, calls = decoder(*queries), []
    handle = decoder.layers[2].register_forward_hook(lambda layer, x, out: calls.append(out.shape[-1]))
    torch.testing.assert_close(decoder(*queries), fused)
    assert calls == [8]
    decoder.render(queries[0], (7, 8))
    assert calls == [8, 8]
    handle.remove()
    handle = decoder.layers[2].register_full_backward_hook(lambda layer, x, out: calls.append(0))
    decoder(*queries).sum().backward()
    assert calls == [8, 8, 0]
    handle.remove()
    decoder.layers[4].forward = torch.zeros_like  # as tools that move weights do
    assert torch.equal(decoder(*queries), torch.zeros(2, 9, 8))


def test_global_hooks_see_one_module(decoder, queries):
    """PyTorch's counters set them, and must count what runs without them."""
    fused, seen = decoder(*queries), []
    handle = register_module_forward_hook(lambda module, x, out: seen.append(module))
    try:
        assert torch.equal(decoder(*queries), fused)
        MLP(4, 3, [8])(torch.ones(2, 4))
    finally:
        handle.remove()
    assert [type(module) for module in seen] == [LIIFDecoder, MLP]


@pytest.mark.parametrize("kind", ["hook", "parametrization"])
def test_changing_weights_are_read_anew(decoder, queries, kind):
    """Pruning makes the weight by a hook at every call, weight_norm by a parametrization."""
    if kind == "hook":
        prune.l1_unstructured(decoder.layers[2], "weight", 0.5)
    else:
        weight_norm(decoder.layers[2])
    optimizer = torch.optim.SGD(decoder.parameters(), 0.1)
    for _ in range(2):
        check_by_hand(decoder, *queries)
        optimizer.zero_grad()
        before = decoder(*queries)
        before.square().sum().backward()
        optimizer.step()
        assert not torch.equal(decoder(*queries), before)
    if kind == "hook":
        prune.remove(decoder.layers[2], "weight")
        assert linear_chain(decoder.layers) is not None
        check_by_hand(decoder, *queries)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_compiles_whole(queries, backend):
    decoder = LIIFDecoder(4, 3, (8,), backend=backend)
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*queries), decoder(*queries), rtol=0, atol=1e-6)
    render = torch.compile(decoder.render, fullgraph=True, backend="aot_eager")
    for size, region in (((7, 8), None), ((11, 9), None), ((11, 9), (1, 2, 3, 4))):
        torch.testing.assert_close(
            render(queries[0], size, region), decoder.render(queries[0], size, region), rtol=0, atol=1e-6
        )

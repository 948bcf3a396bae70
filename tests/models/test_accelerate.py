"""`accelerate` puts our kernels under a module, or refuses and leaves it unchanged."""

import copy
import pickle

import pytest
import torch
from torch import nn

from liif_fast import accelerate, make_cell, make_coord, models

SWITCHES = [
    {"local_ensemble": e, "feat_unfold": u, "cell_decode": c}
    for e in (True, False)
    for u in (True, False)
    for c in (True, False)
]


def query(size=(27, 33), batch=2):
    return make_coord(size).expand(batch, -1, 2), make_cell(size).expand(batch, -1, 2)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def check_accelerated(module):
    """Compare an accelerated module with its twin: outputs, gradients, parameters, a render, and a pickled copy."""
    twin, kind, parameters = copy.deepcopy(module), type(module), dict(module.named_parameters())
    assert accelerate(module) is module
    assert isinstance(module, kind)
    inp = torch.rand(2, 3, 9, 11)
    out, expected = module(inp, *query()), twin(inp, *query())
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)
    out.square().mean().backward()
    expected.square().mean().backward()
    for name, parameter in twin.named_parameters():
        assert parameters[name] is dict(module.named_parameters())[name]
        torch.testing.assert_close(parameters[name].grad, parameter.grad, rtol=0, atol=1e-6)
    assert list(module.state_dict()) == list(twin.state_dict())
    rendered = module.render(inp, (27, 33)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(rendered, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(inp, *query()), out)


@pytest.mark.parametrize("switches", SWITCHES)
def test_same_outputs_and_gradients(plain, switches):
    check_accelerated(plain.LIIF(**switches))


def test_metasr(plain):
    check_accelerated(plain.MetaSR())


def test_a_metasr_that_computes_something_else_is_refused(plain):
    class Different(plain.MetaSR):
        def query_rgb(self, coord, cell=None):
            return super().query_rgb(coord + 0.1, cell)

    module = Different()
    with pytest.raises(ValueError, match="does not compute MetaSR"):
        accelerate(module)
    assert type(module) is Different


def test_our_kernels_run(plain, monkeypatch):
    module = accelerate(plain.LIIF())
    monkeypatch.setattr("liif_fast.functional.liif_decode", lambda *args, **kwargs: "ours")
    assert module(torch.rand(2, 3, 9, 11), *query()) == "ours"
    module.imnet.register_forward_hook(lambda *args: None)  # a hook wants the network called
    assert module(torch.rand(2, 3, 9, 11), *query()) != "ours"


def test_state_is_left_alone(plain):
    module = plain.LIIF()
    module.train()
    module.encoder.eval()
    module.feat = "untouched"
    before = torch.random.get_rng_state()
    accelerate(module)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (module.training, module.encoder.training, module.imnet.training) == (True, False, True)
    assert module.feat == "untouched"
    fresh = accelerate(plain.LIIF())
    assert not hasattr(fresh, "feat")


@pytest.mark.parametrize("differ", ["shift", "network", "weights", "forward"])
def test_a_module_that_computes_something_else_is_refused(plain, differ):
    class Different(plain.LIIF):
        shift = 0.0 if differ == "shift" else 1e-6

        def query_rgb(self, coord, cell=None):
            out = super().query_rgb(coord, cell)
            return out + coord.sum(-1, keepdim=True) * 1e-2 if differ == "weights" else out

    class OtherMLP(plain.MLP):
        def forward(self, x):
            return super().forward(x).tanh()

    module = Different()
    if differ == "network":
        module.imnet.__class__ = OtherMLP
    if differ == "forward":  # it does not use query_rgb, so our output never appears
        calls = iter(range(9))
        module.encoder.register_forward_hook(lambda m, a, out: out + next(calls))
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="does not compute LIIF"):
        accelerate(module)
    assert type(module) is Different
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not hasattr(module, "feat")
    assert module.training


def test_a_module_that_does_not_run_is_refused(plain):
    class NeedsGPU(plain.LIIF):
        def query_rgb(self, coord, cell=None):
            raise AssertionError("Torch not compiled with CUDA enabled")

    module = NeedsGPU()
    with pytest.raises(ValueError, match=r"does not run here, .* CUDA enabled"):
        accelerate(module)
    assert type(module) is NeedsGPU
    assert not hasattr(module, "feat")


def test_other_modules_are_refused(plain):
    with pytest.raises(TypeError, match="has no encoder, imnet, gen_feat"):
        accelerate(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="must be an instance"):
        accelerate("liif")
    module = plain.LIIF()
    module.imnet.layers[1] = nn.GELU()
    with pytest.raises(TypeError, match=r"module\.imnet must have 'layers'"):
        accelerate(module)
    with pytest.raises(TypeError, match="float32 or float64"):
        accelerate(plain.LIIF().half())


def test_our_own_and_accelerated_models_pass_through(plain, tiny_spec):
    model = models.make(tiny_spec())
    assert accelerate(model) is model
    module = accelerate(plain.LIIF())
    kind = type(module)
    assert type(accelerate(module)) is kind


def test_double(plain):
    module = plain.LIIF().double()
    twin = copy.deepcopy(module)
    inp = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(accelerate(module)(inp, *query()), twin(inp, *query()), rtol=0, atol=1e-6)


def test_copies_pickles_and_half(plain, tiny_spec):
    module = accelerate(plain.LIIF())
    inp = torch.rand(2, 3, 9, 11)
    expected = module(inp, *query())
    twin = copy.deepcopy(module)
    assert type(twin) is type(module)
    assert torch.equal(twin(inp, *query()), expected)
    assert torch.equal(nn.DataParallel(module)(inp, *query()), expected)
    low = twin.half()(inp.half(), *query())
    torch.testing.assert_close(low.float(), expected, rtol=0, atol=1e-2)
    assert twin.imnet.layers[0].weight is not module.imnet.layers[0].weight


def test_pickle(plain):
    globals()["Pickled"] = type("Pickled", (plain.LIIF,), {"__module__": __name__})
    module = accelerate(globals()["Pickled"]())
    function, args, state = module.__reduce__()
    again = function(*args)
    again.__setstate__(state)
    inp = torch.rand(2, 3, 9, 11)
    assert type(again) is type(module)
    assert torch.equal(again(inp, *query()), module(inp, *query()))
    assert pickle.dumps(args) is not None


def test_a_wrapped_module_says_what_to_pass(plain):
    with pytest.raises(TypeError, match=r"is a DataParallel: pass its \.module"):
        accelerate(nn.DataParallel(plain.LIIF()))

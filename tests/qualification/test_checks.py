"""Each check finds its fault, and finds none in a correct backend, here `torch`."""

import itertools
import types

import pytest
import torch

from liif_fast import backends
from liif_fast.backends import verdict
from liif_fast.qualification import checks, problems, speed
from liif_fast.qualification.checks import Wrong
from liif_fast.qualification.problems import NETWORKS, OPS, Unit

CPU = torch.device("cpu")
SMALL = NETWORKS["small"][0]


@pytest.fixture
def spoil(monkeypatch):
    """Return spoil(op, change), which passes backend torch's results of op through change(out, arguments)."""

    def use(op, change):
        real = backends._backends["torch"]

        def spoiled(*arguments, **options):
            out = getattr(real, op)(*arguments, **options)
            return change(out, arguments)

        monkeypatch.setitem(backends._backends, "torch", types.SimpleNamespace(**{**vars(real), op: spoiled}))

    return use


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("op", dict.fromkeys((*OPS, *verdict.AMX_OPS)))
def test_one_that_is_right_passes(op, training):
    steps = []
    unit = Unit("torch", op, "float32", training)
    checks.examine(unit, CPU, NETWORKS["small"], 1, steps.append)
    assert steps[0] == "values, 1 x 20" and steps[-1] == "values, 2 x 33" and len(steps) == len(checks.CHECKS) + 1
    if training and op != "gather_corners":
        checks.far_activations(unit, CPU, SMALL, 1, 9)
    if not training and op in ("decode", "render"):
        checks.far_latents(unit, CPU, SMALL, 1, 9)


def later(factor):
    """Change the result with every call."""
    count = itertools.count()
    return lambda out, arguments: out * (1 + factor * next(count))


def spread(out, arguments):
    return torch.full_like(out, torch.nan) if out.isnan().any() else out


def writes(out, arguments):
    arguments[2].fill_(0.5)
    return out


def few(out, arguments):
    return out if arguments[1].shape[1] > 4 else out + 1e-3


def steeper(out, arguments):
    if out.requires_grad:
        out.register_hook(lambda grad: grad * 1.001)
    return out


def kept(out, arguments):
    if out.requires_grad and arguments[-1] is False:
        out.register_hook(lambda grad: grad * 1.2)
    return out


def leans(out, arguments):
    """Add 0, but change the gradient of the blended values."""
    total = arguments[1].sum() * 0.01
    return out[0] + (total - total.detach()), out[1]


def shares(out, arguments):
    return out[0], torch.nextafter(out[1], out[1] + 1)


FAULTS = {
    "error": (checks.values, "decode", False, lambda out, _: out * 1.0001, "output: error"),
    "NaN": (checks.values, "decode", False, lambda out, _: out + torch.nan, "output: error nan"),
    "dtype": (checks.values, "decode", False, lambda out, _: out.double(), "output: torch.float64"),
    "shape": (checks.values, "fused_mlp", False, lambda out, _: out[:, 1:], "output: shape"),
    "gradient": (checks.values, "decode", True, steeper, "gradient of feat: error"),
    "plan": (checks.plan, "gather_corners", False, shares, "a map of 1x1"),
    "integers": (checks.integers, "fused_mlp", False, lambda out, _: out + 0.25, "small integers"),
    "integers of waves": (checks.integers, "fourier_decode", False, lambda out, _: out + 1e-3, "small integers"),
    "modulated": (checks.values, "modulated_decode", False, lambda out, _: out * 1.0001, "output: error"),
    "gradient of modulated": (checks.values, "modulated_decode", True, steeper, "gradient of feat: error"),
    "integers of modulated": (checks.integers, "modulated_decode", False, lambda out, _: out + 0.25, "integers"),
    "weight": (checks.values, "attend_corners", False, lambda out, _: (out[0], out[1] * 1.0001), "output: error"),
    "gradient of values": (checks.values, "attend_corners", True, leans, "gradient of values: error"),
    "spread": (checks.nans, "decode", False, spread, "a NaN in one latent"),
    "dropped": (checks.nans, "render", False, lambda out, _: out.nan_to_num(), "a NaN in one latent"),
    "repeats": (checks.repeats, "decode", False, later(1e-6), "the bits differ when called again"),
    "input": (checks.repeats, "decode", False, writes, "an input is written"),
    "cuts": (checks.cuts, "decode", False, few, "the first 2 of 7"),
    "kept": (lambda *a: checks.far_activations(*a, 9), "decode", True, kept, "gradients of 9 queries"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(name, spoil):
    check, op, training, change, message = FAULTS[name]
    unit = Unit("torch", op, "float32", training)
    check(unit, CPU, SMALL, 1)
    spoil(op, change)
    with pytest.raises(Wrong, match=message):
        check(unit, CPU, SMALL, 1)


@pytest.mark.parametrize("op", ["fused_mlp", "modulated_decode"])
@pytest.mark.parametrize("seed", range(3))
def test_integers_reveal_a_lost_column_of_a_deep_network(op, seed, monkeypatch):
    """The outputs depend on every input of the first layer, through all four."""
    monkeypatch.setattr(problems, "extent", lambda device: "large")
    unit, network = Unit("torch", op, "float32", False), NETWORKS["large"][0]
    checks.integers(unit, CPU, network, seed)
    real = backends._backends["torch"]

    def loses(*arguments, **options):
        layers = [each for each in arguments if isinstance(each, (list, tuple)) and torch.is_tensor(each[0])]
        layers[0][0][:, 7 * seed + 5] = 0
        return getattr(real, op)(*arguments, **options)

    monkeypatch.setitem(backends._backends, "torch", types.SimpleNamespace(**{**vars(real), op: loses}))
    with pytest.raises(Wrong, match="small integers"):
        checks.integers(unit, CPU, network, seed)


@pytest.mark.parametrize("times", [0, 4])
def test_integers_of_waves_allow_one_rounding_of_the_output(times, monkeypatch):
    """In bfloat16 the reference's form, rounded only at the end, passes; an error of a few roundings does not."""

    def rounded(problem, backend):
        out = problem.to(CPU, torch.float32).formula([])
        return (out + times * torch.finfo(torch.bfloat16).eps * out.abs().max()).bfloat16()

    monkeypatch.setattr(problems.Problem, "run", rounded)
    unit = Unit("torch", "fourier_decode", "bfloat16", False)
    if not times:
        return checks.integers(unit, CPU, SMALL, 1)
    with pytest.raises(Wrong, match="small integers"):
        checks.integers(unit, CPU, SMALL, 1)


def test_memory_beside_is_watched(monkeypatch):
    full, blocks = torch.full, []
    monkeypatch.setattr(torch, "full", lambda *args, **options: blocks.append(full(*args, **options)) or blocks[-1])
    with pytest.raises(Wrong, match="outside its own memory"), checks._canaries(CPU):
        blocks[2][3] = 0


# The rival's time relative to ours, at the small and the large size.
RACES = {
    "faster": ([2.0] * 7, [1.5] * 7, True),
    "slower once at the small size": ([2.0] * 3 + [0.9] + [2.0] * 3, [1.5] * 7, True),
    "slower twice at the small size": ([0.9, 0.9], [1.5] * 7, False),
    "hardly faster": ([2.0] * 7, [1.1] * 4, False),
    "mostly faster": ([2.0] * 7, [1.1] * 3 + [1.3] * 4, True),
}


@pytest.mark.parametrize("name", RACES)
def test_what_is_taken(name, monkeypatch):
    small, large, taken = RACES[name]
    laps = iter([lap for ratio in (*small, *large) for lap in (ratio, 1.0)])
    monkeypatch.setattr(speed, "_seconds", lambda call, device: next(laps))
    found = speed.race(Unit("torch", "fused_mlp", "float32", False), CPU, SMALL, 1, lambda step: None)
    assert found["taken"] == taken and found["than"] in backends.AUTO
    assert next(laps, None) is None

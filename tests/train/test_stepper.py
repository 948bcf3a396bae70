"""Compare the trainer's steps with plain PyTorch."""

import copy
import functools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from liif_fast import make_cell, make_coord, models, save_model
from liif_fast.backends import cpu
from liif_fast.data import make, make_loader
from liif_fast.train.config import check_config
from liif_fast.train.stepper import Stepper

from . import plain

ENCODER = {"name": "edsr-baseline", "args": {"n_resblocks": 2, "n_feats": 16, "no_upsampling": True}}
LIIF = {"encoder_spec": ENCODER, "imnet_spec": {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [64] * 4}}}
MODELS = {"liif": (LIIF, plain.liif), "metasr": ({"encoder_spec": ENCODER}, plain.metasr)}


def make_stepper(tiny, name="liif", **keys):
    torch.manual_seed(0)
    config = check_config(copy.deepcopy(tiny) | {"model": {"name": name, "args": MODELS[name][0]}} | keys)
    model = models.make(config.model).to(memory_format=torch.channels_last)
    return Stepper(model, config)


def batches(tiny, size, count, **args):
    """Return batches of `size` samples; the samples do not depend on the size."""
    dataset = make(tiny["train_dataset"]["dataset"])
    wrapper = tiny["train_dataset"]["wrapper"]
    wrapper = make({**wrapper, "args": wrapper["args"] | args}, dataset=dataset, seed=3)
    indices = [list(range(i * size, (i + 1) * size)) for i in range(count)]
    return list(make_loader(wrapper, indices, "cpu", grouped=True))


def plain_error(name, model, batch):
    """Return the sum of a batch's absolute errors, and its number of values."""
    total, count = 0.0, 0
    for group in batch:
        gt = group["gt"]
        if "coord" in group:
            coord, cell = group["coord"], group["cell"]
        else:
            size = gt.shape[1:3]
            coord, cell = (grid(size).expand(len(gt), -1, -1) for grid in (make_coord, make_cell))
        pred = MODELS[name][1](model, model.encoder((group["inp"] - 0.5) / 0.5), coord, cell)
        total = total + (pred - (gt.flatten(1, -2) - 0.5) / 0.5).abs().sum()
        count += gt.numel()
    return total, count


def assert_gradients(ours, expected, tolerance=1e-5):
    for (key, a), b in zip(ours.named_parameters(), expected.parameters(), strict=True):
        if b.grad is not None:
            assert (a.grad - b.grad).abs().max() <= tolerance * b.grad.abs().max(), key


@pytest.mark.parametrize("args", [{}, {"sample_q": "all"}], ids=["queries", "all pixels"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_losses_are_those_of_plain_pytorch(tiny, name, args):
    stepper = make_stepper(tiny, name)
    model = copy.deepcopy(stepper.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    stepper.set_rate(1e-4)
    given = batches(tiny, 2, 3, **args)
    for step, batch in enumerate([*given, *given]):
        total, count = plain_error(name, model, batch)
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        got = stepper.step([batch], [True])
        if step == 0:
            assert_gradients(stepper.model, model)
        assert got.loss.item() == pytest.approx(loss.item(), rel=0, abs=1e-6)
        optimizer.step()
    assert args == {} or len(given[0]) == 2  # two sizes


def test_crops_of_equal_size_are_one_group(tiny):
    (batch,) = batches(tiny, 4, 1, sample_q="all", scale_max=1)
    assert [list(group["gt"].shape) for group in batch] == [[4, 8, 8, 3]]
    stepper = make_stepper(tiny)
    total, count = plain_error("liif", stepper.model, batch)
    assert stepper.step([batch], [True]).loss.item() == pytest.approx((total / count).item(), abs=1e-6)


def test_errors_are_of_the_samples(tiny):
    stepper = make_stepper(tiny)
    stepper.set_rate(1e-4)
    (batch,) = batches(tiny, 4, 1, sample_q="all")
    expected = [
        plain_error("liif", stepper.model, [one(group, i)])[0] for group in batch for i in range(len(group["gt"]))
    ]
    (errors,) = stepper.step([batch], [True]).errors
    torch.testing.assert_close(errors, torch.stack(expected).detach(), rtol=1e-5, atol=0)


def test_a_part_of_the_error_is_the_distance_to_the_teacher(tiny, tmp_path):
    torch.manual_seed(7)
    teacher = models.make({"name": "liif", "args": LIIF})
    save_model(teacher, tmp_path / "teacher.safetensors")
    stepper = make_stepper(tiny, teacher={"model": str(tmp_path / "teacher.safetensors"), "weight": 0.25})
    plain_stepper = make_stepper(tiny)
    (batch,) = batches(tiny, 4, 1)
    truth, count = plain_error("liif", plain_stepper.model, batch)
    with torch.no_grad():
        lessons = [{**g, "gt": teacher((g["inp"] - 0.5) / 0.5, g["coord"], g["cell"]) * 0.5 + 0.5} for g in batch]
    distance, _ = plain_error("liif", plain_stepper.model, lessons)
    expected = (0.75 * truth + 0.25 * distance) / count
    expected.backward()
    assert stepper.step([batch], [True]).loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert_gradients(stepper.model, plain_stepper.model)
    assert len(stepper.parameters) == len(plain_stepper.parameters)


def test_a_teacher_of_another_normalisation_is_refused(tiny, tmp_path):
    teacher = models.make({"name": "liif", "args": LIIF})
    teacher.data_norm = {"inp": {"sub": [0.0], "div": [1.0]}, "gt": {"sub": [0.0], "div": [1.0]}}
    save_model(teacher, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"teacher.model: .*other.safetensors has data_norm"):
        make_stepper(tiny, teacher={"model": str(tmp_path / "other.safetensors"), "weight": 0.5})


def test_a_teacher_that_is_not_there_is_named(tiny):
    with pytest.raises(FileNotFoundError, match=r"teacher.model: no-such-model: no such file, and no such model"):
        make_stepper(tiny, teacher={"model": "no-such-model", "weight": 0.5})
    with pytest.raises(ValueError, match=r"teacher.weight: must be above 0 and below 1, got 1"):
        make_stepper(tiny, teacher={"model": "edsr-small-liif", "weight": 1})


def one(group, i):
    return {key: value[i : i + 1] for key, value in group.items()}


@pytest.mark.parametrize("sample_q", [32, "all"])
def test_accumulated_is_one_large_batch(tiny, sample_q):
    """The mean is over all pixels, for any sizes of the parts."""
    parts, whole = make_stepper(tiny, grad_accum=4), make_stepper(tiny)
    got = parts.step(batches(tiny, 2, 4, sample_q=sample_q), [True] * 4)
    expected = whole.step(batches(tiny, 8, 1, sample_q=sample_q), [True])
    assert got.loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    assert_gradients(parts.model, whole.model)
    assert parts.steps == whole.steps == 1


def test_what_does_not_count_changes_nothing(tiny):
    stepper, expected = make_stepper(tiny, grad_accum=2), make_stepper(tiny)
    first, second = batches(tiny, 2, 2)
    assert stepper.step([first, second], [True, False]).loss == expected.step([first], [True]).loss
    assert_gradients(stepper.model, expected.model, 0)


def test_clipping(tiny):
    (batch,) = batches(tiny, 4, 1)
    free, clipped = make_stepper(tiny), make_stepper(tiny, grad_clip=0.01)
    for stepper in (free, clipped):
        stepper.step([batch], [True])
    free, clipped = (torch.cat([p.grad.flatten() for p in s.parameters]) for s in (free, clipped))
    assert free.norm() > 0.02
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped, free * (0.01 / free.norm()), rtol=1e-3, atol=1e-9)


def test_average_follows_the_weights(tiny):
    """After one step with decay min(0.999, 2 / 11) the average is 2/11 of the old and 9/11 of the new weights."""
    stepper = make_stepper(tiny, ema=0.999)
    old = [p.detach().clone() for p in stepper.model.parameters()]
    stepper.set_rate(1e-2)
    stepper.step(batches(tiny, 4, 1), [True])
    new, mean = list(stepper.model.parameters()), list(stepper.average.parameters())
    assert not torch.equal(old[-1], new[-1])
    for a, b, c in zip(old, new, mean, strict=True):
        torch.testing.assert_close(c, (2 * a + 9 * b) / 11, rtol=0, atol=1e-6)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_reduced_precision(tiny, amp):
    stepper, full = make_stepper(tiny, amp=amp, grad_clip=1e9), make_stepper(tiny)  # clipping removes the scale
    (batch,) = batches(tiny, 4, 1)
    assert stepper.step([batch], [True]).loss.item() == pytest.approx(full.step([batch], [True]).loss.item(), rel=2e-2)
    assert {p.dtype for p in stepper.model.parameters()} == {torch.float32}
    assert stepper.scaler.is_enabled() == (amp == "fp16")
    grads, expected = (torch.cat([p.grad.flatten() for p in s.parameters]) for s in (stepper, full))
    assert (grads - expected).norm() < 0.1 * expected.norm()


def test_a_step_that_overflows_is_left_out_and_the_scale_halved(tiny):
    stepper = make_stepper(tiny, amp="fp16")
    stepper.set_rate(1e-4)
    before = copy.deepcopy(stepper.model.state_dict())
    (batch,) = batches(tiny, 4, 1)
    stepper.scaler.load_state_dict(stepper.scaler.state_dict() | {"scale": 2.0**40})
    stepper.step([batch], [True])
    assert stepper.scaler.get_scale() == 2.0**39
    assert all(torch.equal(value, before[key]) for key, value in stepper.model.state_dict().items())


def test_layout_does_not_matter(tiny):
    (batch,) = batches(tiny, 4, 1)
    last, first = make_stepper(tiny), make_stepper(tiny, channels_last=False)
    assert last.step([batch], [True]).loss.item() == pytest.approx(first.step([batch], [True]).loss.item(), abs=1e-6)
    assert_gradients(last.model, first.model)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("name", "args"),
    [("adam", {}), ("adam", {"amsgrad": True}), ("sgd", {"momentum": 0.9})],
    ids=["adam", "amsgrad", "momentum"],
)
@pytest.mark.parametrize("source", ["original", "contiguous", "channels_last"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_resumed_is_uninterrupted_in_every_layout(tiny, name, args, source, channels_last, fused):
    """Fused optimizers walk raw memory, so the values of the state alone would not show a wrong layout."""
    layouts = {True: torch.channels_last, False: torch.contiguous_format}
    keys = {"optimizer": {"name": name, "args": {"lr": 1e-3, **args, "fused": fused}}}

    def stepper_of(last):
        stepper = make_stepper(tiny, channels_last=last, **keys)
        stepper.model.to(memory_format=layouts[last])
        stepper.set_rate(1e-3)
        return stepper

    resumed, first = stepper_of(channels_last), stepper_of(source == "channels_last")
    model = copy.deepcopy(first.model).to(memory_format=torch.contiguous_format)
    optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name](model.parameters(), lr=1e-3, **args)

    def plain_step(batch):
        total, count = plain_error("liif", model, batch)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        return (total / count).item()

    given = 2 * batches(tiny, 2, 3)
    for batch in given[:3]:
        plain_step(batch)
        first.step([batch], [True])
    weights, state = (
        (model.state_dict(), optimizer.state_dict())
        if source == "original"
        else (first.model.state_dict(), first.optimizer_state())
    )
    resumed.model.load_state_dict(weights)
    resumed.load_optimizer_state(copy.deepcopy(state))
    for batch in given[3:]:
        assert resumed.step([batch], [True]).loss.item() == pytest.approx(plain_step(batch), abs=1e-6)
    for (key, ours), expected in zip(resumed.model.named_parameters(), model.named_parameters(), strict=True):
        # A gradient of rounding noise moves a weight by a share of Adam's step, a wrong moment by several steps.
        assert (ours - expected[1]).abs().mean() < 1e-5, key


def test_compiled_encoder(tiny, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # compiles no C++
    (batch,) = batches(tiny, 2, 1)
    compiled, eager = make_stepper(tiny, compile=True, ema=0.9), make_stepper(tiny)
    assert compiled.model.encoder._compiled_call_impl is not None
    assert compiled.average.encoder._compiled_call_impl is None
    assert compiled.model.state_dict().keys() == eager.model.state_dict().keys()
    torch.compiler.reset()
    assert compiled.step([batch], [True]).loss.item() == pytest.approx(
        eager.step([batch], [True]).loss.item(), abs=1e-6
    )
    assert_gradients(compiled.model, eager.model)


def test_only_an_encoder_can_be_compiled(tiny):
    tiny |= {"model": {"name": "mlp", "args": {"in_dim": 2, "out_dim": 3, "hidden_list": [4]}}, "compile": True}
    with pytest.raises(ValueError, match="compile: model 'mlp' has no encoder"):
        Stepper(models.make(tiny["model"]), check_config(tiny))


class Reads(TorchDispatchMode):
    """Count what makes a host wait for its device: reading a value, or a shape that depends on values."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select"):
            self.found.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("keys", [{}, {"amp": "fp16"}, {"ema": 0.9, "grad_clip": 1.0, "amp": "bf16"}], ids=str)
def test_a_step_reads_nothing_back(tiny, keys):
    stepper = make_stepper(tiny, **keys)
    stepper.set_rate(1e-4)
    for batch in batches(tiny, 2, 2, sample_q="all"):
        with Reads() as reads:
            loss = stepper.step([batch], [True]).loss
        assert reads.found == []
    with Reads() as reads:
        assert math.isfinite(loss.item())
    assert len(reads.found) == 1  # to show that the counter works


@pytest.mark.skipif(not cpu.ISA, reason="the C++ kernels are not built")
def test_training_takes_fast_convolutions_and_validation_does_not(tiny):
    stepper = make_stepper(tiny)
    inp, gt = torch.rand(2, 3, 24, 24), torch.rand(2, 50, 3)
    group = {"inp": inp, "gt": gt, "coord": torch.rand(2, 50, 2) * 2 - 1, "cell": torch.full((2, 50, 2), 0.1)}
    with torch.profiler.profile() as training:
        stepper.step([[group]], [True])
    with torch.profiler.profile() as validation, torch.no_grad():
        stepper.objective.images(stepper.model, [group])
    names = [{each.key for each in profile.key_averages()} for profile in (training, validation)]
    assert "liif_fast::conv3x3_backward" in names[0]
    assert "liif_fast::conv3x3" not in names[1]

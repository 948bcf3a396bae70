"""`conv3x3` errs in float32 by a few units of rounding, wherever pixels lie, and spreads NaN within its tiles."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from liif_fast.backends import cpu
from liif_fast.convolution import RangeConv, fast_convolutions, residual
from liif_fast.models.edsr import EDSR, ResBlock
from liif_fast.models.iln import EDSRLiDAR
from liif_fast.ops.conv3x3 import conv3x3, convolve3x3, plain, plain_residual, residual3x3

from .support import run_python

pytestmark = pytest.mark.skipif(bool(cpu._missing), reason="the C++ kernels are not built")

# B, C, out, H, W: odd sizes, single rows and columns, fewer channels than a vector, more than a block.
SHAPES = [
    (2, 64, 64, 13, 17),
    (1, 1, 33, 9, 30),
    (2, 3, 16, 7, 1),
    (1, 70, 3, 6, 5),
    (3, 17, 130, 1, 9),
    (1, 5, 7, 1, 1),
    (1, 65, 200, 2, 3),
    (2, 8, 8, 4, 8),
]
# docs/cpu.md: 8e-7 and 2e-6 were measured with 64 channels. The limits are twice that.
NORM, LARGEST = 1.6e-6, 4e-6


def problem(shape, dtype=torch.float32, seed=0):
    """Return x, weight, bias, an addend and a gradient, in different layouts."""
    batch, ins, outs, height, width = shape
    generator = torch.Generator().manual_seed(seed)

    def made(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    addend, grad = made(batch, outs, height, width), made(batch, outs, height, width)
    x = made(batch, ins, height, width + 2).contiguous(memory_format=torch.channels_last)[..., 1:-1]
    weight = made(outs, ins, 3, 3) * (9 * ins) ** -0.5
    return [x, weight, made(outs), addend.contiguous(memory_format=torch.channels_last)], grad


def errors(got, expected):
    """Return the error's norm relative to the result's, and the largest error relative to the largest value."""
    difference = got.double() - expected
    return (difference.norm() / expected.norm()).item(), (difference.abs().max() / expected.abs().max()).item()


def both_passes(function, inputs, grad, wrap, relu):
    inputs = [each.detach().requires_grad_() for each in inputs]
    out = function(*inputs, wrap, relu)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy(shape, wrap, relu, nan_empty):
    inputs, grad = problem(shape)
    inputs[2].add_(2.0 if relu else 0.0)  # most outputs are positive, and none is zero within rounding
    doubles = [each.double() for each in inputs]
    if relu:
        near = plain(*doubles, wrap, False).abs() < 1e-4
        grad = grad.masked_fill(near, 0.0)
    expected = both_passes(plain, doubles, grad.double(), wrap, relu)
    for got, right in zip(both_passes(convolve3x3, inputs, grad, wrap, relu), expected, strict=True):
        norm, largest = errors(got, right)
        assert norm < NORM and largest < LARGEST
    for got, right in zip(both_passes(convolve3x3, doubles, grad.double(), wrap, relu), expected, strict=True):
        assert errors(got, right)[1] < 1e-13


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("shape", [(2, 70, 130, 5, 9), (1, 3, 5, 1, 1)], ids=str)
def test_accuracy_of_residual_blocks(shape, wrap, nan_empty):
    """The hidden layer of the block has another width; ReLU and sum are in the gradients' kernel."""
    (x, first, bias, _), _ = problem(shape)
    grad, second = torch.randn_like(x), torch.randn(shape[1], shape[2], 3, 3) * (9 * shape[2]) ** -0.5
    inputs = [x, first, bias + 2.0, second, torch.randn(shape[1])]
    doubles = [each.double().requires_grad_() for each in inputs]
    hidden = plain(*doubles[:3], None, wrap, False)
    assert (hidden.abs() > 1e-5).all()  # float32 and float64 agree on what ReLU lets pass
    doubled = plain_residual(*doubles, wrap)
    expected = [doubled, *torch.autograd.grad(doubled, doubles, grad.double())]
    for type, limits in ((torch.float32, (NORM, LARGEST)), (torch.float64, (1e-14, 1e-13))):
        leaves = [each.to(type).requires_grad_() for each in inputs]
        out = residual3x3(*leaves, wrap)
        for got, right in zip([out, *torch.autograd.grad(out, leaves, grad.to(type))], expected, strict=True):
            assert all(error < limit for error, limit in zip(errors(got, right), limits, strict=True))


def test_second_derivative_of_a_residual_block():
    (x, first, bias, _), _ = problem((1, 2, 3, 3, 4), torch.float64)
    (_, second, _, _), _ = problem((1, 3, 2, 3, 4), torch.float64)
    inputs = [each.detach().requires_grad_() for each in (x, first, bias + 2.0, second)]

    def run(*each):
        return residual3x3(*each, None, True)

    assert torch.autograd.gradcheck(run, inputs) and torch.autograd.gradgradcheck(run, inputs)


def test_accuracy_beside_pytorch_through_many_layers():
    """After 33 layers the error's norm is at most four times PyTorch's; docs/cpu.md says what was measured."""
    torch.manual_seed(0)
    x = torch.rand(1, 64, 16, 24) * 2 - 1
    layers = [nn.Conv2d(64, 64, 3) for _ in range(33)]

    def run(function, x):
        first = x
        for number, layer in enumerate(layers):
            weight, bias = layer.weight.detach().to(x.dtype), layer.bias.detach().to(x.dtype)
            x = function(x, weight, bias, first if number % 2 else None, True, number % 2 == 0)
            first = x if number % 2 else first
        return x

    expected = run(plain, x.double())
    assert errors(run(convolve3x3, x), expected)[0] < 4 * errors(run(plain, x), expected)[0]


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("shape", [(3, 20, 40, 10, 23), (3, 70, 130, 6, 5)], ids=str)
def test_same_bits(shape, wrap, threads):
    """Outputs and the input's gradient depend on no other image and no number of threads; others repeat for one."""
    inputs, grad = problem(shape)
    threads(2)
    whole = both_passes(convolve3x3, inputs, grad, wrap, True)
    again = both_passes(convolve3x3, inputs, grad, wrap, True)
    assert all(map(torch.equal, whole, again))
    for count in (1, 3, 8):
        threads(count)
        other = both_passes(convolve3x3, inputs, grad, wrap, True)
        assert torch.equal(other[0], whole[0]) and torch.equal(other[1], whole[1])
    for b in range(3):
        alone = both_passes(
            convolve3x3, [inputs[0][b : b + 1], *inputs[1:3], inputs[3][b : b + 1]], grad[b : b + 1], wrap, True
        )
        assert torch.equal(alone[0][0], whole[0][b]) and torch.equal(alone[1][0], whole[1][b])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_tiles(value):
    """A NaN at (9, 14) reaches the tiles of 4x4 pixels around the pixels that read it, and no other."""
    (x, weight, bias, _), _ = problem((1, 6, 8, 20, 24))
    clean = convolve3x3(x, weight, bias, None, False, False)
    x = x.clone()
    x[0, 2, 9, 14] = value
    out = convolve3x3(x, weight, bias, None, False, False)
    inside = torch.zeros(20, 24, dtype=torch.bool)
    inside[8:12, 12:16] = True
    assert not out[..., 8:11, 13:16].isfinite().any()
    assert torch.equal(out[..., ~inside], clean[..., ~inside])


def test_second_derivative():
    inputs, _ = problem((1, 2, 3, 4, 5), torch.float64)
    inputs = [each.detach().requires_grad_() for each in inputs]
    assert torch.autograd.gradcheck(lambda *each: convolve3x3(*each, True, False), inputs)
    assert torch.autograd.gradgradcheck(lambda *each: convolve3x3(*each, True, False), inputs)


@pytest.mark.parametrize("wrap", [False, True])
def test_second_derivative_of_inputs_that_share_a_graph(wrap):
    """Two residual blocks share their weights, and each adds its own input."""
    (x, weight, _, _), _ = problem((1, 4, 4, 5, 6), torch.float64)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight.requires_grad_()

    def penalty(function):
        out = x
        for _ in range(2):
            out = function(function(out, weight, None, None, wrap, True), weight, None, out, wrap, False)
        grads = torch.autograd.grad(out.square().sum(), (x, weight), create_graph=True)
        return *grads, *torch.autograd.grad(sum(each.square().sum() for each in grads), (x, weight))

    for one, other in zip(penalty(convolve3x3), penalty(plain), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_through_outputs_that_are_not_finite(value):
    """Gradients stop where the output is zero, as in PyTorch's ReLU."""
    (x, weight, bias, addend), grad = problem((1, 6, 8, 5, 4))
    addend[0, 3, 2, 2], grad[0, 1] = value, value
    leaf = addend.requires_grad_()
    of_addend = [
        torch.autograd.grad(function(x, weight, bias, leaf, False, True), leaf, grad)[0]
        for function in (convolve3x3, plain)
    ]
    torch.testing.assert_close(*of_addend, equal_nan=True)


def test_empty_maps():
    weight = torch.randn(16, 3, 3, 3)
    for shape in ((0, 3, 4, 5), (1, 3, 0, 5), (1, 3, 4, 0)):
        x = torch.randn(shape).requires_grad_()
        out = convolve3x3(x, weight.requires_grad_(), None, None, True, True)
        assert out.shape == (shape[0], 16, *shape[2:])
        of_x, of_weight = torch.autograd.grad(out.sum(), (x, weight))
        assert of_x.shape == x.shape and not of_weight.any()


def test_refuses_what_it_would_misread():
    x, weight = torch.randn(1, 4, 5, 6), torch.randn(8, 4, 3, 3)
    last = x.contiguous(memory_format=torch.channels_last)
    for arguments in (
        (x, weight, None, None, False, False),  # channels are not side by side
        (last, weight[:, :3], None, None, False, False),
        (last, weight, torch.zeros(7), None, False, False),
        (last, weight, None, last, False, False),
        (last, weight.double(), None, None, False, False),
    ):
        with pytest.raises(RuntimeError, match="liif_fast"):
            conv3x3(*arguments)


def calls(function):
    """Return the function's result and whether it called the operator."""
    with torch.profiler.profile() as profile:
        out = function()
    return out, any(each.key == "liif_fast::conv3x3" for each in profile.key_averages())


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Centred(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean(), bias)


def exchange(position, module):
    """Return a change that puts a module of that type, with the old one's weights, at a position."""

    def change(body):
        held = body[position].conv if hasattr(body[position], "conv") else body[position]
        made = module(16, 16, 3, padding=held.padding)
        made.load_state_dict(held.state_dict())
        if held is body[position]:
            body[position] = made
        else:
            body[position].conv = made

    return change


def double_relu(module, args, out):
    return 2 * out if isinstance(module, nn.ReLU) else None


CHANGES = {
    "LeakyReLU": lambda body: body.__setitem__(1, nn.LeakyReLU(0.3)),
    "ReLU6": lambda body: body.__setitem__(1, nn.ReLU6()),
    "four layers": lambda body: body.append(nn.Tanh()) and None,
    "one layer": lambda body: body.__delitem__(slice(1, 3)),
    "forward": exchange(0, Doubled),
    "_conv_forward": exchange(2, Centred),
    "hook": lambda body: body[1].register_forward_hook(double_relu),
    "global hook": lambda body: nn.modules.module.register_module_forward_hook(double_relu),
}  # fmt: skip


class TestFastConvolutions:
    x = torch.randn(1, 16, 40, 30)

    def run(self, layer, x=None):
        with fast_convolutions(), torch.no_grad():
            return calls(lambda: layer(self.x if x is None else x))

    @pytest.mark.parametrize("padding", [1, (1, 1), "same"])
    def test_takes_what_fits(self, padding):
        layer = nn.Conv2d(16, 24, 3, padding=padding)
        out, fast = self.run(layer)
        assert fast
        torch.testing.assert_close(out, layer(self.x), rtol=1e-5, atol=1e-5)
        assert not calls(lambda: layer(self.x))[1]

    @pytest.mark.parametrize(
        "options",
        [
            {"padding": 0},
            {"padding": 2},
            {"padding": 1, "stride": 2},
            {"padding": "same", "dilation": 2},
            {"padding": 1, "groups": 2},
            {"padding": 1, "padding_mode": "circular"},
            {"padding": 1, "dtype": torch.float64},
        ],
        ids=str,
    )
    def test_leaves_the_others(self, options):
        layer = nn.Conv2d(16, 24, 3, **options)
        x = self.x.to(layer.weight.dtype)
        out, fast = self.run(layer, x)
        assert not fast
        assert torch.equal(out, layer(x))

    def test_leaves_few_pixels_and_channels(self):
        assert not self.run(nn.Conv2d(16, 24, 3, padding=1), self.x[..., :10])[1]
        assert not self.run(nn.Conv2d(16, 3, 3, padding=1))[1]
        assert not self.run(nn.Conv2d(16, 24, 1))[1]
        assert not self.run(nn.Conv2d(16, 24, 3, padding=1), torch.randn(300, 16, 2, 2))[1]  # tiles hold four pixels
        assert not self.run(nn.Conv2d(16, 256, 3, padding=1))[1]

    def test_takes_range_images(self):
        layer = RangeConv(16, 24)
        out, fast = self.run(layer)
        assert fast
        torch.testing.assert_close(out, layer(self.x), rtol=1e-5, atol=1e-5)

    def test_leaves_changed_range_convolutions(self):
        layer = RangeConv(16, 24)
        layer.conv.register_forward_hook(lambda module, args, out: 2 * out)
        out, fast = self.run(layer)
        assert not fast
        assert torch.equal(out, layer(self.x))

    def test_takes_residual_blocks(self):
        for block in (ResBlock(16, 1), EDSRLiDAR(1, 16).body[0]):
            for x in (self.x, self.x.contiguous(memory_format=torch.channels_last)):
                with fast_convolutions(), torch.no_grad(), torch.profiler.profile() as profile:
                    out = residual(x, block.body)
                counts = {each.key: each.count for each in profile.key_averages()}
                assert counts["liif_fast::conv3x3"] == 2 and counts.get("aten::copy_", 0) == (x is self.x)
                torch.testing.assert_close(out, block(x), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("change", CHANGES, ids=CHANGES)
    @pytest.mark.parametrize("make", [lambda: ResBlock(16, 1), lambda: EDSRLiDAR(1, 16).body[0]], ids=["EDSR", "ILN"])
    def test_changed_residual_blocks_run_as_they_are(self, make, change):
        block = make()
        undo = CHANGES[change](block.body)
        try:
            with torch.no_grad():
                expected, (out, _) = block(self.x), self.run(block)
        finally:
            if undo is not None:
                undo.remove()
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        "options", [{"dilation": 2, "padding": 2}, {"padding": 1, "padding_mode": "reflect"}], ids=str
    )
    def test_other_convolutions_in_a_residual_block(self, options):
        block = ResBlock(16, 1)
        block.body[0] = nn.Conv2d(16, 16, 3, **options)
        torch.testing.assert_close(self.run(block)[0], block(self.x), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("record", [torch.jit.script, torch.fx.symbolic_trace])
    def test_encoders_can_be_recorded(self, record):
        x = self.x[:, :1]
        for encoder in (EDSR(1, 16, no_upsampling=True, n_colors=1), EDSRLiDAR(1, 16)):
            torch.testing.assert_close(record(encoder)(x), encoder(x))

    def test_checkpoint_with_the_context_inside(self):
        layers = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))

        def run(x):
            with fast_convolutions():
                return layers(x)

        with fast_convolutions():
            out = checkpoint(run, self.x, use_reentrant=False)
        got = torch.autograd.grad(out.square().sum(), list(layers.parameters()))
        wanted = torch.autograd.grad(run(self.x).square().sum(), list(layers.parameters()))
        assert all(map(torch.equal, got, wanted))

    def test_nests(self):
        layer, allowed = nn.Conv2d(16, 24, 3, padding=1), fast_convolutions()
        with allowed:
            with allowed:
                pass
            assert calls(lambda: layer(self.x))[1]
        assert not calls(lambda: layer(self.x))[1]
        assert F.conv2d(self.x, layer.weight).shape == (1, 24, 38, 28)

    def test_autocast_computes_in_float32(self):
        if torch.cpu._is_amx_tile_supported():
            pytest.skip("this processor has matrix units for bfloat16")
        layer = nn.Conv2d(16, 24, 3, padding=1)
        with torch.autocast("cpu", torch.bfloat16):
            out, fast = self.run(layer)
        assert fast and out.dtype == torch.float32


def test_lesser_instruction_sets():
    code = (
        "import torch; from liif_fast.ops.conv3x3 import convolve3x3, plain; from liif_fast.backends import cpu\n"
        "torch.manual_seed(0); x, w = torch.randn(1, 19, 9, 10), torch.randn(21, 19, 3, 3) / 13\n"
        "a = convolve3x3(x, w, None, None, False, True); b = plain(x.double(), w.double(), None, None, False, True)\n"
        "assert (a - b).abs().max() < 4e-6 * b.abs().max(), (a - b).abs().max(); print(cpu.ISA)"
    )
    for isa in ("portable", "avx2"):
        has = isa == "portable" or torch.backends.cpu.get_cpu_capability().startswith("AVX")
        assert run_python(code, LIIF_FAST_CPU_ISA=isa) == (isa if has else "portable")

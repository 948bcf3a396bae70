"""Test the backend `cuda` without a GPU: its refusals with reasons, loading its extension, its operators' fakes."""

import itertools
import re
import subprocess
from pathlib import Path

import pytest
import torch

from liif_fast import backends, explain, functional
from liif_fast.backends import cuda, triton
from liif_fast.call import Call, Switches
from liif_fast.ops import sm90

from .. import warm
from ..ops.support import Problem

BUILT = pytest.mark.skipif(bool(cuda._missing), reason="liif_fast/_C_sm90 is not built: no nvcc")
CALL = Call(
    op="decode",
    device=torch.device("cuda", 0),
    dtype=torch.float16,
    shape=(1, 64, 48, 48),
    queries=1000,
    widths=(256, 256, 256, 256, 3),
    switches=Switches(),
    coord_dtype=torch.float32,
    autocast=None,
    requires_grad=False,
    coord_requires_grad=False,
)


@pytest.fixture
def hopper(monkeypatch):
    """Simulate a machine with a Hopper GPU and the extension."""
    monkeypatch.setattr(cuda, "_missing", "")
    monkeypatch.setattr(cuda, "_capability", lambda index: (9, 0))
    return monkeypatch


def test_it_is_asked_for_by_name_only(hopper):
    can, reason = cuda.can_run(CALL)
    assert can and "Hopper kernel" in reason
    assert "cuda" not in backends.AUTO
    assert explain(*Problem(hidden=(256, 256)).arguments).chosen != "cuda"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float32}, "computes in float16 or bfloat16, got torch.float32"),
        ({"autocast": torch.float32}, "computes in float16 or bfloat16, got torch.float32"),
        ({"coord_dtype": torch.float64}, "plans in float32"),
        ({"requires_grad": True}, "has no gradient"),
        ({"widths": (256, 3)}, r"two or more hidden layers, all 256 wide, got \[256\]"),
        ({"widths": (256, 128, 3)}, r"got \[256, 128\]"),
        ({"widths": (3,)}, r"got \[\]"),
        ({"widths": (256, 256, 5)}, "up to 4 outputs, got 5"),
        ({"device": torch.device("cpu")}, "runs on cuda tensors, got device cpu"),
    ],
)
def test_refusals_have_reasons(hopper, change, reason):
    can, said = cuda.can_run(CALL._replace(**change))
    assert not can and re.search(reason, said), said


def test_a_grid_whose_pixels_pass_32_bits_is_refused(hopper):
    call = CALL._replace(op="render", grid=(7, backends.LONGEST_GRID - 1))
    assert backends.ask("cuda", call)[0]
    call = call._replace(grid=(7, backends.LONGEST_GRID))
    assert backends.ask("cuda", call) == (False, "takes grids of less than 1073741824 a side, got 7x1073741824")


def test_float32_under_autocast_is_taken(hopper):
    assert cuda.can_run(CALL._replace(dtype=torch.float32, autocast=torch.bfloat16, widths=(256, 256, 1)))[0]


def test_another_gpu_is_refused(hopper):
    hopper.setattr(cuda, "_capability", lambda index: (8, 9))
    assert cuda.can_run(CALL) == (False, "needs compute capability 9.0, got (8, 9)")


def test_without_the_extension_it_says_so(hopper):
    hopper.setattr(cuda, "_missing", "not built")
    assert cuda.can_run(CALL) == (False, "not built")


@pytest.mark.parametrize(("wish", "found"), [("", 1), ("2", 2)])
def test_the_cluster_is_a_setting(wish, found, monkeypatch):
    monkeypatch.setattr(cuda, "CLUSTER", 1)
    monkeypatch.setenv("LIIF_FAST_CUDA_CLUSTER", wish)
    why = cuda._load()
    assert cuda.CLUSTER == found and "CLUSTER" not in why


@pytest.mark.parametrize("wish", ["0", "4", "two"])
def test_another_cluster_is_refused(wish, monkeypatch):
    monkeypatch.setenv("LIIF_FAST_CUDA_CLUSTER", wish)
    assert cuda._load() == f"LIIF_FAST_CUDA_CLUSTER must be 1 or 2, got {wish!r}"


def test_by_name_on_the_cpu_it_raises():
    with pytest.raises(
        RuntimeError, match="backend 'cuda' cannot run this decode: runs on cuda tensors, got device cpu"
    ):
        functional.liif_decode(*Problem(hidden=(256, 256)).arguments, backend="cuda")


@BUILT
def test_the_extension_needs_no_cuda_in_pytorch():
    """The extension links no CUDA library: it contains the runtime, and looks PyTorch's stream up when needed."""
    (extension,) = Path(cuda.__file__).parents[1].glob("_C_sm90.*")
    needed = subprocess.run(["readelf", "-d", extension], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu.so" in needed
    assert "cudart" not in needed and "libtorch_cuda" not in needed and "libcuda" not in needed
    script = "import torch; from liif_fast.backends import cuda; assert not cuda._missing, cuda._missing"
    warm.run("-c", script, check=True)


@BUILT
def test_the_extension_registers_every_operator():
    for name in ("pack_sm90", "decode_sm90", "render_sm90"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"liif_fast::{name}", "CUDA")


def test_one_kernel_under_the_key_cuda_calls_the_backend_named():
    """A dispatch key holds one kernel, so two backends registering theirs would silently replace each other."""
    for name in {*cuda.OPERATORS, *triton.OPERATORS}:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"liif_fast::{name}", "CUDA")
    p, run = torch.empty(1, 2, 2, 8, device="meta"), backends.runner("decode_backward")
    for name in (None, "cuda", "torch", "none such"):
        with pytest.raises(
            RuntimeError, match=f"decode_backward has no kernel for meta in the backend '{name or 'cpu'}'"
        ):
            run(p, name)


@pytest.mark.parametrize("switches", [Switches(*each) for each in itertools.product((True, False), repeat=3)])
@pytest.mark.parametrize("autocast", [False, True])
def test_calls_reach_the_operators(switches, autocast, monkeypatch):
    """Run the whole path except the kernels on fake CPU tensors: shapes, dtypes, the window of a render."""
    dtype = torch.float32 if autocast else torch.float16
    problem = Problem(channels=8, shape=(13, 17), queries=9, hidden=(256, 256, 256), switches=switches).to(dtype)
    seen = []
    ways = [("decode", "decode_queries", cuda.decode_queries), ("render", "render_window", cuda.render_window)]
    for name, way, operator in ways:

        def run(*args, name=name, operator=operator):
            cuda.OPERATORS[name](*args[:-1])  # as for the key CUDA
            return operator(*torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), args))

        monkeypatch.setattr(cuda, way, run)
        monkeypatch.setattr(sm90, name, lambda *args: seen.append(args))
    feat, coord, cell, weights, biases = problem.arguments
    half = torch.bfloat16 if autocast else torch.float16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = cuda.decode(feat, coord, cell, weights, biases, switches, None)
        assert (out.shape, out.dtype) == ((2, 9, 3), dtype)
        p, _, given, packed, out_dim, ensemble, cluster = seen.pop()
        assert (p.shape, p.dtype, p.is_contiguous()) == ((2, 13, 17, 256), half, True)
        expected = (switches.cell_decode, 3, switches.local_ensemble, cuda.CLUSTER)
        assert (given is not None, out_dim, ensemble, cluster) == expected
        assert packed.numel() == 2 * sm90.PRODUCT_BYTES + sm90.TABLE_BYTES
        region = (60, 3, 20, 100)
        out = cuda.render(feat, (130, 170), region, cell[:, 0], weights, biases, switches, None)
    assert (out.shape, out.dtype) == ((2, 3, 20, 100), dtype)
    p, *_, (height, width, top, _, *rest) = seen.pop()
    assert (height, width, *rest) == (13, 17, 130, 170, *region)
    assert top > 0 and top + p.shape[1] < 13 and p.shape[1:3] < (13, 17)  # only the latents under the region


def test_projected_latents_are_those_of_the_torch_backend():
    problem = Problem(channels=8, shape=(13, 17), queries=9, hidden=(256, 256))
    feat, _, _, weights, biases = problem.arguments
    p, _ = cuda._prepare(feat.half(), [w.half() for w in weights], [b.half() for b in biases], Switches())
    plain = torch.nn.functional.conv2d(feat, weights[0][:, :-4].reshape(256, 8, 3, 3), biases[0], padding=1)
    assert (p.float() - plain.permute(0, 2, 3, 1)).abs().max() <= 2e-3 * plain.abs().max()  # 11 bits of float16

"""Launch every Triton kernel as on an sm_90 GPU, up to the compilation, on successive sizes.

test_launch.py imports it where Triton is not imported for its interpreter. Triton itself handles the
arguments; the driver and the compiler are replaced. What Triton would compile must be what the report compiles and
tests/ptx executes. After every size it prints the number of binaries of each kernel.
"""

import json
from types import SimpleNamespace

import torch
from triton import compiler
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from benchmarks import compile_report
from liif_fast import functional
from liif_fast.backends import triton as backend
from liif_fast.kernels import host
from tests.ops.support import Problem
from tests.ops.test_attend import Attention
from tests.ops.test_fourier import Call


class Driver:
    """The methods that Triton calls before a launch."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile(source, target, options, **more):
    return SimpleNamespace(source=source, hash=(source.hash(), str(sorted(options.items()))))


def form(source):
    """Return what a kernel is compiled for."""
    return source.signature, source.constants, {at: given for at, given in source.attrs.items() if given}


driver.set_active(Driver())
compiler.compile = compile
host.architecture = lambda device: 90
backend._why_not_on = lambda kind, index: ""
backend.run_on_cpu()
backend.KEEP_BYTES = 180 * 2 * 48 * 2  # some rows are kept, some computed again
launch, binaries = JITFunction.run, {}


def run(kernel, *args, grid, warmup, **named):
    for parameter, value in zip(kernel.params, args, strict=False):  # else a second, slower binary
        if isinstance(value, torch.Tensor) and not parameter.do_not_specialize_on_alignment:
            assert value.data_ptr() % 16 == 0, f"{kernel.fn.__name__}: {parameter.name} is not aligned"
    assert all(type(side) is int and 0 < side < 2**31 for side in grid), grid
    made = launch(kernel, *args, grid=grid, warmup=True, **named)
    arguments = {**dict(zip(kernel.arg_names, args, strict=False)), **named}
    options = {key: value for key, value in named.items() if key not in kernel.arg_names}
    plain = compile_report.without_tensors(kernel, arguments)
    reported = compile_report.Launch(kernel.fn.__name__, "", "", kernel, plain, options)
    assert form(made.source) == form(compile_report.source_of(reported)), f"{kernel.fn.__name__} is launched otherwise"
    binaries.setdefault(kernel.fn.__name__, set()).add(made.hash)


JITFunction.run = run

for queries, shape in ((63, (13, 17)), (1000, (21, 19)), (16, (16, 16)), (1, (1, 40))):
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        problem = Problem(queries=queries, shape=shape, channels=64, hidden=(41, 48)).to(torch.float16).requires_grad()
        feat, _, _, weights, biases = problem.arguments
        for recompute in (None, False, True):
            options = {"backend": "triton", "recompute": recompute}
            functional.liif_decode(*problem.arguments, **options).sum().backward()
        functional.liif_render(feat, (29 + queries, 31), weights, biases, backend="triton").sum().backward()
        x, _ = functional.gather_corners(*problem.arguments[:3], backend="triton")
        x.sum().backward()
        functional.fused_mlp(x.detach(), weights, biases, backend="triton").sum().backward()
        Attention(16, 1, 4, 16, shape=shape, queries=queries).gradients("triton")
        waves = Call(36, (41, 48, 3), shape, 1, queries).to(torch.float16).requires_grad()
        for recompute in (False, True):
            waves.run("triton", recompute=recompute).sum().backward()
        with torch.no_grad():
            waves.run("triton")
            functional.liif_decode(*problem.arguments, backend="triton")
            functional.liif_render(feat, (29, 31), weights, biases, region=(3, 4, 5, 6), backend="triton")
    print(json.dumps({name: len(made) for name, made in sorted(binaries.items())}))

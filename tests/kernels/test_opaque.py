"""Fail once a reason of docs/triton.md for operators that are opaque to compilers has gone."""

import pytest
import sympy
import torch
from torch._inductor.codegen.common import SizeArg
from torch._inductor.codegen.triton_utils import signature_of
from torch.utils._sympy.functions import FloatTrueDiv


@pytest.mark.parametrize(("size_dtype", "declared"), [("tl.int32", "i32"), ("tl.int64", "i64")])
def test_inductor_declares_a_float_of_any_size_as_an_integer(size_dtype, declared):
    """2 / height is an argument of the kernels."""
    step = FloatTrueDiv(sympy.Integer(2), sympy.Symbol("s0", integer=True, positive=True))
    assert signature_of(SizeArg("row_step", step), size_dtype=size_dtype) == declared


def test_export_keeps_a_triton_op_as_one_node():
    @torch.library.triton_op("liif_fast_test::opaque", mutates_args={})
    def opaque(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    class Model(torch.nn.Module):
        def forward(self, x):
            return torch.ops.liif_fast_test.opaque(x) + 1

    program = torch.export.export(Model(), (torch.ones(3),))
    for each in (program, program.run_decompositions()):
        assert torch.ops.liif_fast_test.opaque.default in [node.target for node in each.graph.nodes]

"""The gate on the CPU kernels' instruction counts holds, and it can fail."""

import json
import os
import warnings

import pytest

from benchmarks import instructions

ACCEPTED = json.loads(instructions.ACCEPTED.read_text())
HINT = "a deliberate change is accepted by `python -m benchmarks.instructions --accept`"


def test_counts_are_those_accepted():
    """Counting is slow, so it is left out if the same sources have been counted."""
    here = instructions.build()
    same = here == {key: ACCEPTED[key] for key in here}
    if same and ACCEPTED["sources"] == instructions.sources() and "LIIF_FAST_TEST_COUNTS" not in os.environ:
        pytest.skip("these sources have been counted; LIIF_FAST_TEST_COUNTS=1 counts them again")
    if why := instructions.missing():
        pytest.skip(why)
    found = instructions.compare(instructions.count(), ACCEPTED["counts"])
    if same:
        assert not found, "\n".join([*found, HINT])
    elif found:
        warnings.warn(f"the counts accepted are of another build ({ACCEPTED['compiler']}): {found}", stacklevel=1)


def test_sizes_are_those_accepted():
    here = instructions.build()
    if here != {key: ACCEPTED[key] for key in here}:
        pytest.skip(f"the sizes accepted are of another build ({ACCEPTED['compiler']})")
    if not (disassembly := instructions.disassemble()):
        pytest.skip("the C++ kernels are not built, or objdump is not installed (Debian: apt-get install binutils)")
    found = instructions.sizes(disassembly)
    assert set(found) == set(ACCEPTED["sizes"])
    changed = instructions.compare(found, ACCEPTED["sizes"])
    assert not changed, "\n".join([*changed, HINT])


def test_a_size():
    name = "liif::(anonymous namespace)::tile<liif::Bf16, float, 12, 2, false>(liif::Gemm<liif::Bf16, float> const&)"
    function = f"00000000000a81e0 <void {name}>:\n   a81e0:\tpush   %rbp\n   a81e1:\tret"
    other = function.replace("12, 2, false>", "11, 2, false>").replace("liif::Bf16", "float")
    assert instructions.sizes(f"{other}\n\n{function}\n\n{other}") == {"tile<Bf16, float, 12, 2, false>": 2}


def test_every_operator_has_a_count_of_a_named_build():
    assert set(ACCEPTED["counts"]) == set(instructions.COUNTED)
    assert {"compiler", "flags", "isa"} <= set(ACCEPTED)
    assert ACCEPTED["isa"] == instructions.ISA


# The largest shares of the instructions for all gradients that those of the input, and those of the parameters, take.
SHARES = {"decode": (0.55, 0.99), "fourier_decode": (0.65, 0.97), "modulated_decode": (0.7, 0.7),
          "fused_mlp": (0.55, 0.9), "attend_corners": (0.8, 0.95)}  # fmt: skip


@pytest.mark.parametrize("operator", SHARES)
def test_unwanted_gradients_take_no_instructions(operator):
    every, *parts = (ACCEPTED["counts"][f"{operator}_backward: {which}"] for which in instructions.WANTED)
    for part, share in zip(parts, SHARES[operator], strict=True):
        assert part < share * every


def test_a_change_of_a_kernel_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(instructions, "ROOT", tmp_path)
    kernel = tmp_path / "csrc" / "cpu" / "decode.cpp"
    kernel.parent.mkdir(parents=True)
    found = {instructions.sources()}
    for text in ("int one;", "int two;"):
        kernel.write_text(text)
        found.add(instructions.sources())
    assert len(found) == 3


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.06, "+6.0% from"), (0.9, "-10.0% from"), (1.04, None), (0.96, None), (1, None)]
)
def test_a_doctored_count_is_noticed(factor, verdict):
    doctored = dict(ACCEPTED["counts"], decode=round(ACCEPTED["counts"]["decode"] * factor))
    found = instructions.compare(doctored, ACCEPTED["counts"])
    assert len(found) == (verdict is not None)
    assert all(line.startswith("decode: ") and verdict in line for line in found)


def test_an_operator_that_only_one_side_has_is_noticed():
    fewer = {key: value for key, value in ACCEPTED["counts"].items() if key != "decode"}
    assert len(instructions.compare(fewer, ACCEPTED["counts"])) == 1
    assert len(instructions.compare(ACCEPTED["counts"], fewer)) == 1


def test_parse():
    annotated = """
51,325,595 (100.0%)  PROGRAM TOTALS
35,077,284 (68.34%)  ???:void liif::(anonymous namespace)::gemm<float>(liif::Gemm<float> const&) [/x/_C.abi3.so]
 7,392,327 (14.40%)  ???:liif::decode(torch::stable::Tensor const&, bool, long) [/x/_C.abi3.so]
   392,327 ( 0.40%)  /src/decode.cpp:liif::decode_direct(torch::stable::Tensor const&) [/x/_C.abi3.so]
 4,577,971 ( 8.92%)  project.cpp:liif::project(torch::stable::Tensor const&, long) [/x/_C.abi3.so]
"""
    assert instructions.parse(annotated) == {"decode": 7_392_327, "project": 4_577_971}


def test_nothing_is_accepted_without_sizes(monkeypatch, tmp_path, capsys):
    """Without objdump the accepted sizes stay, and nothing is counted."""
    monkeypatch.setattr(instructions, "missing", lambda: "")
    monkeypatch.setattr(instructions, "disassemble", lambda: "")
    monkeypatch.setattr(instructions, "ACCEPTED", tmp_path / "accepted.json")
    monkeypatch.setattr("sys.argv", ["instructions", "--accept"])
    with pytest.raises(SystemExit) as ended:
        instructions.main()
    assert ended.value.code == 1
    assert "objdump" in capsys.readouterr().err
    assert not instructions.ACCEPTED.exists()

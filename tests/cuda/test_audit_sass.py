"""The audit of the Hopper kernels' machine code passes, and it finds the faults that it is for."""

import os
from pathlib import Path

import pytest

from benchmarks import audit_sass, gpu_variant, hopper_gap

SMALL = Path(__file__).with_name("wgmma.cu")
# Two groups of two products, in cuobjdump's format; the first is waited for while the second runs.
GOOD = """
    Function : kernel
        WARPGROUP.ARRIVE ;
        HGMMA.64x256x16.F32 R24, R152, gdesc[UR4], R24 ;
        HGMMA.64x256x16.F32 R24, R156, gdesc[UR4], R24, gsb0 ;
        WARPGROUP.ARRIVE ;
        HGMMA.64x256x16.F32.BF16 R24, R160, gdesc[UR4], R24 ;
        HGMMA.64x256x16.F32.BF16 R24, R164, gdesc[UR4], R24, gsb0 ;
        WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        MOV R3, R168 ;
        WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        F2FP.RELU.F16.F32.PACK_AB R152, R25, R24 ;
        EXIT ;
"""


def sass(listing: str) -> str:
    """Number the instructions as cuobjdump does, 16 bytes each, and replace labels by addresses."""
    lines, labels, address = [], {}, 0
    for line in listing.splitlines():
        if line.endswith(":"):
            labels[line.strip(" :")] = f"{address:#x}"
            continue
        if line.endswith(" ;"):
            guard, _, rest = line.strip().rpartition("~")
            line = (
                f"        /*{address:04x}*/ {guard:>12} {rest}      /* 0x0000000000007919 */\n{'/* 0x000e22 */':>110}"
            )
            address += 16
        lines.append(line)
    text = "\n".join(lines)
    for label, place in labels.items():
        text = text.replace(label, place)
    return text


def doctored(before: str, *lines: str, end: str = "") -> str:
    """Insert lines before the first one that contains a text, and append some."""
    parts = GOOD.rstrip().splitlines()
    at = next(n for n, line in enumerate(parts) if before in line)
    return sass("\n".join([*parts[:at], *(f"        {line} ;" for line in lines), *parts[at:], end]))


def test_a_good_kernel_passes():
    assert audit_sass.audit(sass(GOOD)) == []


WRITES = [
    ("MOV R152, R3", "R152"),
    ("@!P0~MOV R155, R3", "R155"),  # a predicated instruction may execute
    ("LDG.E.128.CONSTANT R156, desc[UR4][R2.64]", "R156"),
    ("LDG.E.64 R151, desc[UR4][R2.64]", "R152"),
    ("IMAD.WIDE R158, R3, 0x4, R4", "R158"),
    ("SHFL.IDX PT, R157, R3, R4, 0x1f", "R157"),
    ("IADD3 R159, P0, R3, R4, RZ", "R159"),
    ("LDS.64 R152, [R3+0x10]", "R152"),
]


@pytest.mark.parametrize(("line", "register"), WRITES)
def test_a_write_to_operand_a_before_the_wait_is_found(line, register):
    found = audit_sass.audit(doctored("DEPBAR", line))
    assert any(f"writes {register}, operand A, while HGMMA 0x10, 0x20 may run" in text for text in found)


@pytest.mark.parametrize(
    "line",
    [
        "MOV R3, R152",  # a read
        "STG.E.128 desc[UR4][R2.64], R152",
        "STS [R152], R156",
        "ISETP.GE.AND P0, PT, R152, R3, PT",
        "BAR.ARV R152, 0x100",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R152+URZ], R156",
        "R2UR UR4, R152",
        "MOV R170, R3",  # not an operand of these
    ],
)
def test_reads_and_other_registers_are_allowed(line):
    assert audit_sass.audit(doctored("DEPBAR", line)) == []


def test_what_the_first_wait_frees_may_be_written_and_nothing_else():
    assert audit_sass.audit(doctored("MOV R3", "MOV R152, R3")) == []
    assert "R160, operand A" in audit_sass.audit(doctored("MOV R3", "MOV R160, R3"))[0]


def test_a_write_on_another_path_is_found():
    # Placed behind the end, as compilers place rarely executed code.
    away = "AWAY:\n        {} ;\n        BRA BACK ;"
    for line, wrong in (("MOV R160, R3", True), ("MOV R3, R160", False)):
        listing = doctored("MOV R3", "@P0~BRA AWAY", "NOP", end=away.format(line)).replace("BACK", "0x70")
        assert bool(audit_sass.audit(listing)) == wrong


def test_a_write_in_the_next_round_of_a_loop_is_found():
    # Without the last wait the loop returns to its first write while the last group may still run.
    loop = """
    Function : kernel
      ROUND:
        F2FP.RELU.F16.F32.PACK_AB R152, R3, R4 ;
        WARPGROUP.ARRIVE ;
        HGMMA.64x256x16.F32 R24, R152, gdesc[UR4], R24 ;
        HGMMA.64x256x16.F32 R24, R156, gdesc[UR4], R24, gsb0 ;
        WARPGROUP.DEPBAR.LE gsb0, {} ;
        @P0~BRA ROUND ;
        WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        EXIT ;"""
    assert audit_sass.audit(sass(loop.format("0x0"))) == []
    found = audit_sass.audit(sass(loop.format("0x1")))
    assert found == ["kernel: 0x0 F2FP.RELU.F16.F32.PACK_AB writes R152, operand A, while HGMMA 0x20, 0x30 may run"]


def test_a_wait_inside_a_branch_that_joins_again_counts_on_its_own_path_only():
    away = "AWAY:\n        WARPGROUP.DEPBAR.LE gsb0, 0x0 ;\n        BSYNC B0 ;\n"
    listing = doctored("MOV R3", "BSSY B0, 0xa0", "@P0~BRA AWAY", "BSYNC B0", "MOV R160, R3", end=away)
    assert len([line for line in audit_sass.audit(listing) if "0xa0 MOV writes R160" in line]) == 1
    both = listing.replace("@P0 BRA", "    BRA")
    assert audit_sass.audit(both) == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("STL [R1+0x4], R3", "local memory"),
        ("LDL.64 R2, [R1]", "local memory"),
        ("FADD R24, R3, R4", "touches R24, an accumulator"),
        ("STG.E desc[UR4][R2.64], R151", "touches R151, an accumulator"),
        ("CALL.REL.NOINC 0x0", "a call while"),
        ("@P0~EXIT", "the end while"),
    ],
)
def test_other_faults_are_found(line, what):
    assert what in "\n".join(audit_sass.audit(doctored("DEPBAR", line)))


def test_a_group_of_one_that_is_waited_for_alone_is_serialised():
    text = GOOD.replace(
        "R152, gdesc[UR4], R24 ;", "R152, gdesc[UR4], R24, gsb0 ;\n        WARPGROUP.DEPBAR.LE gsb0, 0x0 ;"
    )
    assert "serialised, HGMMA 0x10 is waited for alone" in "".join(audit_sass.audit(sass(text)))


def test_a_register_that_the_warp_gave_back_is_found():
    given = ("USETMAXREG.DEALLOC.CTAPOOL 0x18 ;", "MOV R23, R3 ;", "EXIT ;")
    kept = GOOD.replace("        EXIT ;", "\n".join(f"        {line}" for line in given))
    assert audit_sass.audit(sass(kept)) == []
    for line, register in (("MOV R24, R3", 24), ("MOV R3, R30", 30), ("LDG.E.64 R23, desc[UR4][R2.64]", 24)):
        found = audit_sass.audit(sass(kept.replace("MOV R23, R3", line)))
        assert any(f"R{register}, of 24 registers" in said for said in found), found


def test_a_file_without_products_does_not_pass():
    assert "no HGMMA" in audit_sass.audit("    Function : other\n")[0]
    assert "no HGMMA" in audit_sass.audit("")[0]


def test_a_missing_file_is_said(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(audit_sass, "_cuobjdump", lambda: "false")
    assert audit_sass.main([str(tmp_path / "absent.o")]) == 2
    assert "no machine code" in capsys.readouterr().err


def needs_nvcc():
    why = audit_sass.missing()
    if why and os.environ.get("LIIF_FAST_TEST_NVCC") != "1":
        pytest.skip(why)


@pytest.mark.parametrize(
    ("macro", "faults"),
    [("PLAIN", ()), ("TOUCH", ("ptxas: ", "serialised, HGMMA")), ("SPILL", ("local memory",))],
)
def test_what_the_compiler_makes_is_judged(macro, faults, capsys):
    needs_nvcc()
    assert audit_sass.main([str(SMALL), "-D", macro]) == bool(faults)
    said = capsys.readouterr().out
    assert all(fault in said for fault in faults), said


@pytest.mark.ptx
def test_the_builds_for_a_gpu_pass_too(tmp_path):
    needs_nvcc()
    cubin = tmp_path / "kernel.cubin"
    macros = ["LIIF_KERNEL_ONLY", *gpu_variant.BUILDS.values()]
    assert audit_sass.compile_cubin(hopper_gap.SOURCE, cubin, macros) == []
    assert audit_sass.audit(audit_sass.disassemble(cubin)) == []


@pytest.mark.ptx
def test_the_kernels_pass_and_the_gap_between_tiles_is_hidden(tmp_path):
    needs_nvcc()
    cubin = tmp_path / "kernel.cubin"
    assert audit_sass.compile_cubin(hopper_gap.SOURCE, cubin, ["LIIF_KERNEL_ONLY"]) == []
    sass = audit_sass.disassemble(cubin)
    assert audit_sass.audit(sass) == []
    gaps = [found for _, plan, _, found in hopper_gap.measured(sass) if not plan]
    assert len(gaps) == 8
    assert max(four for _, four, _ in gaps) <= hopper_gap.TURN
    taken, of = hopper_gap.port(sass)
    assert taken <= of

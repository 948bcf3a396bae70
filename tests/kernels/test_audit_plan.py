"""Fused multiply-adds in the corner plan are found in machine code; those elsewhere are not taken for the plan's."""

import pytest

from benchmarks.audit_plan import contractions

CODE = (
    "I2FP.F32.S32 R1, UR4",
    "FADD R2, R0, 1",
    "FMUL R2, R2, R1",
    "FADD R2, R2, -1",
    "F2I.TRUNC.NTZ R3, R2",
    "I2FP.F32.S32 R4, R3",
    "FMUL R4, R4, UR5",
    "FADD R5, R4, UR6",
    "FMUL R6, R5, R5",
    "FADD R7, |R6|, 9.9e-10",
    "@!P1 FSEL R7, R6, R7, P0",
    "MUFU.RCP R8, R7",
    "FCHK P0, R6, R7",
    "FFMA R9, -R7, R8, 1",
    "LDG.E R2, desc[UR2][R10.64]",
    "FFMA R11, R5, R2, R9",
)


def sass(*code):
    lines = [f"        /*{16 * at:04x}*/                   {each} ;" for at, each in enumerate(code)]
    return "\n".join(["\t\tFunction : kernel", *lines])


def changed(**by):
    """Replace lines, by number."""
    return sass(*(by.get(f"at{at}", each) for at, each in enumerate(CODE)))


def test_a_plan_without():
    assert contractions(sass(*CODE)) == []  # the division's, and the network's of rel


@pytest.mark.parametrize(
    ("what", "by"),
    [
        ("the index", {"at3": "FFMA R2, R2, R1, -1"}),
        ("an area", {"at9": "FFMA R7, R5, R5, 9.9e-10"}),
        ("an area, of one side of a predicated choice", {"at8": "FFMA R6, R5, R5, R4"}),
        ("a centre", {"at7": "FFMA R5, R4, UR5, UR6"}),
    ],
)
def test_a_contraction_is_found(what, by):
    (found,) = contractions(changed(**by))
    assert found.split(" ", 1)[1] == by.popitem()[1]


def test_a_centre_whose_rel_makes_no_area():
    code = ("F2I.TRUNC.NTZ R3, R2", "I2FP.F32.S32 R4, R3", "FFMA R5, R4, UR5, UR6", "FFMA R11, R5, R2, R9")
    assert contractions(sass(*code)) == ["0x20 FFMA R5, R4, UR5, UR6"]


def test_wide_registers():
    """Read the second register of a pair on sm_100, and the last of four that a load writes."""
    pair = ("FFMA2 R2, R4.F32x2.HI_LO, UR4.F32x2.HI_LO, -1", "F2I.TRUNC.NTZ R6, R3")
    assert len(contractions(sass(*pair))) == 1
    load = ("F2I.TRUNC.NTZ R3, R2", "I2F R23, R3", "LDG.E.128 R20, [R8.64]", "FFMA R16, R30, R23, R31")
    assert contractions(sass(*load)) == []


def test_a_masked_load_is_a_source():
    code = ("FFMA R2, R5, R6, R7", "@!P0 LDG.E R2, desc[UR2][R10.64]", "FADD R2, R2, 1", "F2I.TRUNC.NTZ R3, R2")
    assert contractions(sass(*code)) == []


def test_a_kernel_without_a_plan():
    with pytest.raises(ValueError, match="no corner plan"):
        contractions(
            sass("I2F.U32.RP R3, R4", "MUFU.RCP R3, R3", "F2I.FTZ.U32.TRUNC.NTZ R4, R3", "FFMA R1, R2, R3, R4")
        )

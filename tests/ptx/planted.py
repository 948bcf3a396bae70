"""Define faults for teeth.py to plant into Triton's compiled kernels: by architecture, {title: (kernel, change)}."""

from __future__ import annotations

from collections.abc import Callable

from tests.ptx.faults import (
    Change,
    contracted,
    cut_to_32_bits,
    edited,
    everywhere,
    guarded,
    moved,
    operand,
    plus,
    removed,
    renamed,
    swapped,
    unguarded,
)
from tests.ptx.parser import Instruction, elements

NOTHING = "{0f00000000,0f00000000,0f00000000,0f00000000}"
LAX = operand("cp.async.wait_group", 0, plus(1))


def other_lane(lane: str) -> str:
    return str(int(lane, 0) ^ 16)


ATTENTION: dict[str, tuple[str, Change]] = {
    "attention: another corner's row": ("attend", operand("shfl.sync.bfly", 2, other_lane)),
    "attention: of the gradient, another lane": ("attend_back", operand("shfl.sync.bfly", 2, other_lane)),
    "attention: of the scores' gradient, another lane": ("attention_back", operand("shfl.sync.bfly", 2, other_lane)),
    "attention: of the scores' gradient, a barrier is missing": ("attention_back", removed("bar.sync", 1)),
    "attention: of the scores' gradient, beside its alignment": ("attention_back", operand("st.global", 0, moved(4))),
    "attention: of the scores' gradient, lanes of a part of a warp": ("attention_back", guarded("shfl")),
    "attention: of the scores' gradient, every row": ("attention_back", everywhere(unguarded, "st.global")),
    "attention: of the scores' gradient, a store cut to 32 bits": ("attention_back", cut_to_32_bits("st.global", 0)),
    "attention: a shuffle by a part of a warp": ("attend_back", guarded("shfl")),
    "attention: of the gradient, a barrier is missing": ("attend_back", removed("bar.sync", 1)),
    "attention: an exponential less": ("attend", renamed("ex2.approx.f32", "mov.b32")),
    "attention: the scale's root less": ("attend", renamed("rsqrt.approx.ftz.f32", "mov.b32")),
    "attention: the load of a latent cut to 32 bits": ("attend", everywhere(cut_to_32_bits, "ld.global", 1)),
    "attention: the store of a gradient cut to 32 bits": ("attend_back", cut_to_32_bits("st.global", 0)),
    "attention: a gradient one element on": ("attend_back", operand("st.global", 0, moved(4))),
    "attention: every row of a gradient": ("attend_back", everywhere(unguarded, "st.global")),
    "attention: no mask of an output": ("attend", unguarded("st.global", -1)),
}
SM80: dict[str, tuple[str, Change]] = {
    **ATTENTION,
    "attention: a barrier is missing": ("attend", removed("bar.sync", 1)),
    "copy: the first wait is lax": ("decode", LAX),
    "copy: the last wait is lax": ("decode", operand("cp.async.wait_group", 0, plus(1), -1)),
    "copy: no first wait": ("decode", removed("cp.async.wait_group")),
    "copy: no last wait": ("decode", removed("cp.async.wait_group", -1)),
    "copy: no commit": ("decode", removed("cp.async.commit_group", -1)),
    "copy: never made": ("decode", removed("cp.async.cg")),
    "copy: half as long": ("decode", operand("cp.async.cg", 3, lambda _: "8")),
    "copy: from one row on": ("decode", operand("cp.async.cg", 1, moved(256))),
    "copy: to the place of another": ("decode", operand("cp.async.cg", 0, moved(64))),
    "copy: of a projection, the wait is lax": ("project", LAX),
    "barrier: of a warp only": ("decode", renamed("bar.sync", "bar.warp.sync", 3)),
    "barrier: reached by a part": ("decode", guarded("bar.sync")),
    "address: cut to 32 bits, load": ("decode", cut_to_32_bits("ld.global", 1)),
    "address: cut to 32 bits, store": ("decode", cut_to_32_bits("st.global", 0)),
    "address: cut to 32 bits, copy": ("decode", cut_to_32_bits("cp.async.cg", 1)),
    "address: cut to 32 bits, atomic": ("atomic", cut_to_32_bits("atom", 1)),
    "address: beside its alignment": ("decode", operand("ld.global.v4", 1, moved(4))),
    "address: beyond the tensor": ("decode", operand("ld.global.v4", 1, moved(4096))),
    "address: one element on": ("decode", operand("st.global", 0, moved(4))),
    "mask: a load without": ("decode", everywhere(unguarded, "ld.global.b32")),
    "mask: a store without": ("decode", unguarded("st.global", -1)),
    "mask: off by one": ("decode", everywhere(renamed, "setp.lt.s64", "setp.le.s64")),
    "mask: off by one, every row of a gradient": ("chain", renamed("setp.lt.s32", "setp.le.s32")),
    "shared: another swizzle": ("decode", operand("xor.b32", 2, lambda _: "16", 12)),
    "shared: written one line on": ("decode", operand("st.shared.v4.b16", 0, moved(16))),
    "shared: read beyond the end": ("decode", operand("ld.shared", 1, moved(1 << 16))),
    "shared: never written": ("chain", removed("st.shared.v4.b16", -1)),
    "matrix: not transposed": (
        "decode", renamed("ldmatrix.sync.aligned.m8n8.x4.trans", "ldmatrix.sync.aligned.m8n8.x4.shared.b16")
    ),
    "matrix: two fragments exchanged": ("decode", swapped("mma", 1)),
    "matrix: nothing is added up": ("decode", operand("mma", 3, lambda _: NOTHING, -2)),
    "matrix: one product is missing": ("decode", removed("mma")),
    "matrix: by a part of a warp": ("decode", guarded("mma")),
    "shuffle: another lane": ("decode", operand("shfl", 2, other_lane)),
    "shuffle: by a part of a warp": ("decode", guarded("shfl")),
    "branch: the block divides": ("decode", guarded("bra")),
    "relu: NaN is lost": ("decode", renamed("max.NaN.f32", "max.f32")),
    "relu: of the gradient, other side": ("chain", renamed("setp.le.f16", "setp.ge.f16")),
    "atomic: lost": ("atomic", removed("atom")),
    "plan: contracted": ("gather", contracted),
    "register: never written": ("gather", removed("add.rn.f32", 5)),
    "waves: of the latent's other half": ("fourier", operand("ld.global.v4", 1, moved(16))),
    "waves: a half turn less": ("fourier", operand("and.b32", 2, lambda _: "0")),
    "waves: a part of the angle is lost": ("fourier", operand("fma.rn.f32", 2, lambda _: "0f00000000")),
    "waves: back, a frequency's other part": ("waves_back", operand("st.global.v4", 0, moved(16))),
    "waves: back, a sum of rows is cut": ("waves_back", removed("shfl")),
    "waves: back, a row without a mask": ("waves_back", everywhere(unguarded, "st.global")),
    "gather: a neighbour's tap": ("gather", operand("ld.global", 1, moved(4), -1)),
    "sum: one row on": ("segment", operand("ld.global.b64", 1, moved(8), -1)),
}  # fmt: skip

WGMMA = "wgmma.mma_async"
STMATRIX = "stmatrix.sync.aligned.m8n8.x4"


def descriptor(added: int, of: int = 2) -> Callable[[Instruction], list[Instruction]]:
    """Change a descriptor, of B or A: bits 0 to 13 are its address / 16, 32 to 45 its stride, 62 and 63 its swizzle."""

    def edit(each: Instruction) -> list[Instruction]:
        operands = list(each.operands)
        changed = Instruction("", False, ("add", "s64"), ("%rd9999", operands[of], str(added)))
        operands[of] = "%rd9999"
        return [changed, each._replace(operands=tuple(operands))]

    return edit


def in_flight(index: int, opcode: str, *operands: str) -> Callable[[Instruction], list[Instruction]]:
    """Insert an instruction behind a product; %0 means the first register of its operand `index`."""

    def edit(each: Instruction) -> list[Instruction]:
        register = elements(each.operands[index])[0]
        named = tuple(text.replace("%0", register) for text in operands)
        return [each, Instruction("", False, tuple(opcode.split(".")), named)]

    return edit


SM90: dict[str, tuple[str, Change]] = {
    **ATTENTION,
    "copy: the wait is lax": ("decode", operand("cp.async.wait_group", 0, plus(1))),
    "copy: no wait": ("decode", removed("cp.async.wait_group")),
    "copy: of a projection, the wait is lax": ("project", LAX),
    "copy: to the place of another": ("decode", operand("cp.async.cg", 0, moved(64))),
    "barrier: of a warp only": ("decode", renamed("bar.sync", "bar.warp.sync", 3)),
    "barrier: reached by a part": ("decode", guarded("bar.sync")),
    "address: cut to 32 bits, copy": ("decode", cut_to_32_bits("cp.async.cg", 1)),
    "address: cut to 32 bits, atomic": ("atomic", cut_to_32_bits("atom", 1)),
    "atomic: of four, one element on": ("atomic", operand("atom", 1, moved(4))),
    "atomic: lost": ("atomic", removed("atom")),
    "products: one is missing": ("decode", removed(WGMMA, 2)),
    "products: by a part of a warp": ("decode", guarded(WGMMA)),
    "products: by a part of the block": ("chain", guarded(WGMMA, threads=32)),
    "products: nothing is added up": ("decode", operand(WGMMA, 3, lambda _: "0", 2)),
    "products: the start is added": ("chain", operand(WGMMA, 3, lambda _: "1")),
    "products: B is not transposed": ("decode", operand(WGMMA, 7, lambda _: "0", 1)),
    "products: A is transposed": ("decode", operand(WGMMA, 6, lambda _: "1", 1)),
    "products: two accumulators exchanged": ("decode", everywhere(swapped, WGMMA, 0)),
    "products: no wait": ("decode", removed("wgmma.wait_group", 1)),
    "products: no last wait": ("decode", removed("wgmma.wait_group", -1)),
    "products: the wait is lax": ("decode", operand("wgmma.wait_group", 0, plus(1), 1)),
    "products: the last wait is lax": ("chain", operand("wgmma.wait_group", 0, plus(1), -1)),
    "products: no commit": ("decode", removed("wgmma.commit_group", -1)),
    "products: no fence of registers": ("project", removed("wgmma.fence")),
    "products: an accumulator read": ("decode", edited(WGMMA, 0, in_flight(0, "add.f32", "%r9999", "%0", "%0"))),
    "products: an accumulator written": ("chain", edited(WGMMA, 0, in_flight(0, "mov.b32", "%0", "0"))),
    "descriptor: another step of A": ("decode", edited(WGMMA, 1, descriptor(2, of=1))),
    "descriptor: another step": ("decode", edited(WGMMA, 1, descriptor(128))),
    "descriptor: 16 bytes on": ("project", edited(WGMMA, 0, descriptor(1))),
    "descriptor: another stride": ("decode", edited(WGMMA, 0, descriptor(1 << 33))),
    "descriptor: another swizzle": ("decode", edited(WGMMA, 0, descriptor(1 << 62))),
    "descriptor: no swizzle": ("decode", edited(WGMMA, 0, descriptor(3 << 62))),
    "descriptor: beyond shared memory": ("decode", edited(WGMMA, 0, descriptor(0x2000))),
    "matrix: stored one line on": ("decode", operand(STMATRIX, 0, moved(128))),
    "matrix: stored beside its alignment": ("decode", operand(STMATRIX, 0, moved(8))),
    "matrix: stored transposed": ("decode", renamed(STMATRIX, STMATRIX + ".trans", 1)),
    "matrix: not stored": ("decode", removed(STMATRIX, 2)),
    "matrix: two fragments exchanged": ("chain", swapped(STMATRIX, 1)),
    "relu: NaN is lost": ("decode", renamed("max.NaN.f32", "max.f32")),
    "plan: contracted": ("gather", contracted),
    "waves: no wait for a product": ("fourier", removed("wgmma.wait_group", 1)),
    "waves: a part of the angle is lost": ("fourier", operand("fma.rn.f32", 2, lambda _: "0f00000000")),
    "waves: back, a row without a mask": ("waves_back", everywhere(unguarded, "st.global")),
}  # fmt: skip
TABLES = {80: SM80, 90: SM90}

# Barriers without which the results stay right while all warps advance together: (kernel, number).
HIDDEN = {
    80: (("decode", 5), ("decode", 17), ("project", 1), ("fourier", 16), ("attend", 0)),
    90: (("decode", 5), ("decode", 19), ("project", 1), ("fourier", 0), ("attend", 0)),
}

"""Define the faults to plant into the compiled Hopper kernel, each with the way in which it must be found."""

from __future__ import annotations

from ..faults import (
    Change,
    cut_to_32_bits,
    edited,
    everywhere,
    guarded,
    moved,
    operand,
    plus,
    positions,
    removed,
    renamed,
    replaced,
    swapped,
    unguarded,
)
from ..parser import Instruction, Program, elements

TRY, WGMMA, COMMIT = "mbarrier.try_wait", "wgmma.mma_async", "wgmma.commit_group"
ARRIVE = {1: "mbarrier.arrive.shared::cta", 2: "mbarrier.arrive.shared::cluster"}
EXPECT, COPY, INIT = "mbarrier.arrive.expect_tx", "cp.async.bulk", "mbarrier.init"
RACE, DEADLOCK, OTHER = "a race", "deadlock", "other results"


def instruction(text: str, *operands: str) -> Instruction:
    return Instruction("", False, tuple(text.split(".")), operands)


def lax(number: int) -> Change:
    """Let a wait for a barrier pass at once."""
    return edited(TRY, number, lambda each: [instruction("setp.eq.u32", each.operands[0], "0", "0")])


def flipped(number: int) -> Change:
    """Let it wait for the other phase."""

    def change(each: Instruction) -> list[Instruction]:
        other = instruction("xor.b32", "%r99998", each.operands[2], "1")
        return [other, each._replace(operands=(*each.operands[:2], "%r99998"))]

    return edited(TRY, number, change)


def delayed(opcode: str, number: int, behind: str, other: int) -> Change:
    """Move an instruction behind another one further down."""

    def change(program: Program) -> Program:
        moving = program.code[positions(program, opcode)[number]]
        place = positions(program, behind)[other]
        assert place > positions(program, opcode)[number]
        return removed(opcode, number)(replaced(program, place, program.code[place], moving))

    return change


def result_cut(each: Instruction) -> list[Instruction]:
    """Cut a product of 64 bits to its low 32."""
    target = each.operands[0]
    return [each, instruction("and.b64", target, target, "0xFFFFFFFF")]


def in_flight(index: int, text: str, *operands: str) -> Change:
    """Put an instruction among products; %0 stands for the first register of their operand `index`."""

    def change(program: Program) -> Program:
        register = elements(program.code[positions(program, WGMMA)[0]].operands[index])[0]
        own = instruction(text, *(each.replace("%0", register) for each in operands))
        return edited(COMMIT, 0, lambda each: [each, own])(program)

    return change


def descriptor(bits: int) -> Change:
    """Change bits of the matrix descriptor of a product."""

    def change(each: Instruction) -> list[Instruction]:
        first, second, given, *rest = each.operands
        other = instruction("xor.b64", "%rd99999", given, str(bits))
        return [other, each._replace(operands=(first, second, "%rd99999", *rest))]

    return edited(WGMMA, 1, change)


def given(opcode: str, number: int, index: int, text: str) -> Change:
    return operand(opcode, index, lambda _: text, number)


def both(*changes: Change) -> Change:
    def change(program: Program) -> Program:
        for each in changes:
            program = each(program)
        return program

    return change


def other_turn(each: Instruction) -> list[Instruction]:
    """Name the other of the two barriers of turns."""
    number, threads = each.operands
    return [instruction("xor.b32", "%r99999", number, "3"), each._replace(operands=("%r99999", threads))]


def cut_offsets(program: Program) -> Program:
    return everywhere(lambda opcode, number: edited(opcode, number, result_cut), "mul.lo.s64")(program)


# What the loading warp executes with two products is unrolled: of its waits, arrivals and copies the first eight.
LAST = 7
# The last four waits for a barrier are those of a layer's slices.
PLAIN: dict[str, tuple[Change, str]] = {
    **{f"full barrier: the wait for slice {i} is lax": (lax(i - 4), "") for i in range(4)},
    **{f"full barrier: the wait for slice {i} is for the other phase": (flipped(i - 4), "") for i in range(4)},
    "empty barrier: the waits are lax": (both(*map(lax, reversed(range(LAST + 1)))), ""),
    "empty barrier: a wait is for the other phase": (flipped(0), ""),
    "full barrier: the bytes of an arrival are not expected": (given(EXPECT, LAST, 2, "0"), ""),
    "full barrier: more bytes are expected": (given(EXPECT, LAST, 2, "32784"), DEADLOCK),
    "full barrier: fewer bytes are expected": (given(EXPECT, LAST, 2, "16384"), ""),
    "full barrier: nobody arrives": (removed(EXPECT, LAST), DEADLOCK),
    "full barrier: two arrivals are expected": (given(INIT, 0, 1, "2"), DEADLOCK),
    "full barrier: not made": (removed(INIT, 0), "initialised"),
    "full barrier: of the next stage": (operand(EXPECT, 1, moved(8), LAST), ""),
    "empty barrier: one warp less": (given(INIT, 1, 1, "7"), ""),
    "empty barrier: free after four warps": (given(INIT, 1, 1, "4"), ""),
    "empty barrier: one warp more": (given(INIT, 1, 1, "9"), DEADLOCK),
    "empty barrier: not made": (removed(INIT, 1), "initialised"),
    **{f"stage {i} of a layer: never handed back": (removed(ARRIVE[1], i), "") for i in range(4)},
    **{f"stage {i} of a layer: handed back before the wait":
        (delayed("wgmma.wait_group", i, ARRIVE[1], i), RACE) for i in range(4)},
    "stage: handed back by every lane": (unguarded(ARRIVE[1]), ""),
    "stage: another one is handed back": (operand(ARRIVE[1], 1, moved(8)), ""),
    **{f"products: wait {i} is lax": (operand("wgmma.wait_group", 0, plus(1), i), "") for i in range(4)},
    **{f"products: no wait {i}": (removed("wgmma.wait_group", i), "") for i in (0, 1, 3)},
    **{f"products: no commit {i}": (removed(COMMIT, i), "") for i in range(4)},
    "products: no fence before the first": (removed("wgmma.fence"), "wgmma.fence"),
    "products: one is missing": (removed(WGMMA, 5), OTHER),
    "products: by a part of a warp": (guarded(WGMMA, 2), "part of it"),
    "products: a wait by a part of a warp": (guarded("wgmma.wait_group", 1), "part of it"),
    "products: two registers of A exchanged": (swapped(WGMMA, 1, 3), "different products|other results"),
    "products: two accumulators exchanged": (everywhere(swapped, WGMMA, 0), OTHER),
    "products: an accumulator read in flight": (in_flight(0, "add.f32", "%f99999", "%0", "%0"), "writes it"),
    "products: an operand written in flight": (in_flight(1, "mov.u32", "%0", "0"), "uses it"),
    "descriptor: another step": (descriptor(2), OTHER),
    "descriptor: another stride": (descriptor(96 << 32), OTHER),
    "descriptor: another swizzle": (descriptor(3 << 62), OTHER),
    "descriptor: no swizzle": (descriptor(1 << 62), "descriptor"),
    "fence: none between the bias and its next copy": (removed("fence.proxy", -1), RACE),
    "fence: none behind the making of barriers": (
        both(removed("fence.proxy"), removed("fence.mbarrier_init")), "initialised"),
    "block: does not meet": (removed("bar.sync"), ""),
    "block: meets by parts of warps": (guarded("bar.sync"), "part of it"),
    "turn: the partner's is waited for": (edited("bar.sync", -1, other_turn), ""),
    "turn: the first is not given": (removed("bar.arrive"), DEADLOCK),
    "turn: not given": (removed("bar.arrive", -1), DEADLOCK),
    "turn: one's own is given": (edited("bar.arrive", -1, other_turn), ""),
    "turn: given by a part of a warp": (guarded("bar.arrive", -1), "part of it"),
    "turn: of half as many threads": (given("bar.sync", -1, 1, "128"), "named barrier"),
    "registers: none are given back": (removed("setmaxnreg.dec"), DEADLOCK),
    "registers: more than there are": (given("setmaxnreg.inc", 0, 0, "248"), DEADLOCK),
    "registers: by a part of a warp": (guarded("setmaxnreg.inc"), "part of it"),
    "copy: never made": (removed(COPY, LAST), DEADLOCK),
    "copy: half as long": (given(COPY, LAST, 2, "16384"), DEADLOCK),
    "copy: from one row on": (operand(COPY, 1, moved(128), LAST), OTHER),
    "copy: into the next stage": (operand(COPY, 0, moved(33792), LAST), ""),
    "copy: beside its alignment": (operand(COPY, 0, moved(8), LAST), "aligned"),
    "copy: tells the next stage's barrier": (operand(COPY, 3, moved(8), LAST), ""),
    "copy: made twice": (edited(COPY, LAST, lambda each: [each, each]), RACE),
    "address: cut to 32 bits, copy": (cut_to_32_bits(COPY, 1, LAST), "outside"),
    "address: cut to 32 bits, gather": (cut_to_32_bits("ld.global.nc", 1), "outside"),
    "address: cut to 32 bits, coordinates": (cut_to_32_bits("ld.global.f32", 1, -1), "outside"),
    "address: cut to 32 bits, store": (cut_to_32_bits("st.global", 0, -1), "outside"),
    "offset: cut to 32 bits": (cut_offsets, "outside"),
    "gather: a neighbour's piece": (operand("ld.global.nc", 1, moved(16)), OTHER),
    "gather: beside its alignment": (operand("ld.global.nc", 1, moved(4)), "aligned"),
    "table: one column on": (operand("ld.shared.v4", 1, moved(16), 2), OTHER),
    "table: not written": (removed("st.shared", 0), "never written"),
    "shared: read beyond the end": (operand("ld.shared.v4", 1, moved(1 << 16)), "outside"),
    "relu: none": (everywhere(renamed, "cvt.rn.relu", "cvt.rn.f16x2.f32"), OTHER),
    "first layer: one product is missing": (removed("mma", 1), OTHER),
    "first layer: two channels exchanged": (swapped("mma", 0), OTHER),
    "last layer: one product is missing": (removed("mma", -1), OTHER),
    "last layer: two rows exchanged": (swapped("mma", 1, -1), OTHER),
    "last layer: two columns exchanged": (swapped("mma", 0, -1), OTHER),
    "last layer: by a part of a warp": (guarded("mma", -1), "part of it"),
    "shuffle: another lane": (given("shfl.sync.bfly", 0, 2, "8"), OTHER),
    "shuffle: by a part of a warp": (guarded("shfl.sync.bfly"), "part of it"),
    "store: one channel on": (operand("st.global", 0, moved(4), -1), ""),
}  # fmt: skip

PAIRS: dict[str, tuple[Change, str]] = {
    "cluster: blocks do not meet first": (
        both(removed("barrier.cluster.arrive"), removed("barrier.cluster.wait")), "initialised"),
    "cluster: blocks do not meet last": (
        both(removed("barrier.cluster.arrive", -1), removed("barrier.cluster.wait", -1)), "may have ended"),
    "cluster: arrivals stay in the first block": (given("mapa", 0, 2, "0"), ""),
    "cluster: arrivals at a third block": (
        edited("mapa", 1, lambda each: [instruction("add.u32", each.operands[2], each.operands[2], "1"), each]),
        "not in the cluster"),
    "cluster: a stage is free after one block's warps": (given(INIT, 1, 1, "8"), ""),
    "cluster: copies into the first block alone": (given(COPY, LAST, 4, "1"), DEADLOCK),
    "cluster: one share of the bytes is expected": (given(EXPECT, LAST, 2, "16384"), ""),
    "cluster: a share in the place of the other": (operand(COPY, 0, moved(16384), LAST), ""),
    "cluster: no wait for the peer": (lambda p: everywhere(lambda _, n: lax(n), TRY)(p), ""),
    "cluster: a wait for a stage is for the other phase": (flipped(-1), DEADLOCK),
    "cluster: a stage handed back before the wait": (delayed("wgmma.wait_group", 0, ARRIVE[2], 0), RACE),
    "cluster: the bias is not fenced": (removed("fence.proxy", -1), RACE),
}  # fmt: skip

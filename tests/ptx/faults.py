"""Plant faults into a program; each function returns a changed copy of it."""

from __future__ import annotations

from collections.abc import Callable

from .parser import Instruction, Program, elements

Change = Callable[[Program], Program]


def positions(program: Program, opcode: str) -> list[int]:
    """Return the positions of instructions whose opcode begins like this."""
    wanted = tuple(opcode.split("."))
    return [at for at, each in enumerate(program.code) if each.opcode[: len(wanted)] == wanted]


def replaced(program: Program, at: int, *instructions: Instruction) -> Program:
    """Replace an instruction by others, and move the labels behind it."""
    shift = len(instructions) - 1
    labels = {name: place + shift if place > at else place for name, place in program.labels.items()}
    return program._replace(code=[*program.code[:at], *instructions, *program.code[at + 1 :]], labels=labels)


def edited(opcode: str, number: int, edit: Callable[[Instruction], list[Instruction]]) -> Change:
    """Change instruction `number` of those with an opcode."""

    def change(program: Program) -> Program:
        at = positions(program, opcode)[number]
        return replaced(program, at, *edit(program.code[at]))

    return change


def removed(opcode: str, number: int = 0) -> Change:
    return edited(opcode, number, lambda each: [])


def renamed(opcode: str, other: str, number: int = 0) -> Change:
    """Give an instruction another opcode."""
    return edited(opcode, number, lambda each: [each._replace(opcode=tuple(other.split(".")))])


def operand(opcode: str, index: int, edit: Callable[[str], str], number: int = 0) -> Change:
    """Change one operand."""

    def change(each: Instruction) -> list[Instruction]:
        operands = list(each.operands)
        operands[index] = edit(operands[index])
        return [each._replace(operands=tuple(operands))]

    return edited(opcode, number, change)


def moved(bytes_: int) -> Callable[[str], str]:
    """Shift an address."""

    def edit(address: str) -> str:
        base, _, offset = address.strip("[] ").partition("+")
        return f"[{base.strip()}+{int(offset or 0) + bytes_}]"

    return edit


def plus(number: int) -> Callable[[str], str]:
    return lambda text: str(int(text, 0) + number)


def unguarded(opcode: str, number: int = 0) -> Change:
    return edited(opcode, number, lambda each: [each._replace(guard="", negated=False)])


def guarded(opcode: str, number: int = 0, threads: int = 1) -> Change:
    """Disable an instruction in the first threads of the block."""
    test = Instruction("", False, ("setp", "ge", "u32"), ("%p9999", "%tid.x", str(threads)))
    return edited(opcode, number, lambda each: [test, each._replace(guard="%p9999", negated=False)])


def cut_to_32_bits(opcode: str, index: int, number: int = 0) -> Change:
    """Cut the address that an access takes to its low 32 bits."""

    def change(each: Instruction) -> list[Instruction]:
        base, _, offset = each.operands[index].strip("[] ").partition("+")
        cut = Instruction("", False, ("and", "b64"), ("%rd9999", base.strip(), "0xFFFFFFFF"))
        operands = list(each.operands)
        operands[index] = f"[%rd9999+{offset.strip() or 0}]"
        return [cut, each._replace(operands=tuple(operands))]

    return edited(opcode, number, change)


def swapped(opcode: str, index: int, number: int = 0) -> Change:
    """Exchange the first two registers of a vector operand."""

    def edit(text: str) -> str:
        first, second, *rest = elements(text)
        return "{" + ", ".join([second, first, *rest]) + "}"

    return operand(opcode, index, edit, number)


def contracted(program: Program) -> Program:
    """Fuse each product into the sum that uses it, as a compiler may unless told otherwise."""
    products = {each.operands[0]: each for each in program.code if each.opcode == ("mul", "rn", "f32")}
    code = []
    for each in program.code:
        taken = [source for source in each.operands[1:] if source in products]
        if each.opcode == ("add", "rn", "f32") and taken:
            first, second = each.operands[1:]
            addend = second if taken[0] == first else first
            sources = (*products[taken[0]].operands[1:], addend)
            each = Instruction("", False, ("fma", "rn", "f32"), (each.operands[0], *sources))
        code.append(each)
    return program._replace(code=code)


def everywhere(change: Callable[..., Change], opcode: str, *args: object) -> Change:
    """Apply a change to all instructions of an opcode, from the last to the first."""

    def changed(program: Program) -> Program:
        for number in reversed(range(len(positions(program, opcode)))):
            program = change(opcode, *args, number)(program)
        return program

    return changed

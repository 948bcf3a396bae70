"""The ring of weight slices and the turns of csrc/cuda/decode_sm90.cu, run in every order that the hardware may choose.

A model: one actor loads, the warps of two warpgroups compute; each is the list of what it does. From every state every
step that can be taken is tried: an actor goes on, or a copy lands. So what holds here holds for any speed of anything.
A product counts as reading its stage from its issue to the wait for it, a copy as writing from issue to landing.
Shown: nobody is stuck, nobody reads what is not its slice, nothing is overwritten that somebody reads, a warpgroup has
the matrix unit for itself in its turn, and no barrier is left half full. And each of them fails when a step is wrong.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

LAYOUT = Path(__file__).parents[2] / "csrc" / "cuda" / "layout.h"
Step = tuple  # what, and with what


class Setting(NamedTuple):
    stages: int = 6
    slices: int = 4  # of a product
    products: int = 2
    tiles: int = 2
    warps: int = 1  # of a warpgroup; four in the kernel, and fewer make fewer states


class State(NamedTuple):
    at: tuple[int, ...]  # each actor's next step; actor 0 loads
    content: tuple  # of a stage: number of the slice, or None while it is written
    copies: frozenset  # (stage, number) on their way
    full: tuple[int, ...]  # phases completed
    empty: tuple[tuple[int, int], ...]  # phases completed, arrivals in this one
    turns: tuple[tuple[int, frozenset], ...]  # arrivals at the named barrier, actors that wait there


def loader(s: Setting) -> list[Step]:
    steps = []
    for number in range(s.tiles * s.products * s.slices):
        stage, parity = number % s.stages, number // s.stages % 2
        steps += [("empty", stage, parity ^ 1), ("copy", stage, number)]
    return steps


def warp(s: Setting, group: int) -> list[Step]:
    steps: list[Step] = [("give", 0)] if group == 1 else []
    number = 0
    for layer in range(s.tiles * s.products):
        last = layer == s.tiles * s.products - 1
        before = None
        for n in range(s.slices):
            stage, parity = number % s.stages, number // s.stages % 2
            steps.append(("full", stage, parity))
            if n == 0:
                steps += [("bias", stage, number), ("turn", group)]
            steps.append(("issue", stage, number))
            if n > 0:
                steps += [("wait", 1), ("arrive", before)]
            before = stage
            number += 1
        if group == 0 or not last:
            steps.append(("give", 1 - group))
        steps += [("wait", 0), ("arrive", before)]
    return steps


def programs(s: Setting) -> list[list[Step]]:
    return [loader(s), *(warp(s, group) for group in (0, 1) for _ in range(s.warps))]


def in_hand(steps: list[Step]) -> list[tuple[frozenset, bool]]:
    """Return, before each step and after the last, the stages that products read and whether it is the actor's turn."""
    stages: list[int] = []
    turn, rows = False, []
    for what, *more in steps:
        rows.append((frozenset(stages), turn))
        if what == "issue":
            stages.append(more[0])
        elif what == "wait":
            stages = stages[len(stages) - more[0] :]
        elif what in ("turn", "give"):
            turn = what == "turn"
    return [*rows, (frozenset(stages), turn)]


def explore(s: Setting, steps: list[list[Step]] | None = None, arrivals: int | None = None) -> str:
    """Run all orders; return what goes wrong in any of them, a line each, "" if nothing does."""
    steps = steps or programs(s)
    arrivals = arrivals or 2 * s.warps
    hands = [in_hand(part) for part in steps]
    nobody = ((0, frozenset()),) * 2
    start = State((0,) * len(steps), (None,) * s.stages, frozenset(), (0,) * s.stages, ((0, 0),) * s.stages, nobody)
    seen, todo, wrong = {start}, [start], set()
    while todo:
        state = todo.pop()
        following: list[State] = []
        failed = ""
        for stage, number in state.copies:
            landed = state._replace(
                copies=state.copies - {(stage, number)},
                content=put(state.content, stage, number),
                full=put(state.full, stage, state.full[stage] + 1),
            )
            following.append(landed)
        for actor in range(len(steps)):
            result = go(s, state, actor, steps, hands, arrivals)
            if isinstance(result, str):
                failed = result
                wrong.add(failed)  # this step leads no further
            else:
                following += result
        if not following and not failed:
            if any(at < len(part) for at, part in zip(state.at, steps, strict=True)):
                wrong.add(f"stuck: {[part[at] for at, part in zip(state.at, steps, strict=True) if at < len(part)]}")
            elif any(count for count, _ in state.turns):
                wrong.add("a turn is left over")
        fresh = [new for new in dict.fromkeys(following) if new not in seen]
        seen.update(fresh)
        todo += fresh
    return "\n".join(sorted(wrong))


def go(s: Setting, state: State, actor: int, steps, hands, arrivals: int) -> list[State] | str:
    """Return the states after an actor's next step: none if it has to wait, or what is wrong with it."""
    at = state.at[actor]
    if at == len(steps[actor]) or any(actor in waiting for _, waiting in state.turns):
        return []
    what, *more = steps[actor][at]
    after = state._replace(at=put(state.at, actor, at + 1))
    if what in ("full", "empty"):  # mbarrier.try_wait.parity: has the phase of this parity completed?
        stage, parity = more
        phase = state.full[stage] if what == "full" else state.empty[stage][0]
        return [after] if phase % 2 != parity else []
    if what == "copy":
        stage, number = more
        if any(stage in hand[place][0] for hand, place in zip(hands, state.at, strict=True)):
            return f"overwrites stage {stage} with slice {number} while a product reads it"
        if any(stage == other for other, _ in state.copies):
            return f"two copies into stage {stage}"
        return [after._replace(content=put(state.content, stage, None), copies=state.copies | {(stage, number)})]
    if what in ("issue", "bias"):
        stage, number = more
        if state.content[stage] != number:
            return f"{what} of slice {number} finds {state.content[stage]} in stage {stage}"
        if what == "issue" and not hands[actor][at][1]:
            return f"slice {number} is issued out of turn"
    elif what == "arrive":
        phase, count = state.empty[more[0]]
        now = (phase + 1, 0) if count + 1 == arrivals else (phase, count + 1)
        return [after._replace(empty=put(state.empty, more[0], now))]
    elif what in ("turn", "give"):
        count, waiting = state.turns[more[0]]
        count += 1
        if what == "turn":
            waiting, after = waiting | {actor}, state
        if count == 2 * s.warps:  # the named barrier opens: all that wait go on
            for other in range(1, len(steps)):
                theirs = (other - 1) // s.warps != more[0]
                if theirs and hands[other][after.at[other]][1]:
                    return f"warpgroup {more[0]} gets the turn that warpgroup {1 - more[0]} has"
            places = tuple(place + (n in waiting) for n, place in enumerate(after.at))
            return [after._replace(at=places, turns=put(state.turns, more[0], (0, frozenset())))]
        return [after._replace(turns=put(state.turns, more[0], (count, waiting)))]
    return [after]


def put(values: tuple, at: int, value) -> tuple:
    return (*values[:at], value, *values[at + 1 :])


@pytest.mark.parametrize("stages", [4, 5, 6, 7])
@pytest.mark.parametrize(("products", "tiles"), [(1, 1), (1, 3), (2, 2), (3, 1), (3, 2)])
def test_every_order_ends_well(stages, products, tiles):
    assert explore(Setting(stages=stages, products=products, tiles=tiles)) == ""


def test_two_warps_of_a_warpgroup_may_drift_apart():
    assert explore(Setting(stages=4, products=2, tiles=1, warps=2)) == ""


def test_the_kernel_has_a_setting_shown_here():
    source = LAYOUT.read_text()
    stages = int(re.search(r"\bkStages = (\d+);", source)[1])
    width, of_slice = (int(re.search(rf"\b{name} = (\d+)[,;]", source)[1]) for name in ("kHidden", "kSliceK"))
    assert width // of_slice == Setting().slices
    assert 4 <= stages <= 7


# ---- With one thing wrong, something goes wrong.


def each_warp(s: Setting, change) -> list[list[Step]]:
    load, *warps = programs(s)
    return [load, *(change(group, part) for group, part in enumerate(warps))]


def without(steps: list[Step], step: Step, which: int = 0) -> list[Step]:
    at = [n for n, other in enumerate(steps) if other == step][which]
    return [*steps[:at], *steps[at + 1 :]]


SMALL = Setting(stages=4, tiles=1, products=2)


def test_a_ring_smaller_than_a_layer_is_stuck():
    # Warpgroup 0 needs the whole layer before it gives the turn; warpgroup 1 keeps the first stage until then.
    assert re.search(r"(?m)^stuck", explore(Setting(stages=3)))


@pytest.mark.parametrize("group", [0, 1])
def test_stages_never_handed_back_are_stuck(group):
    steps = each_warp(SMALL, lambda g, part: [p for p in part if p[0] != "arrive"] if g == group else part)
    assert re.search(r"(?m)^stuck", explore(SMALL, steps))


def test_a_stage_free_after_one_warpgroup_is_overwritten():
    assert re.search(r"(?m)^overwrites", explore(SMALL, arrivals=1))


def test_a_stage_handed_back_before_the_wait_is_overwritten():
    def early(group, part):
        part = list(part)
        for n in range(len(part) - 1):
            if part[n][0] == "wait" and part[n + 1][0] == "arrive":
                part[n], part[n + 1] = part[n + 1], part[n]
        return part

    assert re.search(r"(?m)^overwrites", explore(SMALL, each_warp(SMALL, early)))


def test_the_stage_of_the_group_under_way_must_not_be_handed_back():
    # A wait for all groups but the latest frees the stage before, not the latest's own.
    def current(group, part):
        changed = []
        for step in part:
            changed += [step, ("arrive", step[1])] if step[0] == "issue" else [] if step[0] == "arrive" else [step]
        return changed

    assert re.search(r"(?m)^overwrites", explore(SMALL, each_warp(SMALL, current)))


def test_a_loader_that_waits_for_the_other_parity_fails():
    load, *warps = programs(SMALL)
    wrong = [(what, more[0], more[1] ^ 1) if what == "empty" else (what, *more) for what, *more in load]
    assert re.search(r"(?m)^stuck", explore(SMALL, [wrong, *warps]))


def test_a_loader_that_does_not_wait_overwrites():
    load, *warps = programs(SMALL)
    assert re.search(
        r"(?m)^(overwrites|two copies|issue|bias)", explore(SMALL, [[p for p in load if p[0] != "empty"], *warps])
    )


@pytest.mark.parametrize("slice_", range(4))
def test_a_slice_read_without_waiting_is_not_there(slice_):
    steps = each_warp(SMALL, lambda g, part: without(part, ("full", slice_, 0)) if g == 0 else part)
    assert re.search(r"(?m)^(issue|bias)", explore(SMALL, steps))


def test_a_wait_of_the_wrong_pass_reads_the_slice_before():
    steps = each_warp(SMALL, lambda g, part: [("full", p[1], 0) if p[0] == "full" else p for p in part])
    assert re.search(r"(?m)^(issue|bias|stuck)", explore(SMALL, steps))


def test_a_first_turn_that_nobody_gives_is_stuck():
    steps = each_warp(SMALL, lambda g, part: without(part, ("give", 0)) if g == 1 else part)
    assert re.search(r"(?m)^stuck", explore(SMALL, steps))


@pytest.mark.parametrize("which", [0, 1])
def test_a_turn_not_given_is_stuck(which):
    steps = each_warp(SMALL, lambda g, part: without(part, ("give", 1), which) if g == 0 else part)
    assert re.search(r"(?m)^stuck", explore(SMALL, steps))


def test_a_last_turn_given_to_nobody_is_left_over():
    steps = each_warp(SMALL, lambda g, part: [*part, ("give", 0)] if g == 1 else part)
    assert explore(SMALL, steps) == "a turn is left over"


def test_a_turn_given_before_the_last_product_is_noticed():
    def early(group, part):
        last = [n for n, step in enumerate(part) if step[0] == "issue"][3]
        return [*part[:last], ("give", 1), *without(part[last:], ("give", 1))] if group == 0 else part

    assert "out of turn" in explore(SMALL, each_warp(SMALL, early))


def test_a_turn_that_the_partner_did_not_give_is_noticed():
    # Warpgroup 1 opens its own barrier.
    steps = each_warp(SMALL, lambda g, part: [("give", 1), *part] if g == 1 else part)
    assert re.search(r"(?m)^warpgroup 1 gets the turn that warpgroup 0 has", explore(SMALL, steps))

"""The ring and the turns of the Hopper kernel: in every order that the hardware may choose, all ends well.

Shown by the model (ring.py): nobody is stuck, nobody reads what is not its slice, nothing is overwritten that somebody
reads, a warpgroup has the matrix unit for itself in its turn, no barrier is left half full, and in a cluster nobody
reaches for a block that is not there yet or not any more. And each of them fails when a step is wrong.
"""

import re
from pathlib import Path

import pytest

from .ring import Setting, Step, explore, programs

LAYOUT = Path(__file__).parents[2] / "csrc" / "cuda" / "layout.h"


@pytest.mark.parametrize("stages", [4, 6])  # the least that runs, and the kernel's
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
    assert stages == 6


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


# ---- A cluster: two blocks, each copying half of a slice into both.

PAIR = Setting(stages=1, slices=1, products=1, tiles=3, cluster=2)


# A block's states times its peer's: there are too many for the kernel's own setting, and every stage is used again.
@pytest.mark.parametrize("setting", [PAIR, PAIR._replace(products=2, tiles=2)])
def test_every_order_of_a_cluster_ends_well(setting):
    assert explore(setting) == ""


def each_actor(s: Setting, change) -> list[list[Step]]:
    return [change(n // s.actors, n % s.actors == 0, part) for n, part in enumerate(programs(s))]


def test_a_stage_free_after_the_warps_of_one_block_is_overwritten():
    assert explore(PAIR, arrivals=2, until="overwrites").endswith("while a product reads it")


def test_a_stage_handed_back_to_its_own_block_only_is_stuck():
    steps = each_actor(PAIR, lambda _, loads, part: [(*p, "own") if p[0] == "arrive" else p for p in part])
    assert re.search(r"(?m)^stuck", explore(PAIR, steps))


def test_a_full_barrier_that_expects_one_share_lets_a_half_be_read():
    steps = each_actor(PAIR, lambda _, loads, part: [(*p, 1) if p[0] == "copy" else p for p in part])
    assert re.search(r"(?m)^(issue|bias) of slice \d+ finds \((None, \d|\d, None)\)", explore(PAIR, steps))


def test_a_block_with_a_tile_less_leaves_its_peer_stuck():
    fewer = programs(PAIR._replace(tiles=1))
    steps = [*fewer[: PAIR.actors], *programs(PAIR)[PAIR.actors :]]
    assert re.search(r"(?m)^stuck", explore(PAIR, steps))


def test_blocks_that_do_not_meet_at_the_start_reach_for_what_is_not_there():
    steps = each_actor(PAIR, lambda _, loads, part: without(part, ("meet", 0)))
    assert re.search(r"(?m)^reaches block \d before its barriers are there", explore(PAIR, steps))


def test_blocks_that_do_not_meet_at_the_end_reach_for_what_has_left():
    steps = each_actor(PAIR, lambda _, loads, part: without(part, ("meet", 1)))
    assert re.search(r"(?m)^reaches block \d after it has left", explore(PAIR, steps))


def test_a_meeting_must_wait_for_what_was_handed_back():
    def relaxed(_, loads, part):
        return [("meet", 1, "relaxed") if p == ("meet", 1) else p for p in part]

    assert re.search(r"(?m)^reaches block \d after it has left", explore(PAIR, each_actor(PAIR, relaxed)))


def test_a_loader_that_waits_for_nobody_overwrites_its_peer():
    steps = each_actor(
        PAIR, lambda block, loads, part: [p for p in part if p[0] != "empty"] if loads and block == 0 else part
    )
    assert "overwrites" in explore(PAIR, steps, until="overwrites")

"""A model of the ring of weight slices and of the turns of csrc/cuda/decode_sm90.cu, run in every order.

In a block one actor loads and the warps of two warpgroups compute; each is the list of what it does. From every state
every step that can be taken is tried: an actor goes on, a copy lands, a hand-over arrives at the peer. So what holds
here holds for any speed of anything. A product counts as reading its stage from its issue to the wait for it, a copy as
writing from issue to landing. A cluster's blocks each copy one share of a slice into the stages of all.
"""

from typing import NamedTuple

Step = tuple  # what, and with what


class Setting(NamedTuple):
    stages: int = 6
    slices: int = 4  # of a product
    products: int = 2
    tiles: int = 2  # of a block
    warps: int = 1  # of a warpgroup; four in the kernel, and fewer make fewer states
    cluster: int = 1  # blocks that share the copying

    @property
    def actors(self) -> int:
        """Return how many a block has; the first of them loads."""
        return 1 + 2 * self.warps


class State(NamedTuple):
    at: tuple[int, ...]  # each actor's next step
    content: tuple  # of a stage: the number of the slice that each share is of, None while it is written
    copies: frozenset  # (stage, share, number) on their way
    full: tuple[tuple[int, int, int], ...]  # phases completed, arrivals in this one, shares expected and not landed
    empty: tuple[tuple[int, int], ...]  # phases completed, arrivals in this one
    turns: tuple[tuple[int, frozenset], ...]  # arrivals at the named barrier, actors that wait there
    mail: tuple[int, ...] = ()  # stages of other blocks that are handed back, on the way


def loader(s: Setting) -> list[Step]:
    """What the loading thread of a block does."""
    steps = []
    for number in range(s.tiles * s.products * s.slices):
        stage, parity = number % s.stages, number // s.stages % 2
        steps += [("empty", stage, parity ^ 1), ("copy", stage, number)]
    return [("init",), ("meet", 0), *steps, ("meet", 1)] if s.cluster > 1 else steps


def warp(s: Setting, group: int) -> list[Step]:
    """What a warp of a warpgroup does."""
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
    return [("meet", 0), *steps, ("meet", 1)] if s.cluster > 1 else steps


def programs(s: Setting) -> list[list[Step]]:
    """Return what every actor does, block after block."""
    return [loader(s), *(warp(s, group) for group in (0, 1) for _ in range(s.warps))] * s.cluster


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


class Model:
    """All states of a setting whose actors do `steps`; an empty barrier opens after `arrivals`."""

    def __init__(self, s: Setting, steps: list[list[Step]] | None = None, arrivals: int | None = None):
        self.s, self.steps = s, steps or programs(s)
        self.arrivals = arrivals or 2 * s.warps * s.cluster
        self.hands = [in_hand(part) for part in self.steps]

    def explore(self, until: str) -> str:
        """Run all orders; return what goes wrong in any of them, a line each, "" if nothing does.

        With `until`, no further than to something wrong that begins with it.
        """
        s, stages = self.s, self.s.stages * self.s.cluster
        nobody = ((0, frozenset()),) * 2 * s.cluster
        content, full, empty = ((None,) * s.cluster,) * stages, ((0, 0, 0),) * stages, ((0, 0),) * stages
        start = State((0,) * len(self.steps), content, frozenset(), full, empty, nobody)
        seen, todo, wrong = {start}, [start], set()
        while todo:
            state = todo.pop()
            following: list[State] = []
            failed = ""
            results = [self.landed(state, *copy) for copy in state.copies]
            results += [self.delivered(state, stage) for stage in set(state.mail)]
            results += [self.go(state, actor) for actor in range(len(self.steps))]
            for result in results:
                if isinstance(result, str):
                    failed = result
                    wrong.add(failed)  # this step leads no further
                    if until and failed.startswith(until):
                        return failed
                else:
                    following += result
            if not following and not failed:
                left = [part[at] for at, part in zip(state.at, self.steps, strict=True) if at < len(part)]
                if left:
                    wrong.add(f"stuck: {left}")
                elif any(count for count, _ in state.turns):
                    wrong.add("a turn is left over")
            fresh = [new for new in dict.fromkeys(following) if new not in seen]
            seen.update(fresh)
            todo += fresh
        return "\n".join(sorted(wrong))

    def unreachable(self, state: State, block: int) -> str:
        """Say why what lies in a block's shared memory cannot be used by its peer, "" if it can."""
        if self.s.cluster == 1:
            return ""
        first = block * self.s.actors
        if state.at[first] <= self.steps[first].index(("init",)):
            return f"reaches block {block} before its barriers are there"
        mine = range(first, first + self.s.actors)
        return f"reaches block {block} after it has left" if all(self.ended(state, a) for a in mine) else ""

    def ended(self, state: State, actor: int) -> bool:
        return state.at[actor] == len(self.steps[actor])

    def landed(self, state: State, stage: int, share: int, number: int) -> list[State] | str:
        if why := self.unreachable(state, stage // self.s.stages):
            return why
        phase, arrived, expected = state.full[stage]
        return [
            state._replace(
                copies=state.copies - {(stage, share, number)},
                content=put(state.content, stage, put(state.content[stage], share, number)),
                full=put(state.full, stage, complete(phase, arrived, expected - 1)),
            )
        ]

    def delivered(self, state: State, stage: int) -> list[State] | str:
        mail = list(state.mail)
        mail.remove(stage)
        return self.unreachable(state, stage // self.s.stages) or [self.arrive(state._replace(mail=tuple(mail)), stage)]

    def arrive(self, state: State, stage: int) -> State:
        phase, count = state.empty[stage]
        now = (phase + 1, 0) if count + 1 == self.arrivals else (phase, count + 1)
        return state._replace(empty=put(state.empty, stage, now))

    def go(self, state: State, actor: int) -> list[State] | str:
        """Return the states after an actor's next step: none if it has to wait, or what is wrong with it."""
        s, at = self.s, state.at[actor]
        if self.ended(state, actor) or any(actor in waiting for _, waiting in state.turns):
            return []
        what, *more = self.steps[actor][at]
        after = state._replace(at=put(state.at, actor, at + 1))
        block = actor // s.actors
        stage = block * s.stages + more[0] if more else 0
        if what == "meet":  # all threads of the cluster, and what they handed back has arrived (release)
            if state.mail and "relaxed" not in more:
                return []
            there = (n >= part.index(("meet", *more)) for n, part in zip(state.at, self.steps, strict=True))
            return [after] if all(there) else []
        if what in ("full", "empty"):  # mbarrier.try_wait.parity: has the phase of this parity completed?
            phase = (state.full if what == "full" else state.empty)[stage][0]
            return [after] if phase % 2 != more[1] else []
        if what == "copy":
            return self.copy(state, after, block, *more)
        if what in ("issue", "bias"):
            if state.content[stage] != (more[1],) * s.cluster:
                return f"{what} of slice {more[1]} finds {state.content[stage]} in stage {stage}"
            if what == "issue" and not self.hands[actor][at][1]:
                return f"slice {more[1]} is issued out of turn"
        elif what == "arrive":
            others = [b * s.stages + more[0] for b in range(s.cluster) if b != block and "own" not in more]
            return [self.arrive(after, stage)._replace(mail=tuple(sorted([*after.mail, *others])))]
        elif what in ("turn", "give"):
            return self.turn(state, after, actor, what, more[0])
        return [after]

    def copy(self, state: State, after: State, block: int, at: int, number: int, expect: int = 0) -> list[State] | str:
        """A block's share, into every block; its own full barrier expects all shares."""
        s, expect = self.s, expect or self.s.cluster
        own = block * s.stages + at
        phase, arrived, shares = after.full[own]
        after = after._replace(full=put(after.full, own, complete(phase, arrived + 1, shares + expect)))
        for other in range(s.cluster):
            if why := self.unreachable(state, other) if other != block else "":
                return why
            stage, first = other * s.stages + at, other * s.actors
            hands = zip(self.hands[first : first + s.actors], state.at[first:], strict=False)
            if any(at in hand[place][0] for hand, place in hands):
                return f"overwrites stage {stage} with slice {number} while a product reads it"
            if any((stage, block) == copy[:2] for copy in state.copies):
                return f"two copies into stage {stage}"
            after = after._replace(
                content=put(after.content, stage, put(after.content[stage], block, None)),
                copies=after.copies | {(stage, block, number)},
            )
        return [after]

    def turn(self, state: State, after: State, actor: int, what: str, group: int) -> list[State] | str:
        """Arrive at the named barrier of a block's warpgroup, to wait there for the turn or to give it."""
        s, block = self.s, actor // self.s.actors
        named = 2 * block + group
        count, waiting = state.turns[named]
        if what == "turn":
            waiting, after = waiting | {actor}, state
        if count + 1 < 2 * s.warps:
            return [after._replace(turns=put(state.turns, named, (count + 1, waiting)))]
        for other in range(2 * s.warps):  # it opens: all that wait go on
            place = block * s.actors + 1 + other
            if other // s.warps != group and self.hands[place][after.at[place]][1]:
                return f"warpgroup {group} gets the turn that warpgroup {1 - group} has"
        places = tuple(place + (n in waiting) for n, place in enumerate(after.at))
        return [after._replace(at=places, turns=put(state.turns, named, (0, frozenset())))]


def complete(phase: int, arrived: int, expected: int) -> tuple[int, int, int]:
    """A full barrier: its phase is over once its one arrival is there and nothing is expected any more."""
    return (phase + 1, 0, 0) if arrived == 1 and expected == 0 else (phase, arrived, expected)


def explore(s: Setting, steps: list[list[Step]] | None = None, arrivals: int | None = None, until: str = "") -> str:
    """Return what goes wrong in any order, "" if nothing does; see `Model.explore`."""
    return Model(s, steps, arrivals).explore(until)


def put(values: tuple, at: int, value) -> tuple:
    return (*values[:at], value, *values[at + 1 :])

"""Compare the records of two commits: python -m benchmarks.compare A B.

Our time is compared relative to a yardstick from the same rounds, so that a slower machine does not look like a slower
commit. The yardstick is a matrix product of PyTorch, or else the plain formula, or else nothing. Each run of a commit
on the same kind of machine gives one median, and the median of these is shown. A change counts if it exceeds twice the
noise of both sides. Noise is the standard error from the quantiles, or half the range of the runs if that is larger,
and at least 1.5 % for a single run. A disturbance of a whole run shows only between runs, so record each commit at
least three times on a quiet machine:

    for run in 1 2 3; do make bench ARGS='--record --threads 2'; done
"""

import argparse
import math
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks import records, table
from benchmarks.common import EAGER, OURS

SINGLE_RUN_NOISE = 0.015
Record = dict[str, Any]


class Sample(NamedTuple):
    """Hold one quantity of one commit, as a logarithm, so that a ratio is a difference."""

    log: float
    noise: float  # one standard error of the logarithm
    seconds: float
    runs: int


class Change(NamedTuple):
    """Hold one benchmark of both commits."""

    title: str
    before: Sample
    after: Sample

    @property
    def ratio(self) -> float:
        """Return the time after relative to the time before, both by the yardstick."""
        return math.exp(self.after.log - self.before.log)

    @property
    def noise(self) -> float:
        """Return twice the noise of the ratio; larger changes count."""
        return math.exp(2 * math.hypot(self.before.noise, self.after.noise)) - 1

    @property
    def verdict(self) -> str:
        """Return the verdict in one or two words."""
        if abs(self.after.log - self.before.log) <= math.log1p(self.noise):
            return "within noise"
        return "faster" if self.ratio < 1 else "slower"


def sample(results: Sequence[Record]) -> Sample:
    """Combine one benchmark's results over the runs of a commit."""
    logs, noises = [], []
    for result in results:
        figure = result["figures"][OURS]
        # Taken in each round: our rate over the product's, or the plain formula's time over ours.
        found = (result.get("share_of_sgemm"), result["figures"].get(EAGER, {}).get("ratio"))
        # Old records have a share of 0 for calls that multiply nothing.
        yardstick = next((each for each in found if each and each["median"]), None)
        logs.append(-math.log(yardstick["median"]) if yardstick else math.log(figure["median"]))
        spread = math.log((yardstick or figure)["q80"] / (yardstick or figure)["q20"])
        # In a normal distribution q20 and q80 are 1.683 deviations apart; a median's error is 1.253 times a mean's.
        noises.append(1.253 * spread / 1.683 / math.sqrt(result["rounds"]))
    between = (max(logs) - min(logs)) / 2 if len(logs) > 1 else SINGLE_RUN_NOISE
    seconds = median(result["figures"][OURS]["median"] for result in results)
    return Sample(median(logs), max(median(noises), between), seconds, len(results))


def compare(found: Sequence[Record], before: str, after: str) -> list[Change]:
    """Return the changes of every benchmark in seconds that both commits have on the machine of the newest of them.

    Raises:
        ValueError: a commit has no record, or no machine has records of both.
    """
    sides = [[r for r in found if r["commit"] and _same(r["commit"], commit)] for commit in (before, after)]
    for commit, side in zip((before, after), sides, strict=True):
        if not side:
            known = ", ".join(dict.fromkeys(r["commit"] for r in found if r["commit"])) or "none"
            raise ValueError(f"no record of commit {commit}; there are records of {known}")

    def conditions(record: Record) -> tuple[str, int]:
        return records.machine(record), record["threads"]

    where = [conditions(r) for r in sides[1] if conditions(r) in {conditions(other) for other in sides[0]}]
    if not where:
        raise ValueError(f"{before} and {after} have no records of the same machine and number of threads")
    named: list[dict[str, list[Record]]] = []
    for side in sides:
        named.append({})
        for result in (result for record in side if conditions(record) == where[-1] for result in record["results"]):
            if result["unit"] == "s" and OURS in result["figures"]:
                named[-1].setdefault(result["name"], []).append(result)
    return [
        Change(results[0]["title"], sample(named[0][name]), sample(results))
        for name, results in named[1].items()
        if name in named[0]
    ]


def _same(recorded: str, asked: str) -> bool:
    """Return whether two abbreviations name one commit; + marks code that differed from it."""
    if recorded.endswith("+") != asked.endswith("+"):
        return False
    recorded, asked = recorded.rstrip("+"), asked.rstrip("+")
    return recorded.startswith(asked) or asked.startswith(recorded)


def text(changes: Sequence[Change]) -> str:
    """Return one line for each benchmark."""
    lines = [f"{'':<58}{'before':>10}{'after':>10}{'ratio':>8}{'noise':>8}  runs"]
    for each in changes:
        times = "".join(f"{table.quantity(side.seconds, 's'):>10}" for side in (each.before, each.after))
        runs = f"{each.before.runs}, {each.after.runs}"
        lines.append(f"{each.title[:56]:<58}{times}{each.ratio:>8.3f}{each.noise:>7.1%}  {runs:<6} {each.verdict}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.split("\n")[0])
    parser.add_argument("before", help="a commit that has records")
    parser.add_argument("after", help="another one")
    args = parser.parse_args()
    try:
        print(text(compare(records.read(), args.before, args.after)))
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()

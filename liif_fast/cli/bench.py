"""`liif-fast bench`: run the benchmark suites of the source tree with pytest-benchmark."""

import argparse
import subprocess
import sys
from pathlib import Path

import liif_fast

_ABOUT = "Run the benchmark suites of the source tree with pytest-benchmark."


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("bench", help="run the benchmarks of the source tree", description=_ABOUT)
    parser.add_argument("select", nargs="?", metavar="EXPRESSION", help="only benchmarks that match (pytest -k)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the suites; returns pytest's exit code, or raises if this is not a source tree."""
    folder = Path(liif_fast.__file__).resolve().parents[1] / "benchmarks"
    suites = sorted(str(path) for path in folder.glob("bench_*.py"))
    if not suites:
        raise FileNotFoundError(
            f"the benchmarks are not part of the installed package; run this from a source tree ({folder} is empty)"
        )
    select = ["-k", args.select] if args.select else []
    return subprocess.run([sys.executable, "-m", "pytest", *suites, *select], check=False).returncode

"""`liif-fast bench`: run the benchmark suites of the source tree with pytest-benchmark."""

import argparse
import subprocess
import sys
from os.path import expanduser
from pathlib import Path

import liif_fast

_ABOUT = """Run the benchmark suites of the source tree against their rivals, check the results, and print a table. All
suites take about ten minutes on two cores."""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("bench", help="run the benchmarks of the source tree", description=_ABOUT)
    parser.add_argument(
        "suites", type=expanduser, nargs="*", metavar="SUITE", help="names or files, such as decode; default: all"
    )
    parser.add_argument("-k", dest="select", metavar="EXPRESSION", help="only benchmarks that match (as pytest -k)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="few cases and rounds, no torch.compile: about a minute")
    length.add_argument("--check", action="store_true", help="tiny sizes, one round, to see that everything runs")
    length.add_argument("--long", action="store_true", help="include cases that take minutes each on a CPU")
    parser.add_argument("--threads", type=int, metavar="N", help="PyTorch's threads (default: PyTorch's choice)")
    parser.add_argument("--device", metavar="D", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/results/")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="measure nothing; compare the records of two commits, and mark differences within noise",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    root = Path(liif_fast.__file__).resolve().parents[1]
    known = {path.stem.removeprefix("bench_"): path for path in sorted((root / "benchmarks").glob("bench_*.py"))}
    if not known:
        raise FileNotFoundError(
            f"the benchmarks are not part of the installed package; run this in a source tree ({root} has none)"
        )
    if args.compare:
        command = [sys.executable, "-m", "benchmarks.compare", *args.compare]
        return _run(command, root)
    names = [Path(suite).stem.removeprefix("bench_") for suite in args.suites] or list(known)
    for suite, name in zip(args.suites, names, strict=False):
        if name not in known:
            raise ValueError(f"there is no suite {suite!r}; there are {', '.join(known)}")
    options = ["--table", "--benchmark-quiet"]
    options += [f"--{flag}" for flag in ("quick", "check", "long", "record") if getattr(args, flag)]
    options += [f"--{name}={value}" for name in ("threads", "device") if (value := getattr(args, name)) is not None]
    options += ["-k", args.select] if args.select else []
    files = [str(known[name]) for name in names]
    command = [sys.executable, "-m", "pytest", *files, "--rootdir", str(root), "-p", "no:cacheprovider", *options]
    return _run(command, root)


def _run(command: list[str], root: Path) -> int:
    """Run a command and return its exit code, as a shell does if a signal ends it."""
    code = subprocess.run(command, cwd=root, check=False).returncode
    return code if code >= 0 else 128 - code

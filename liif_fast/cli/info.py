"""`liif-fast info`: print versions, the machine, the backends and the shipped model for bug reports."""

import argparse

_ABOUT = "Print versions, the machine, the backends and the shipped model for bug reports."


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("info", help="print the information for a bug report", description=_ABOUT)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from liif_fast.info import describe

    rows = describe()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0

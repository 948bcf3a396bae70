"""Benchmarks against the plain formula and its best alternatives.

    make bench                                        # everything, under ten minutes on two cores; prints one table
    make bench ARGS=--quick                           # the same sizes, few rounds, about a minute
    python -m pytest benchmarks/bench_train.py        # one suite
    make bench ARGS='--record --threads 2'            # appends to benchmarks/results/<machine>.jsonl
    python -m benchmarks.table --write                # the newest complete record into README.md

Every call is checked against the backend `reference` before it is timed. All variants of a benchmark take turns in one
process, on the same threads and data: one round runs each once. Shown are medians with the 20 % and 80 % quantiles;
ratios are taken within a round, so that a machine that slows down for a while does not change them.
"""

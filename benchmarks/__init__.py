"""Benchmarks against the plain formula and its best alternatives.

    make bench                                  # or liif-fast bench: everything, in ten minutes on two cores
    make bench ARGS=--quick                     # few cases and rounds, about a minute
    make bench ARGS='decode train --threads 1'  # some suites: benchmarks/bench_<name>.py
    make bench ARGS='--record --threads 2'      # appends to benchmarks/results/<machine>.jsonl
    make bench ARGS='--compare A B'             # what the records say of two commits
    python -m benchmarks.report --write         # the newest complete record into the documents, and its pictures

Every call is checked against the backend `reference` before it is timed. All variants of a benchmark (rivals.py says
who and how they are set up) take turns in one process, on the same threads and data: one round runs each once, and what
measures the machine's own rates (limits.py), too. Shown are medians with the 20 % and 80 % quantiles; ratios are taken
within a round, so that a machine that slows down for a while does not change them.
"""

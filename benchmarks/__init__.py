"""Compare liif_fast with the plain formula and its best alternatives.

    make bench                                  # or liif-fast bench: everything, about ten minutes on two cores
    make bench ARGS=--quick                     # few cases and rounds, about a minute
    make bench ARGS='decode train --threads 1'  # some suites: benchmarks/bench_<name>.py
    make bench ARGS='--record --threads 2'      # appends to benchmarks/results/<machine>.jsonl
    make bench ARGS='--compare A B'             # compares the records of two commits
    python -m benchmarks.report --write         # writes the newest complete record into the documents and pictures

Every call is checked against the backend `reference` before it is timed. All variants of a benchmark take turns in one
process, on the same threads and data; rivals.py describes their setup. A round runs each variant once, and also the
calls that measure the machine's rates (limits.py). Results are medians with 20 % and 80 % quantiles. Ratios are taken
within a round, so a temporary slowdown of the machine does not change them.
"""

"""The documents' figures, from the records: python -m benchmarks.report prints the newest record that is complete;
with --write it fills README.md and draws the pictures. The tests refuse documents that differ from the records.
"""

import argparse

from benchmarks import records, table

README = records.ROOT / "README.md"
BEGIN, END = "<!-- begin:benchmarks -->", "<!-- end:benchmarks -->"


def fill(text: str, section: str) -> str:
    """Return `text` with what stands between the markers replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{section}\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the documents and draw the pictures")
    args = parser.parse_args()
    record = table.newest(records.read())
    print("no complete record" if record is None else table.full(record))
    if args.write:
        README.write_text(fill(README.read_text(), table.markdown(record)))


if __name__ == "__main__":
    main()

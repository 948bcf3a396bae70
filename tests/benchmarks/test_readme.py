from benchmarks import records, report, table


def test_readme_is_what_the_newest_record_says():
    text = report.README.read_text()
    record = table.newest(records.read())
    assert record is not None, "there is no record: run `make bench ARGS='--record --threads 2'`"
    section = table.markdown(record)
    assert report.fill(text, section) == text, "run `python -m benchmarks.report --write`"


def test_fill():
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.fill(text, "new") == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"

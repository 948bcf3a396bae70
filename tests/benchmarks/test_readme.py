from benchmarks import table


def test_readme_is_what_the_newest_record_says():
    text = table.README.read_text()
    record = table.newest(table.read_records())
    assert record is not None, "there is no record: run `make bench ARGS='--record --threads 2'`"
    section = table.markdown(record)
    assert table.fill(text, section) == text, "run `python -m benchmarks.table --write`"

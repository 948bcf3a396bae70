from benchmarks import table


def test_readme_is_what_the_newest_record_says():
    text = table.README.read_text()
    section = table.markdown(table.newest(table.read_records()))
    assert table.fill(text, section) == text, "run `python -m benchmarks.table --write`"

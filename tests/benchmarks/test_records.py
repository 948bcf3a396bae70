import subprocess

import pytest

from benchmarks import records


def test_records_are_appended(tmp_path):
    environment = records.environment()
    first, second = ({**environment, "date": date} for date in ("2026-01-02", "2026-01-01"))
    path = records.append(first, [{"name": "x"}], tmp_path)
    assert records.append(second, [], tmp_path) == path
    assert [record["date"] for record in records.read(tmp_path)] == ["2026-01-01", "2026-01-02"]
    assert records.read(tmp_path)[1]["results"] == [{"name": "x"}]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"cpu": "AMD EPYC, 2 logical cores", "isa": "avx512"}, "amd-epyc-avx512"),
        ({"cpu": "AMD EPYC, 2 logical cores", "isa": "avx512", "gpu": "NVIDIA H200, sm_90"}, "nvidia-h200-sm-90"),
    ],
)
def test_one_file_for_each_kind_of_machine(record, name):
    assert records.machine(record) == name


def test_the_environment_names_what_a_figure_depends_on():
    environment = records.environment()
    assert {"version", "commit", "date", "cpu", "isa", "threads", "torch", "packages", "device"} <= set(environment)
    assert set(environment["packages"]) == {"triton", "onnxruntime", "openvino"}


@pytest.mark.parametrize(
    ("changed", "mark"),
    [("benchmarks/few_rows.py", "+"), ("csrc/plan.h", "+"), ("docs/cpu.md", ""), ("benchmarks/results/cpu.jsonl", "")],
)
def test_a_changed_benchmark_marks_the_commit(changed, mark, tmp_path, monkeypatch):
    """A figure depends on the benchmarks as on the kernels, but not on the records."""

    def git(*command):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x", *command], cwd=tmp_path, check=True)

    for name in {changed, "benchmarks/results/other.jsonl"}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    git("init", "--quiet"), git("add", "."), git("commit", "--quiet", "-m", "x")
    (tmp_path / changed).write_text("changed")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert records._commit() == records._commit().rstrip("+") + mark


def test_every_record_can_be_read():
    for record in records.read():
        assert record["results"], record["date"]
        for result in record["results"]:
            assert {"name", "title", "unit", "rounds", "figures", "missing"} <= set(result)

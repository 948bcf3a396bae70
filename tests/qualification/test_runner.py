"""Test how the runner handles messages; the processes are simulated here, those of test_planted.py are real."""

import json
import os
import re
import signal
import threading
import time

import pytest

import liif_fast
from liif_fast.backends import cpu, verdict
from liif_fast.cli import main
from liif_fast.qualification import Unavailable, qualify, runner
from liif_fast.qualification.problems import OPS, Unit
from liif_fast.qualification.runner import Exam

FIRST, SECOND, OTHER = (
    Unit("triton", "decode", "float16", False),
    Unit("triton", "decode", "float16", True),
    Unit("triton", "decode", "float32", False),
)
KINDS = 2 * len(OPS)  # of calls in one precision: in inference and in training
SPEED = {"taken": True, "ratio": 2.0, "small": 1.5, "than": "torch"}


@pytest.fixture
def play(monkeypatch, tmp_path):
    """Return play(act), where act(unit, job) is a message or how the process ends ("hangs", or an exit code)."""
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path))
    jobs = []

    def use(act):
        class Process:
            def __init__(self, job):
                jobs.append(job)
                self.said, self.exit = self.lines(job), ""

            def lines(self, job):
                yield {"key": {"device": "played"}}
                for unit in job["units"]:
                    yield {"at": "values", "unit": unit}
                    answer = act(unit, job)
                    while answer == "hangs":
                        yield None
                    if isinstance(answer, str):
                        self.exit = answer
                        return
                    yield {"unit": unit, **answer}

            def line(self):
                message = next(self.said, "")
                return json.dumps(message) + "\n" if message else message

            def ended(self):
                return self.exit

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

        monkeypatch.setattr(runner, "_Process", Process)
        return jobs

    return use


def exam(seconds=10.0):
    return Exam("cuda", seconds, lambda line: None)


def right(unit, job):
    return {"correct": True, **(SPEED if job["last"] else {})}


def test_each_passes_in_three_processes_and_the_last_measures(play):
    jobs = play(right)
    found = exam().run([FIRST, SECOND, OTHER])
    assert found == {unit: {"correct": True, **SPEED} for unit in (FIRST, SECOND, OTHER)}
    asked = [[tuple(unit) for unit in job["units"]] for job in jobs]
    assert sorted(asked[:4]) == sorted(2 * [[FIRST, SECOND], [OTHER]]) and asked[4:] == [[FIRST, SECOND, OTHER]]
    assert [job["last"] for job in jobs] == [False] * 4 + [True]
    assert len({job["seed"] for job in jobs}) == 3


def test_kernels_that_change_meanwhile_get_no_verdict(play):
    """For example, an installation may be replaced between two processes."""
    play(lambda unit, job: {"key": {"device": "other"}} if unit == SECOND and job["last"] else right(unit, job))
    with pytest.raises(Unavailable, match="have changed meanwhile"):
        exam().run([FIRST, SECOND])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_one_that_is_wrong_once_is_wrong(play, number):
    jobs = play(lambda unit, job: {"correct": False, "why": "output"} if unit == FIRST and job["seed"] == 100 * number
                else right(unit, job))  # fmt: skip
    assert exam().run([FIRST, SECOND]) == {
        FIRST: {"correct": False, "why": "output"},
        SECOND: right(SECOND, {"last": 1}),
    }
    assert sum(FIRST in job["units"] for job in jobs) == number


def test_one_that_ends_its_process_does_not_take_the_others_along(play):
    jobs = play(lambda unit, job: "the process ends by SIGSEGV" if unit == FIRST else right(unit, job))
    found = exam().run([FIRST, SECOND])
    assert found[FIRST] == {"correct": False, "why": "values: the process ends by SIGSEGV"}
    assert found[SECOND]["correct"]
    assert [len(job["units"]) for job in jobs] == [2, 1, 1, 1]


def test_one_that_hangs_is_ended(play):
    play(lambda unit, job: "hangs" if unit == FIRST else right(unit, job))
    found = exam(1.0).run([FIRST, SECOND])
    assert found[FIRST] == {"correct": False, "why": "values: no answer in 0 s"}
    assert found[SECOND]["correct"]


def test_where_only_one_process_has_room_they_go_one_by_one(play):
    """A GPU in exclusive mode, or with little memory, has room for one process only."""
    jobs = play(lambda unit, job: right(unit, job) if threading.current_thread() is threading.main_thread()
                else {"unavailable": "CUDA error: all CUDA-capable devices are busy or unavailable"})  # fmt: skip
    found = exam().run([FIRST, OTHER])
    assert all(each["correct"] for each in found.values())
    assert [len(job["units"]) for job in jobs].count(2) == 3


def test_after_an_error_the_rest_goes_on_in_another_process(play):
    """The child then ends by itself, which is not a fault of the next unit."""
    jobs = []

    def act(unit, job):
        jobs.append(job)
        return {"correct": False, "why": "an illegal access"} if unit == FIRST else right(unit, job)

    play(act)
    assert exam().run([FIRST, SECOND])[SECOND]["correct"]


def test_what_is_not_decided_in_time_stays_off(play):
    play(lambda unit, job: (time.sleep(0.3), right(unit, job))[1])
    assert exam(0.7).run([FIRST, SECOND]) == {unit: {"why": "there was no time"} for unit in (FIRST, SECOND)}


def test_what_is_refused_has_no_verdict(play):
    play(lambda unit, job: {"refused": "needs 9.0"} if unit == FIRST else right(unit, job))
    trial = exam()
    assert list(trial.run([FIRST, SECOND])) == [SECOND]
    assert trial.refusal == "needs 9.0"


@pytest.fixture
def here(monkeypatch):
    """Treat device "cpu" as one with kernels of one precision."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def test_the_verdict_is_kept(play, here, tmp_path, capsys):
    assert liif_fast.qualify is qualify
    play(lambda unit, job: {"refused": "no"} if unit.backend == "cuda" else right(unit, job))
    found = qualify("cpu", tell=print)
    assert found == verdict.load(found.path, {"device": "played"})
    assert found.path.parent == tmp_path and list(found.results) == ["triton"] and len(found.results["triton"]) == KINDS
    assert found.summary() == f"{KINDS} of {KINDS} kinds of call passed, auto takes {KINDS}"
    assert "round 3 of 3: triton: decode, float32: right" in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer",
    [{"unavailable": "AcceleratorError: CUDA error: all CUDA-capable devices are busy or unavailable"},
     {"unavailable": "OutOfMemoryError: CUDA out of memory"}, {"refused": "no"}],
)  # fmt: skip
def test_nothing_is_kept_of_a_device_that_cannot_be_used(play, here, tmp_path, capsys, answer):
    play(lambda unit, job: answer if unit[1] == "render" else {"refused": "no"})
    assert main(["qualify", "--device", "cpu"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("liif-fast: error: ") and last.endswith("; nothing was stored")
    assert answer.get("unavailable", "could be examined on cpu: no") in last
    assert not list(tmp_path.iterdir())


def test_a_process_that_cannot_begin_is_no_fault_of_a_kernel(monkeypatch):
    monkeypatch.setattr(runner.sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="cannot begin: the process ends with exit code 1"):
        exam().run([FIRST])


def test_a_process_that_is_killed_is_no_fault_of_a_kernel(monkeypatch):
    process = runner._Process.__new__(runner._Process)
    process._process = type("Ended", (), {"wait": lambda self, seconds: -signal.SIGKILL})()
    with pytest.raises(Unavailable, match="memory ran out"):
        process.ended()


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Return child(commands), which lets a shell be the process; it has said the key and that FIRST's values begin."""

    def be(commands):
        lines = [json.dumps(each) for each in ({"key": {}}, {"at": "values", "unit": FIRST})]
        script = tmp_path / "child"
        script.write_text("\n".join(["#!/bin/sh", "read job", *(f"echo '{line}'" for line in lines), commands, ""]))
        script.chmod(0o755)
        monkeypatch.setattr(runner.sys, "executable", str(script))

    return be


@pytest.mark.skipif(os.name == "nt", reason="the process is a shell script")
def test_half_a_line_is_left_by_a_process_that_is_killed(child):
    child("""printf '{"unit": ["tri'; kill -9 $$""")
    with pytest.raises(Unavailable, match="memory ran out"):
        exam().run([FIRST])


@pytest.mark.skipif(os.name == "nt", reason="the process is a shell script")
def test_a_process_that_says_no_more_and_does_not_end(child, monkeypatch):
    monkeypatch.setattr(runner, "ENDING", 0.5)
    child("exec >&-; sleep 60")
    assert exam().run([FIRST]) == {FIRST: {"correct": False, "why": "values: the process does not end"}}


def test_a_wrong_kernel_is_named_and_an_exit_code(play, here, capsys):
    play(lambda unit, job: {"correct": False, "why": "output: error 1"} if unit[1] == "decode" else right(unit, job))
    assert main(["qualify", "--device", "cpu"]) == 1
    table = capsys.readouterr().out
    assert re.search(r"(?m)^triton  decode, float32 +WRONG: output: error 1$", table)
    assert re.search(r"(?m)^triton  fused_mlp, float32 +passed, 2.00 times as fast as torch$", table)
    assert f"of {2 * KINDS} kinds of call passed" in table


def test_the_report_runs_nothing_if_there_is_a_verdict(play, here, capsys):
    verdict.read.cache_clear()
    key = verdict.key("cpu", None)
    results = {"triton": {"decode, float32": {"correct": True, **SPEED}}}
    verdict.write(verdict.Verdict(verdict.path_of(key), key, "2026-01-01", results))
    jobs = play(right)
    assert main(["qualify", "--device", "cpu", "--report"]) == 0
    verdict.read.cache_clear()
    assert json.loads(capsys.readouterr().out) == {"made": "2026-01-01", "key": key, "results": results}
    assert not jobs


@pytest.mark.skipif(os.name == "nt", reason="no such folder")
def test_a_place_that_cannot_be_written_is_said_before_the_work(play, here, monkeypatch, tmp_path, capsys):
    jobs = play(right)
    (tmp_path / "folder.json").mkdir()
    for place in ("/proc/verdicts", str(tmp_path / "folder.json")):
        monkeypatch.setenv(verdict.VARIABLE, place)
        assert main(["qualify", "--device", "cpu"]) == 1
        said = capsys.readouterr().err
        assert "LIIF_FAST_VERDICT names another" in said and place in said
    monkeypatch.setenv(verdict.VARIABLE, "off")
    assert main(["qualify", "--device", "cpu"]) == 1
    assert "LIIF_FAST_VERDICT=off" in capsys.readouterr().err
    assert not jobs


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_without_a_gpu_it_is_said_in_one_line(device, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["qualify", *(["--device", device] if device == "cpu" else [])]) == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    assert ("finds no CUDA GPU" if device == "cuda" else f"no kernels to qualify ({cpu.AMX_MISSING})") in err


def test_an_empty_device_is_not_the_default(play, here, capsys):
    assert main(["qualify", "--device", ""]) == 1
    assert "device must be auto, cpu, cuda, cuda:N or mps, got ''" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "long"])
def test_seconds(seconds, capsys):
    assert main(["qualify", "--seconds", seconds]) == 2
    assert "must be a number of seconds above 0" in capsys.readouterr().err

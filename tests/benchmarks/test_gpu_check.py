"""The script that records a GPU works on a CPU, without figures, and it can fail."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_attend, gpu_check, gpu_hopper, gpu_sections, gpu_variant, records
from liif_fast import backends

from .. import warm
from ..cli.support import raising
from ..gpu import test_operator

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(*options): the script's own main, with --check; its exit code and the record."""
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}

    def main(*options):
        out = tmp_path / "record.json"
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--check", "--out", str(out), *options])
        return gpu_check.main(), json.loads(out.read_text()) if out.exists() else None

    yield main
    for each, handler in handlers.items():
        signal.signal(each, handler)


def test_the_plan_of_the_calls():
    for call, sections in gpu_check.CALLS.items():
        assert list(sections)[:2] == ["load", "smoke"]
        assert sum(sections.values()) <= gpu_check.SECONDS[call] <= 380
    for group in gpu_check.GROUPS.values():
        text = "".join((ROOT / path).read_text() for path in group.paths)
        assert group.chosen.removeprefix("not ") in text
    for name in gpu_check.SECTIONS:
        modules = (gpu_check, gpu_sections, gpu_hopper, gpu_attend)
        assert any(callable(getattr(module, name, None)) for module in modules), name


@pytest.fixture
def here(monkeypatch):
    """Run sections in this process and their commands in warm ones, because PyTorch's start is slow."""

    def in_this_process(name, check, limit, *_):
        return {**gpu_check.section(name, check), "seconds": 0}

    def run(command, limit=None, environment=None):
        done = warm.run(*command[1:], cwd=ROOT, env=environment)
        return done.returncode, done.stdout + done.stderr

    monkeypatch.setattr(gpu_check, "in_a_process", in_this_process)
    monkeypatch.setattr(gpu_check, "_run", run)


@pytest.mark.parametrize("call", gpu_check.CALLS)
def test_every_step_of_a_call_exists_and_ends(call, run, here):
    code, record = run("--call", str(call))
    sections = record["sections"]
    assert code == 0, sections
    assert list(sections) == list(gpu_check.CALLS[call])
    assert record["device"] == "cpu" and record["check"]
    assert len(sections["smoke"]["error, of torch's"]) == 8
    if call == 1:
        assert sections["trace"]["cycles"].keys() >= {"gap between tiles", "wait for a turn"}
        assert sections["ncu"]["frame, cluster 1"]["ok"]
        assert set(sections["hopper"]["bits"].values()) == {0}
        assert sections["hopper"]["best"].keys() >= {"30000 queries", "4K frame"}
    else:
        assert "rms" in sections["accuracy"]["float16, torch"]
        assert "ms" in sections["training"]["step"]["eager autocast"]
        assert "ms" in sections["decode"]["chunk of 30,000"]["plain, compiled"]
        assert set(sections["attend"]["checks"].values()) == {"right"} and len(sections["attend"]["checks"]) == 2
        assert "ms" in sections["attend"]["step, TF32"]["authors' form"]


def test_a_variant_built_before_is_taken_whatever_its_date(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_variant, "FOLDER", tmp_path)
    made = gpu_variant.library("trap")
    made.parent.mkdir()
    made.touch()
    os.utime(made, (0, 0))  # a copy to another machine may be older than that of the sources
    monkeypatch.setattr(gpu_variant.subprocess, "run", raising(AssertionError))
    gpu_variant.build("trap")
    assert made.exists()


def test_tests_in_several_processes_are_counted_once(tmp_path):
    """Each writes to the log, and so does the process that started them."""
    pytest.importorskip("xdist")
    (tmp_path / "test_some.py").write_text(
        "import pytest\ndef test_right():\n    pass\ndef test_skipped():\n    pytest.skip('no')\n"
        "def test_wrong():\n    assert 1 == 2, 'so it is'\n"
    )
    group = gpu_check.Group((str(tmp_path / "test_some.py"), "-c", "/dev/null"))
    found = gpu_check.run_tests(True, group, "-n", "2", log=tmp_path / "log")
    assert (found["passed"], found["skipped"], len(found["failed"])) == (1, {"no": 1}, 1)


def test_a_call_stops_without_an_extension(run, monkeypatch, capsys):
    missing = {"_C_sm90": "no liif_fast/_C_sm90"}
    monkeypatch.setattr(gpu_check, "in_a_process", lambda *_: {"missing": missing, "ok": False, "seconds": 0})
    code, record = run("--call", "2")
    assert code == 1 and list(record["sections"]) == ["load"]
    assert "load: FAILED" in capsys.readouterr().out


def test_a_step_that_hangs_ends(tmp_path):
    code, text = gpu_check._run([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], 3)
    assert code == 124 and "begun" in text


@pytest.fixture
def script(tmp_path, monkeypatch):
    """script(code): what a section runs; --out is sys.argv[4]."""

    def write(code):
        path = tmp_path / "section.py"
        path.write_text("import json, os, subprocess, sys, time\n" + code)
        monkeypatch.setattr(gpu_check, "__file__", str(path))

    return write


def test_a_section_that_dies_is_said(script):
    script("os.abort()")
    found = gpu_check.in_a_process("accuracy", True, 60)
    assert found["ok"] is False and "exit code" in found["ended"]


def test_a_section_that_hangs_loses_nothing_and_leaves_nothing_behind(script, tmp_path):
    script(
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "open(sys.argv[4], 'w').write(json.dumps({'first': 1}))\n"
        "time.sleep(60)"
    )
    told = []
    found = gpu_check.in_a_process("accuracy", True, 3, told.append)
    assert found["first"] == 1 and found["ok"] is False and "stopped after 3 s" in found["ended"]
    assert {"first": 1} in told
    assert _ends(int((tmp_path / "pid").read_text()))


def _ends(pid: int) -> bool:
    """Return whether a process ends within a minute: it may have to import PyTorch before it looks for its parent."""
    status = Path("/proc", str(pid), "status")
    for _ in range(600):
        try:
            if "zombie" in status.read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def test_what_a_section_had_before_it_raised_is_kept(script):
    script("open(sys.argv[4], 'w').write(json.dumps({'first': 1}))\nraise ValueError('so it is')")
    found = gpu_check.in_a_process("accuracy", True, 60)
    assert found["first"] == 1 and found["ok"] is False and "so it is" in found["output"][-1]


def test_one_section_later_is_added_to_the_file(run, here):
    run("--only", "overhead")
    code, record = run("--only", "memory")
    assert code == 0 and list(record["sections"]) == ["overhead", "memory"]


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGKILL])
def test_ended_from_outside_it_leaves_what_it_had(tmp_path, how):
    """It also keeps an earlier run's results of the same section, and no process survives."""
    out = tmp_path / "record.json"
    known = {"device": "cpu", "commit": records.environment()["commit"], "check": True}
    out.write_text(json.dumps({**known, "sections": {"tests": {"ok": True, "passed": 512}}}))
    command = "benchmarks/gpu_check.py", "--check", "--out", out, "--only", "tests"
    with warm.Process(*command, cwd=ROOT) as process:
        while "unfinished" not in json.loads(out.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        assert Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()  # the section's process
        process.send_signal(how)
        assert process.wait_for_all() == (-how if how == signal.SIGKILL else 128 + how)
    record = json.loads(out.read_text())
    assert record["sections"]["tests"] == {"ok": True, "passed": 512} and "tests" in record["unfinished"]


def test_a_section_whose_parent_died_before_it_began_ends(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    command = "benchmarks/gpu_check.py", "--check", "--section", "tests", "--parent", gone.pid
    with warm.Process(*command, "--out", tmp_path / "answer.json", cwd=ROOT) as section:
        assert section.wait() == -signal.SIGKILL


def test_what_there_is_no_time_for_is_said(run, capsys):
    assert run("--only", "overhead", "--seconds", "1") == (1, None)
    assert "no time left for overhead" in capsys.readouterr().out


def test_a_failing_test_is_counted_as_one(tmp_path):
    (tmp_path / "test_wrong.py").write_text(
        "import os, pytest\ndef test_wrong():\n    assert 1 == 2, 'so it is'\n"
        "def test_skipped():\n    pytest.skip('no')\ndef test_dies():\n    os.abort()\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    group = gpu_check.Group((str(tmp_path / "test_wrong.py"), "-c", str(tmp_path / "pytest.ini")))
    found = gpu_check.run_tests(True, group, log=tmp_path / "log")
    assert found["ok"] is False and found["skipped"] == {"no": 1}
    assert any("so it is" in message for message in found["failed"].values())
    assert found["failed"]["test_wrong.py::test_dies"] == "did not end"


def test_an_error_without_words_has_a_reason():
    def fails():
        raise AssertionError

    found = gpu_sections._race({"fails": fails, "runs": lambda: None}, True)
    assert found["fails"] == {"missing": "AssertionError: "} and "ms" in found["runs"]


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert "finds no CUDA GPU" in capsys.readouterr().err


def test_a_wrong_attention_is_named(monkeypatch):
    real = backends._backends["torch"].attend_corners

    def spoiled(*arguments, **options):
        out, weight = real(*arguments, **options)
        return out + 1e-3, weight

    monkeypatch.setattr(backends._backends["torch"], "attend_corners", spoiled)
    monkeypatch.setattr(gpu_attend, "races", lambda check, device: {})
    found = gpu_attend.attend(True)
    assert not found["ok"]
    assert all(each.startswith("Wrong: output: error ") for each in found["checks"].values())


def test_a_mistake_of_the_script_is_no_wrong_attention(monkeypatch):
    monkeypatch.setattr(gpu_attend.checks, "examine", raising(KeyError("cpu")))
    with pytest.raises(KeyError):
        gpu_attend.attend(True)


def test_a_variant_with_other_bits_is_counted(monkeypatch):
    real = gpu_hopper.functional.liif_decode

    def decode(*arguments, **options):
        return real(*arguments, **options) + (gpu_hopper.cuda.CLUSTER == 2)

    monkeypatch.setattr(gpu_hopper.functional, "liif_decode", decode)
    monkeypatch.setattr(gpu_hopper, "_tune", lambda *_: {})
    found = gpu_hopper.hopper(True)
    assert not found["ok"] and set(found["bits"].values()) == {2}
    assert gpu_hopper.cuda.CLUSTER == 1


def test_the_tests_on_a_gpu_are_of_the_backends_asked_for(monkeypatch):
    monkeypatch.setenv("LIIF_FAST_TEST_BACKENDS", "cuda")
    spec = test_operator.__spec__
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    assert tests.EVERY.args == ("backend", ("cuda",)) and tests.FUSED.args == ("backend", ["cuda"])
    assert tests.TRITON.args == ("backend", [])

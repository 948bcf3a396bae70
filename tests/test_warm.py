"""Test the tests' own processes: what they start does not outlive them unseen, and groups of tests share one."""

import os
import time
from contextlib import suppress

import pytest

from . import warm

ORPHAN = """
import subprocess, sys, time
print(subprocess.Popen(["sleep", "300"], start_new_session=True).pid, flush=True)
time.sleep(float(sys.argv[1]))
"""


def assert_gone(pid):
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_outlives_a_run_is_an_error_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "END", 0.2)
    with open(tmp_path / "said", "w+") as said, pytest.raises(TimeoutError):
        warm.run("-c", ORPHAN, 0, stdout=said)
    assert_gone(int((tmp_path / "said").read_text()))


@pytest.fixture
def orphan():
    """Return the writing end of a pipe, and a function that waits for the number which ORPHAN says."""
    reading, writing = os.pipe()
    with open(reading) as out:
        yield writing, lambda: int(out.readline())
    os.close(writing)


def test_with_ends_all_that_was_started(orphan):
    writing, number = orphan
    with warm.Process("-c", ORPHAN, 300, stdout=writing) as process:
        pid = number()
    assert process.returncode == -9
    assert_gone(process.pid)
    assert_gone(pid)


def test_the_end_of_the_tests_process_ends_all_that_was_started(orphan):
    writing, number = orphan
    warm.run("-c", "")  # so that the process which forks is this one's
    if not (child := os.fork()):
        with suppress(BaseException):
            process = warm.Process("-c", ORPHAN, 300, stdout=writing)
            os.write(writing, b"%d\n" % number())  # again, for the test
            assert process.poll() is None
        os._exit(0)
    os.waitpid(child, 0)
    pid = number()
    for _ in range(600):
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            time.sleep(0.1)
            continue
        return
    raise AssertionError(f"process {pid} still runs")


def test_an_empty_environment_is_empty():
    assert warm.run("-c", "import os; print(dict(os.environ))", env={}, check=True).stdout == "{}\n"


@pytest.mark.xdist_group("together")
def test_a_group_has_one_worker(request):
    """pytest-xdist tells a group by the end of a test's name; without it, groups would be divided silently."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("pytest does not run with --dist loadgroup")
    assert request.node.nodeid.endswith("@together")

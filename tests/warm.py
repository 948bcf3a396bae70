"""Run Python with PyTorch at hand: in a process forked from one that has imported it and done nothing else.

The import takes longer than most of what the tests' processes do. All else is as with `python ARGUMENTS` in a new
session: arguments, variables, folder, streams, `__main__`, signals, the end. But all of them have one hash seed and one
address layout, and count PyTorch's own pages in their memory when they first read them: measure memory as the growth
after a call of the same kind. Use subprocess to test what comes before the import. Needs Linux.

A process and all that it starts are killed when its `with` or the test's process ends, in whatever session they are.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from functools import cache
from pathlib import Path
from typing import IO, Any

TORCH = ("torch",)
OPTIMIZERS = ("torch", "torch._dynamo")  # an optimizer of PyTorch imports the compiler, which takes as long again
START, END = 300, 60  # seconds for the import, and for what a process has started to end after it
SUBREAPER = 36  # of Linux's prctl: a descendant without a parent becomes this process's child


@cache
def _server(modules: tuple[str, ...]) -> socket.socket:
    """Start the process that forks; it ends when this one does."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, __file__, str(theirs.fileno()), *modules]
    subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, start_new_session=True)  # without Ctrl-C
    theirs.close()
    return ours


class Process:
    """A process of its own: `python ARGUMENTS`, where these begin with -c CODE, -m MODULE or a file.

    `modules` have been imported in it. The other options are subprocess.Popen's, except that stdin is empty by default.
    `with` ends it, and all that it has started.
    """

    def __init__(
        self,
        *arguments: object,
        cwd: object = None,
        env: dict[str, str] | None = None,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] = 1,
        stderr: int | IO[Any] = 2,
        modules: tuple[str, ...] = TORCH,
    ) -> None:
        job = [*map(str, arguments)], str(cwd or os.getcwd()), dict(os.environ) if env is None else env
        self._ends, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)  # a message at a time
        with theirs, open(os.devnull) as nothing:
            streams = (nothing if stdin is None else stdin, stdout, stderr)
            fds = [theirs.fileno(), *(each if isinstance(each, int) else each.fileno() for each in streams)]
            socket.send_fds(_server(modules), [pickle.dumps(job)], fds)
        self.pid, self.returncode = self._number(START), None

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.shutdown(socket.SHUT_WR)
        self.wait_for_all()

    def _number(self, timeout: float) -> int:
        self._ends.settimeout(timeout)
        return pickle.loads(self._ends.recv(64))

    def wait(self, timeout: float = 60) -> int:
        """Return the exit code, which is negative after a signal; raise TimeoutError."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(self._number(timeout))
        return self.returncode

    def wait_for_all(self, timeout: float = 60) -> int:
        """Return the exit code when all that the process has started has ended, too; raise TimeoutError."""
        code = self.wait(timeout)
        self._ends.settimeout(END)
        assert not self._ends.recv(64)  # the other side is closed
        return code

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.returncode is None and select.select([self._ends], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process at once."""
        self.send_signal(signal.SIGKILL)


def run(*arguments: object, timeout: float = 120, check: bool = False, **options: Any) -> Any:
    """Run `python ARGUMENTS` and return subprocess.CompletedProcess, with what it and all it has started said as text.

    Raise TimeoutError if it runs longer than `timeout`, or something that it has started outlives it.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with Process(*arguments, **{"stdout": out, "stderr": err} | options) as process:
            process.wait_for_all(timeout)
        for each in (out, err):
            each.seek(0)
        done = subprocess.CompletedProcess(arguments, process.returncode, out.read(), err.read())
    assert not check or done.returncode == 0, done.stderr
    return done


def _serve(jobs: socket.socket, *modules: str) -> list[str]:
    """Import modules and fork for every job; return the job's arguments in the child that shall do it."""
    for each in modules:
        importlib.import_module(each)
    gc.freeze()
    gc.disable()  # whose changes of the objects would copy their pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        job, fds, *_ = socket.recv_fds(jobs, 1 << 20, 4)
        if not job:
            sys.exit()
        if os.fork() == 0:
            break
        for each in fds:
            os.close(each)
    jobs.close()
    ends, *streams = fds
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)  # of the child's parent alone
    child = os.fork()
    told = socket.socket(fileno=ends)
    if child:
        for each in streams:
            os.close(each)
        _attend(told, child)
    os.setsid()
    with told:
        told.send(pickle.dumps(os.getpid()))
    for number, each in enumerate(streams):
        os.dup2(each, number)
        os.close(each)
    gc.enable()
    arguments, cwd, environment = pickle.loads(job)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    sys.modules["torch"].set_num_threads(int(environment.get("OMP_NUM_THREADS", os.cpu_count())))
    return arguments


def _attend(told: socket.socket, child: int) -> None:
    """Report when the child ends; exit when everything it started has ended. Kill all of it once nobody listens."""

    def end() -> None:
        told.recv(1)  # nothing is ever sent
        while True:  # those who lose their parent are seen in the next round
            for each in Path("/proc/self/task").glob("*/children"):
                for pid in each.read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.01)

    threading.Thread(target=end, daemon=True).start()
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.wait()
            if pid == child:
                with contextlib.suppress(BrokenPipeError):
                    told.send(pickle.dumps(status))
    os._exit(0)


def _begin(how: str, *arguments: str) -> None:
    """Run as `python ARGUMENTS` would."""
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if not getattr(sys.flags, "safe_path", False):
        sys.path.remove(os.path.dirname(__file__))  # of the script that runs
        sys.path.insert(0, {"-m": os.getcwd(), "-c": ""}.get(how, os.path.dirname(how)))
    if how == "-m":
        sys.argv = [*arguments]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.argv = ["-c", *arguments[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(arguments[0], "<string>", "exec"), vars(main))
    else:
        sys.argv = [how, *arguments]
        runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
    _begin(*_serve(socket.socket(fileno=int(sys.argv[1])), *sys.argv[2:]))

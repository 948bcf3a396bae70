"""Run Python with PyTorch at hand: in a process forked from one that has imported it and done nothing else.

The import takes longer than most of what the tests' processes do. All else is as after `python ARGUMENTS`: arguments,
variables, folder, streams, `__main__`, signals, the end. Use subprocess to test what comes before the import, and to
measure memory: a forked process counts PyTorch's own pages when it first reads them. Needs Linux.
"""

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
import types
from functools import cache
from typing import IO, Any

TORCH = ("torch",)
OPTIMIZERS = ("torch", "torch._dynamo")  # an optimizer of PyTorch imports the compiler, which takes as long again


@cache
def _server(modules: tuple[str, ...]) -> socket.socket:
    """Start the process that forks; it ends when this one does."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, __file__, str(theirs.fileno()), *modules]
    subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env)
    theirs.close()
    return ours


class Process:
    """A process of its own: `python ARGUMENTS`, where these begin with -c CODE, -m MODULE or a file.

    `modules` have been imported in it. The other options are subprocess.Popen's, except that stdin is empty by default.
    """

    def __init__(
        self,
        *arguments: object,
        cwd: object = None,
        env: dict[str, str] | None = None,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] = 1,
        stderr: int | IO[Any] = 2,
        start_new_session: bool = False,
        modules: tuple[str, ...] = TORCH,
    ) -> None:
        job = [*map(str, arguments)], str(cwd or os.getcwd()), env or dict(os.environ), start_new_session
        self._ends, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)  # a message at a time
        with theirs, open(os.devnull) as nothing:
            streams = (nothing if stdin is None else stdin, stdout, stderr)
            fds = [theirs.fileno(), *(each if isinstance(each, int) else each.fileno() for each in streams)]
            socket.send_fds(_server(modules), [pickle.dumps(job)], fds)
        self.pid, self.returncode = self._number(60), None

    def _number(self, timeout: float) -> int:
        self._ends.settimeout(timeout)
        return pickle.loads(self._ends.recv(64))

    def wait(self, timeout: float = 60) -> int:
        """Return the exit code, which is negative after a signal; raise TimeoutError."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(self._number(timeout))
            self._ends.close()
        return self.returncode

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
    """Run `python ARGUMENTS` to its end and return subprocess.CompletedProcess, with what it said as text."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = Process(*arguments, **{"stdout": out, "stderr": err} | options)
        try:
            process.wait(timeout)
        finally:
            process.kill()
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
    child = os.fork()
    if child:  # the child's parent, which tells its number and its end
        for each in streams:
            os.close(each)
        with socket.socket(fileno=ends) as told:
            told.send(pickle.dumps(child))
            told.send(pickle.dumps(os.waitpid(child, 0)[1]))
        os._exit(0)
    os.close(ends)
    for number, each in enumerate(streams):
        os.dup2(each, number)
        os.close(each)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.enable()
    arguments, cwd, environment, session = pickle.loads(job)
    if session:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    sys.modules["torch"].set_num_threads(int(environment.get("OMP_NUM_THREADS", os.cpu_count())))
    return arguments


def _begin(how: str, *arguments: str) -> None:
    """Do what `python ARGUMENTS` does."""
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

"""Test the program around the commands (signals, pipes, help) and each small command."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import liif_fast
from liif_fast.cli import main
from liif_fast.models import catalogue
from liif_fast.signals import insist, unwinding

from .. import warm
from .support import ROOT, assert_one_line


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_while_writing(tmp_path: Path, photo: Path, model: str, number: int, code: int) -> None:
    """Stop a real process between the first and the last byte of the output, and again while it cleans up.

    A terminal that a shell closes sends SIGHUP twice.
    """
    script = (
        "import os, pathlib, sys, time\n"
        "import numpy as np\n"
        "from liif_fast.cli import main\n"
        "from liif_fast.upscaling import api\n"
        "def strips(*args):\n"
        "    yield np.zeros((1, 28, 3), np.uint8)\n"
        "    print('writing', flush=True); time.sleep(60)\n"
        "api.render_strips = strips\n"
        "unlink = pathlib.Path.unlink\n"
        f"pathlib.Path.unlink = lambda path: os.kill(os.getpid(), {int(number)}) or unlink(path)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    args = ["upscale", str(photo), str(target), "--scale=2", f"--model={model}"]
    reading, writing = os.pipe()
    with open(reading) as out, tempfile.TemporaryFile("w+") as err:
        with warm.Process("-c", script, *args, stdout=writing, stderr=err, cwd=ROOT) as process:
            os.close(writing)
            assert out.readline() == "writing\n"
            assert len(list(tmp_path.iterdir())) == 3
            time.sleep(0.2)
            process.send_signal(number)
            assert process.wait() == code
        err.seek(0)
        assert "Traceback" not in err.read()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]
    assert target.read_bytes() == b"old"


def test_a_signal_after_the_command_prints_nothing() -> None:
    """Python would print a traceback of its own end."""
    script = (
        "import atexit, os, signal, sys\n"
        "from liif_fast.cli import main\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", script, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == f"liif-fast {liif_fast.__version__}\n"
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("longer", [30, 0])
def test_a_signal_whose_exception_python_drops_comes_again(capsys: pytest.CaptureFixture[str], longer: int) -> None:
    """Training forks workers, and Python prints and forgets what its hooks after a fork raise, as here in `__del__`."""

    class Dropping:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    def work() -> None:
        with unwinding(last=False):
            Dropping()
            time.sleep(longer)  # 0: the work is done before the signal comes

    with pytest.raises(SystemExit) as caught:
        work()
    assert caught.value.code == 143
    assert capsys.readouterr().err == ""


def test_a_command_within_a_command_keeps_the_signal() -> None:
    def work() -> None:
        with unwinding(last=False):
            with contextlib.suppress(SystemExit):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0)
            with unwinding(last=False):
                insist()  # nothing has come within it
            insist()

    with pytest.raises(SystemExit, match="143"):
        work()


@pytest.mark.parametrize("several", [False, True])
def test_a_signal_that_a_library_turns_into_an_error(
    tmp_path: Path,
    photo: Path,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    several: bool,
) -> None:
    """PyTorch's compiler turns KeyboardInterrupt into an AttributeError while an export imports it."""

    def catching(*args: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)
        except BaseException:
            raise RuntimeError("no attribute 'exc'") from None

    monkeypatch.setattr("liif_fast.upscaling.upscale_picture", catching)
    (tmp_path / "more").mkdir()
    paths = [str(tmp_path), str(tmp_path / "more")] if several else [str(photo), str(tmp_path / "a.png")]
    assert main(["upscale", *paths, "--scale=2", f"--model={model}"]) == 130
    said = capsys.readouterr().err
    assert said.endswith("liif-fast: interrupted\n")
    assert "exc" not in said


def test_outside_the_main_thread(tmp_path: Path, photo: Path, model: str) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    args = ["upscale", str(photo), str(tmp_path / "out.png"), "--scale=2", f"--model={model}"]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, args).result() == 0
    assert (tmp_path / "out.png").exists()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("module", ["argparse", "PIL.Image", "torch"])
def test_interrupted_while_importing(tmp_path: Path, photo: Path, module: str) -> None:
    script = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(name, path, target=None):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder)\n"
        "from liif_fast.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    args = ["upscale", str(photo), str(tmp_path / "out.png"), "--scale=2"]
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (130, "liif-fast: interrupted\n")


@pytest.mark.parametrize("command", [["models"], ["--help"]])
def test_a_reader_that_leaves_ends_the_command_quietly(command: list[str]) -> None:
    """Simulate `liif-fast models | head -1`."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}  # argparse ignores errors
    reading, writing = os.pipe()
    os.close(reading)
    done = warm.run("-m", "liif_fast", *command, stdout=writing, cwd=ROOT, env=env)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("command", ["models", "--help"])
def test_a_full_disk_behind_stdout_is_one_line(command: str) -> None:
    """Python adds no message of its own; it would fail to flush at exit and return 120."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as full:
        done = warm.run("-m", "liif_fast", command, stdout=full, cwd=ROOT, env=env)
    assert (done.returncode, done.stderr) == (1, "liif-fast: error: No space left on device\n")


def test_a_reader_that_leaves_does_not_cost_the_caller_his_streams(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with monkeypatch.context() as patch:
        stream = open(writing, "w", buffering=1)
        patch.setattr(sys, "stdout", stream)
        assert main(["info"]) == 141
        assert not stream.closed
        with contextlib.suppress(BrokenPipeError):
            stream.close()
    assert not sys.stderr.closed
    assert capsys.readouterr().err == ""


def test_help_names_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["upscale"]):
        assert main([*command, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        for code in (0, 1, 2, 129, 130, 141, 143):
            assert re.search(rf"Exit codes: .*\b{code} ", text), code


def test_help_and_usage_errors_import_no_torch() -> None:
    script = (
        "import sys\n"
        "from liif_fast.cli import main\n"
        "for args in ([], ['--help'], ['--version'], ['upscale', '--help'], ['frobnicate'],\n"
        "             ['upscale', 'missing.png', 'out.png', '--scale=2']):\n"
        "    print(main(args), file=sys.stderr)\n"
        "print([name for name in ('torch', 'triton', 'numpy.linalg') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.endswith("[]\n")
    assert [line for line in done.stderr.splitlines() if line.isdigit()] == ["2", "0", "0", "0", "2", "1"]


def test_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "liif_fast", "--version"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == f"liif-fast {liif_fast.__version__}\n"


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frobnicate"]) == 2
    assert_one_line(capsys.readouterr().err, "invalid choice: 'frobnicate'")


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for word in (liif_fast.__version__, torch.__version__, "reference", "chosen by auto", "native build", "model"):
        assert word in out


@pytest.mark.parametrize("damaged", ["{", "[]", '{"cpu": 3}', "\xff"])
def test_info_of_a_damaged_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    """Every row is printed, and that of the damaged file gives the reason."""
    (tmp_path / "_build_info.json").write_text(damaged, encoding="latin-1")
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    monkeypatch.setattr(liif_fast, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(catalogue, "shipped_model", lambda: tmp_path / "model.safetensors")
    assert main(["info"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert "build_info.json cannot be read: " in rows["native"]
    assert rows["model"].startswith(
        f"cannot be used: {tmp_path / 'model.safetensors'}: not a readable safetensors file"
    )
    assert "torch" in rows


def test_traceback_on_request(tmp_path: Path) -> None:
    with pytest.raises(liif_fast.images.ImageFileError):
        main(["--traceback", "upscale", str(tmp_path / "none.png"), str(tmp_path / "out.png"), "--scale=2"])


def test_train_passes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    import liif_fast.train as package

    seen = []
    monkeypatch.setattr(package, "train", lambda config, **options: seen.append((config, options)))
    assert main(["train", "--config", "c.yaml", "--tag", "t", "--resume"]) == 0
    assert seen == [("c.yaml", {"name": None, "tag": "t", "resume": True, "device": "auto"})]


def test_a_signal_that_ends_the_benchmarks_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, -9))
    assert main(["bench", "decode"]) == 137
    assert main(["bench", "--compare", "a", "b"]) == 137


def test_bench_outside_a_source_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(liif_fast, "__file__", str(tmp_path / "liif_fast" / "__init__.py"))
    assert main(["bench"]) == 1
    assert_one_line(capsys.readouterr().err, "not part of the installed package")

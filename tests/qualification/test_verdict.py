"""Test how `auto` reads the verdict: the file's owner, its key, and the message without one."""

import json
import logging
import math
import os
from types import SimpleNamespace

import pytest
import torch

from liif_fast import backends, devices, functional, info, models
from liif_fast.backends import verdict
from liif_fast.call import Call, Switches
from liif_fast.cli import main

from ..cli.support import raising
from ..ops.support import Problem, run_python

RIGHT = {"correct": True, "taken": True, "ratio": 2.0, "than": "cpu"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Use an empty folder of verdicts, and forget verdicts read before."""
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path))
    monkeypatch.setattr(backends, "_said", set())
    read = verdict.read
    read.cache_clear()
    yield tmp_path
    read.cache_clear()


def keep(results, key=None):
    """Write a verdict for this machine, and return its path."""
    key = key or verdict.key("cpu", None)
    verdict.write(verdict.Verdict(verdict.path_of(key), key, "2026-01-01", results))
    return verdict.path_of(key)


def of_cuda(monkeypatch, found):
    """Let this process find a verdict on every device, and the backend triton take CUDA tensors."""
    monkeypatch.setattr(verdict, "read", lambda kind, index: found)
    monkeypatch.setattr(backends, "ask", lambda name, call: (name in ("triton", "torch"), "because"))


def call(**other):
    device, wide = torch.device("cuda", 0), torch.float32
    it = Call("decode", device, torch.float16, (1, 64, 8, 8), 9, (256, 3), Switches(), wide, None, False, False)
    return it._replace(**other)


def test_it_is_read_as_it_was_written():
    path = keep({"triton": {"decode, float32": RIGHT}})
    found = verdict.read("cpu", None)
    assert found == (path, verdict.key("cpu", None), "2026-01-01", {"triton": {"decode, float32": RIGHT}})
    assert verdict.faster("cpu", None, ("decode", torch.float32, False)) == ("triton",)
    assert verdict.faster("cpu", None, ("decode", torch.float32, True)) == ()
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("part", ["liif_fast", "sources", "torch", "cuda", "triton", "environment", "device"])
def test_it_holds_for_its_key_only(part, monkeypatch):
    other = {**verdict.key("cpu", None), part: "another"}
    path = keep({}, other)
    monkeypatch.setenv(verdict.VARIABLE, str(path))
    assert path.suffix == ".json" and verdict.path_of({}) == path
    assert verdict.read("cpu", None) is None


def test_sources_and_settings_are_in_the_key(tmp_path, monkeypatch):
    from liif_fast import kernels

    before = verdict.key("cpu", None)
    tool = tmp_path / "ptxas"
    tool.write_text("old")
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(tool))
    with_tool = verdict.key("cpu", None)
    tool.write_text("newer")
    assert len({json.dumps(each) for each in (before, with_tool, verdict.key("cpu", None))}) == 3
    monkeypatch.setattr(kernels, "__path__", [str(tmp_path)])
    assert verdict.key("cpu", None)["sources"] != before["sources"]


def test_a_gpu_is_described_by_what_matters(monkeypatch):
    """The driver's build comes from NVML, or without NVML from the driver's CUDA version."""
    has = {"name": "GPU", "major": 9, "minor": 0, "multi_processor_count": 132, "total_memory": 150 * 2**30 + 5}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**has))
    nvml = SimpleNamespace(
        nvmlInit_v2=lambda: 0, nvmlSystemGetDriverVersion=lambda text, size: setattr(text, "value", b"550.54") or 0
    )
    monkeypatch.setattr(verdict.ctypes, "CDLL", lambda name: nvml)
    known = {"name": "GPU", "capability": "9.0", "processors": 132, "memory_gib": 150}
    assert verdict.key("cuda", 0)["device"] == {**known, "driver": "550.54"}
    monkeypatch.setattr(verdict.ctypes, "CDLL", raising(OSError))
    assert verdict.key("cuda", 0)["device"] == {**known, "driver": "CUDA 0"}


def test_a_processor_is_described_by_more_than_its_name(monkeypatch):
    """Virtual machines give many models one name; off Linux there is only the name."""
    text = "processor: 0\nmodel name: CPU\ncpu family: 6\nmodel: 143\nstepping: 8\nmicrocode: 0x2b\nbugs:\n\n"
    monkeypatch.setattr(devices.Path, "read_text", lambda path: text + text.replace("8", "9"))
    exact = {"cpu family": "6", "model": "143", "stepping": "8", "microcode": "0x2b"}
    set_of = torch.backends.cpu.get_cpu_capability()
    assert verdict._cpu() == {"name": "CPU", **exact, "instructions": set_of}
    monkeypatch.setattr(devices.Path, "read_text", raising(FileNotFoundError))
    assert set(verdict._cpu()) == {"name", "instructions"}


@pytest.mark.skipif(os.name == "nt", reason="no permissions of files here")
@pytest.mark.parametrize("before", [None, 0o664])
def test_nobody_meets_it_with_other_permissions(before, monkeypatch):
    """This includes a process that reads while another writes, whatever the umask and the earlier permissions."""
    path, replace, modes = verdict.path_of(verdict.key("cpu", None)), os.replace, []
    if before is not None:
        keep({}).chmod(before)
    # At the end of the context, and when it is found under its name.
    monkeypatch.setattr(os, "fsync", lambda file: modes.append(os.fstat(file).st_mode & 0o777))
    monkeypatch.setattr(os, "replace", lambda old, new: (modes.append(old.stat().st_mode & 0o777), replace(old, new)))
    umask = os.umask(0)
    try:
        assert keep({}) == path
    finally:
        os.umask(umask)
    assert modes == [0o644] * 2


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners of files here")
def test_what_others_could_have_written_is_not_taken(caplog, monkeypatch):
    path = keep({"triton": {}})
    path.chmod(0o664)
    assert verdict.read("cpu", None) is None
    path.chmod(0o644)
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    verdict.read.cache_clear()
    owned_by_root = path.stat().st_uid == 0
    assert (verdict.read("cpu", None) is None) != owned_by_root
    assert all(str(path) in record.message and "not used" in record.message for record in caplog.records)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 1}', "\xff", "[" * 100_000, "half"])
def test_a_damaged_file_is_said_and_passed_over(text, caplog):
    path = keep({"triton": {"decode, float32": RIGHT}})
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2] if text == "half" else text, encoding="latin-1")
    assert verdict.read("cpu", None) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and str(path) in record.message


@pytest.mark.parametrize(
    "results",
    [[], {"triton": []}, {"triton": {"decode, float32": 1}}, {"triton": {"decode, float32": {"taken": True}}},
     *({"triton": {"decode, float32": {**RIGHT, **other}}} for other in (
        {"ratio": "2"}, {"ratio": math.nan}, {"ratio": 10**400}, {"correct": False}, {"correct": "no"}, {"taken": "no"}
     ))],
)  # fmt: skip
def test_results_of_another_form_are_said_and_passed_over(results, caplog):
    path = keep(results)
    assert verdict.faster("cpu", None, ("decode", torch.float32, False)) == ()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and str(path) in record.message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_file_is_not_waited_for(monkeypatch, tmp_path, caplog):
    os.mkfifo(tmp_path / "pipe.json", 0o600)
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / "pipe.json"))
    assert verdict.read("cpu", None) is None
    assert "not a file" in caplog.text


def test_info_shows_it(monkeypatch):
    assert info._verdict("cpu", None) == []
    assert "none; `liif-fast qualify`" in info._verdict("cuda", 0)[0][1]
    verdict.read.cache_clear()
    path = keep({"triton": {"decode, float32": RIGHT, "render, float32": {"correct": False, "why": "output"}}})
    text = f"1 of 2 kinds of call passed, auto takes 1, 2026-01-01, in {path}"
    assert info._verdict("cpu", None) == [("verdict", text)]


def test_a_home_that_cannot_be_read_is_no_reason_to_warn(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    for home in (str(tmp_path / "file"), "~nobody-of-that-name/verdicts"):
        monkeypatch.setenv(verdict.VARIABLE, home)
        verdict.read.cache_clear()
        assert verdict.read("cpu", None) is None
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_it_stays_for_the_life_of_the_process():
    assert verdict.read("cpu", None) is None
    keep({})
    assert verdict.read("cpu", None) is None


def test_off(monkeypatch, caplog):
    keep({})
    monkeypatch.setenv(verdict.VARIABLE, "off")
    assert verdict.read("cpu", None) is None
    of_cuda(monkeypatch, None)
    backends.order(call())
    assert not caplog.records


def test_without_one_a_gpu_is_told_once(monkeypatch, caplog):
    of_cuda(monkeypatch, None)
    for _ in range(2):
        assert backends.order(call()) == backends.AUTO
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "liif_fast")
    assert "off until `liif-fast qualify`" in record.message and "5 minutes" in record.message
    assert "off in auto until `liif-fast qualify`" in str(backends.explain(call(), "auto"))


def test_a_command_says_it(monkeypatch, capsys):
    of_cuda(monkeypatch, None)
    monkeypatch.setattr("liif_fast.cli.info.run", lambda args: len(backends.order(call())) - len(backends.AUTO))
    assert main(["info"]) == 0
    assert capsys.readouterr().err == f"liif-fast: {backends.NO_VERDICT}\n"


def test_where_no_kernel_could_run_nothing_is_said(monkeypatch, caplog):
    of_cuda(monkeypatch, None)
    monkeypatch.setattr(backends, "ask", lambda name, call: (name == "torch", "needs compute capability 8.0"))
    backends.order(call())
    backends.order(call(device=torch.device("cpu")))
    assert not caplog.records


@pytest.mark.parametrize("training", [False, True])
def test_a_model_with_attention_takes_what_was_right_and_faster(training, monkeypatch):
    """ILN's own call follows the verdict in inference; in training nothing has passed."""
    taken = []
    for name in ("triton", "torch"):

        def run(*arguments, name=name):
            taken.append(name)
            return backends._backends["reference"].attend_corners(*arguments)

        monkeypatch.setattr(backends._backends[name], "attend_corners", run)
    monkeypatch.setattr(backends, "ask", lambda name, call: (name in ("triton", "torch"), "because"))
    model = models.make({"name": "iln", "args": {"d": 1, "h": 4}}).eval()
    with torch.set_grad_enabled(training):
        model.keep(torch.zeros(1, 64, 3, 4), torch.zeros(1, 1, 3, 4))
        for found in ({}, {"triton": {"attend_corners, float32": RIGHT}}):
            keep(found)
            verdict.read.cache_clear()
            model.attend(torch.zeros(1, 5, 2))
    assert taken == ["torch", "torch" if training else "triton"]


def test_auto_takes_what_was_right_and_faster(monkeypatch, caplog):
    slow = {**RIGHT, "taken": False, "ratio": 0.5}
    wrong = {"correct": False, "why": "output: error 1, allowed 0.1"}
    results = {
        "cuda": {"decode, float16": {**RIGHT, "ratio": 1.5}, "render, float16": wrong},
        "triton": {"decode, float16": RIGHT, "decode, bfloat16, training": slow, "render, float16": RIGHT},
    }
    of_cuda(monkeypatch, verdict.Verdict(None, {}, "", results))
    assert backends.order(call()) == ("triton", "cuda", *backends.AUTO)
    assert backends.order(call(), call(op="render")) == ("triton", *backends.AUTO)
    with caplog.at_level(logging.INFO, "liif_fast"):
        assert backends.order(call(op="render")) == ("triton", *backends.AUTO)
        training = call(dtype=torch.float32, autocast=torch.bfloat16, requires_grad=True)
        assert backends.order(training) == backends.AUTO
    assert [record.message for record in caplog.records] == [
        "backend cuda is not used for render: WRONG: output: error 1, allowed 0.1",
        "backend triton is not used for decode: passed, 0.50 times as fast as cpu, so auto leaves it",
    ]
    assert backends.explain(call(), "auto").chosen == "triton"


def test_precisions_of_float32(monkeypatch):
    of_cuda(monkeypatch, verdict.Verdict(None, {}, "", {"triton": {"decode, tf32": RIGHT}}))
    assert backends.order(call(dtype=torch.float32)) == backends.AUTO
    monkeypatch.setattr(verdict, "tf32_allowed", lambda: True)
    assert backends.order(call(dtype=torch.float32)) == ("triton", *backends.AUTO)


def test_compiled_calls_take_it_and_exported_programs_do_not(monkeypatch):
    """An exported program ignores the verdict, because it also runs on other machines."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    keep({"triton": {"decode, float32": RIGHT}})
    problem = Problem()
    graphs = []

    class Decoder(torch.nn.Module):
        def forward(self, feat, coord, cell, weights, biases):
            return functional.liif_decode(feat, coord, cell, weights, biases)

    def note(graph, inputs):
        graphs.append(graph)
        return graph

    with torch.no_grad():
        torch.compile(Decoder(), fullgraph=True, backend=note)(*problem.arguments)
        exported = torch.export.export(Decoder(), problem.arguments)
    torch._dynamo.reset()
    assert "triton" in str(graphs[0].code)
    assert "triton" not in str(exported.graph_module.code)


def test_a_call_of_the_library_starts_no_process_and_loads_no_triton():
    code = """
import subprocess, sys, torch
subprocess.Popen = None
from liif_fast import functional
layers = [torch.ones(8, 10), torch.ones(3, 8)], [torch.ones(8), torch.ones(3)]
functional.fused_mlp(torch.ones(2, 10), *layers)
print("triton" in sys.modules or "liif_fast.qualification" in sys.modules)
"""
    assert run_python(code) == "False"


@pytest.mark.parametrize("missing", verdict.AMX_UNITS)
def test_amx_needs_every_kind_of_call(missing):
    """AMX stays off if one kind of call was not examined or was wrong, even one that is never taken."""
    every = dict.fromkeys(verdict.AMX_UNITS, RIGHT)
    for results, reason in (
        ({name: of for name, of in every.items() if name != missing}, f"{missing}: not decided: not examined"),
        ({**every, missing: {"correct": False, "why": "so"}}, f"{missing}: WRONG: so"),
        ({**every, "other": {"correct": False, "why": "so"}}, "other: WRONG: so"),
        (every, ""),
    ):
        verdict.read.cache_clear()
        keep({verdict.AMX: results})
        on, why = verdict.of_all("cpu", None, verdict.AMX, verdict.AMX_UNITS)
        assert (on, why) == ((False, reason) if reason else (True, "qualified 2026-01-01"))
        assert f"AMX is {'off' if reason else 'on'}" in verdict.read("cpu", None).summary()

"""Test Triton's known faults: which (version, architecture) is refused or warned about, in which order to search."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import audit_ptx
from liif_fast.backends import triton as backend
from liif_fast.kernels import host, versions

LOOP = """
.visible .entry kernel() {
    mov.b32 %r1, 0;
$L_loop:
    st.shared.v2.b32 [%r5], {%r1, %r2};
    cp.async.wait_group 0;
    bar.sync 0;
    wgmma.mma_async.sync.aligned.m64n32k8.f32.tf32.tf32 {%f1}, %rd1, %rd2, 1, 1, 1;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    cp.async.cg.shared.global [%r6], [%rd3], 16;
    bar.sync 0;
    @%p1 bra $L_loop;
    st.shared.b32 [%r5], %r1;
    ret;
}
"""
LAST = "bar.sync 0;\n    @"


def test_a_write_behind_a_product_needs_a_barrier():
    assert audit_ptx.unordered_writes(LOOP, 8) == []
    found = audit_ptx.unordered_writes(LOOP.replace(LAST, "@"), 8)
    assert found == ["st.shared.v2.b32 [%r5], {%r1, %r2}"]
    assert audit_ptx.unordered_writes(LOOP.replace(LAST, "@"), 4) == []  # one warp group


def test_a_barrier_on_one_of_two_paths_is_not_enough():
    branch = "@%p2 bra $L_past;\n    bar.sync 0;\n$L_past:\n    @"
    assert audit_ptx.unordered_writes(LOOP.replace(LAST, branch), 8)
    table = "$L_brx_0: .branchtargets\n\t$L_past,\n\t$L_wait;\n    brx.idx %r3, $L_brx_0;\n$L_wait:\n    bar.sync 0;\n"
    assert audit_ptx.unordered_writes(LOOP.replace(LAST, f"{table}$L_past:\n    @"), 8)
    newer = table.replace("$L_brx_0: ", "JTI0_0:\n    ").replace("$L_brx_0", "JTI0_0")
    assert audit_ptx.unordered_writes(LOOP.replace(LAST, f"{newer}$L_past:\n    @"), 8)


@pytest.mark.parametrize(
    ("version", "arch", "refused", "warned"),
    [
        ((3, 6), 80, 0, 0), ((3, 6), 89, 0, 0), ((3, 6), 90, 0, 2), ((3, 7), 90, 0, 2), ((3, 9), 90, 0, 0),
        ((3, 6), 100, 1, 1), ((3, 7), 100, 0, 1), ((3, 7), 103, 0, 1), ((3, 9), 100, 0, 0), ((3, 6), 120, 0, 0),
    ],
)  # fmt: skip
def test_the_table(version, arch, refused, warned):
    assert [len(versions.faults(arch, version, kind)) for kind in (True, False)] == [refused, warned]


@pytest.mark.parametrize(
    ("version", "arch", "rows", "lacks"),
    [((3, 6), 90, 64, True), ((3, 6), 90, 16, False), ((3, 6), 80, 64, False), ((3, 7), 90, 64, False)],
)
def test_where_the_kernels_place_a_fence(version, arch, rows, lacks, monkeypatch):
    """Elsewhere a fence would cost time, and sm_80 has no such instruction."""
    monkeypatch.setattr(host, "INTERPRETED", False)
    monkeypatch.setattr(host, "TRITON", version)
    monkeypatch.setattr(host, "current_target", lambda: SimpleNamespace(arch=arch))
    assert host.lacks_fence(rows) == lacks


def answer(monkeypatch, capability, version, hip=None):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(host, "TRITON", version)
    return backend._why_not_on("cuda", 0)


def test_the_backend_refuses(monkeypatch):
    assert answer(monkeypatch, (9, 0), (3, 6)) == ""
    assert answer(monkeypatch, (10, 0), (3, 7)) == ""
    assert "on sm_100 leaves out barriers" in answer(monkeypatch, (10, 0), (3, 6))
    assert "needs compute capability 8.0, got 7.5" in answer(monkeypatch, (7, 5), (3, 9))


def test_amd_is_refused(monkeypatch):
    """An MI200 also reports capability 9.0."""
    assert "NVIDIA" in answer(monkeypatch, (9, 0), (3, 9), hip="6.2")


def test_a_warning_once_in_a_process(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(host, "TRITON", (3, 7))
    host.warn.cache_clear()
    device = torch.device("cuda", 0)
    with caplog.at_level("WARNING", "liif_fast"):
        assert [host.architecture(device) for _ in range(3)] == [90] * 3
    assert len(caplog.records) == 2
    assert all("sm_90" in record.getMessage() for record in caplog.records)
    host.warn.cache_clear()

"""Run programs that compile and execute kernels with a version of Triton.

All programs of a session share what they compile, also those of other workers of pytest-xdist.
"""

import json
import os
import subprocess
import sys

import pytest

from ..kernels.test_compile_report import ROOT, environment


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """Return a function (version of Triton, code, arguments, **variables) that runs it: see server.py."""
    folder, servers = tmp_path_factory.getbasetemp(), {}
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def run(version, code, *arguments, **variables):
        if version not in servers:
            known = environment(version, TRITON_CACHE_DIR=str(folder / "triton"))
            known["PYTHONPATH"] = f"{known.get('PYTHONPATH', '')}:{ROOT}"
            command = [sys.executable, "-m", "tests.ptx.server"]
            pipe = subprocess.PIPE
            servers[version] = subprocess.Popen(command, cwd=ROOT, env=known, stdin=pipe, stdout=pipe, text=True)
        server = servers[version]
        server.stdin.write(json.dumps([code, arguments, variables]) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the process that runs programs ended"
        return subprocess.CompletedProcess(code, *json.loads(answer))

    yield run
    for server in servers.values():
        server.stdin.close()
        server.wait()

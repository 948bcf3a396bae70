"""Make two hosts on one machine: network namespaces joined by a virtual cable. Needs root and iproute2."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile

from .. import warm

ENTER = """
import ctypes, os
if ctypes.CDLL(None, use_errno=True).setns(os.open({!r}, os.O_RDONLY), 0):
    raise OSError(ctypes.get_errno(), "setns")
"""
ADDRESSES = ("10.203.0.1", "10.203.0.2")


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def problem():
    """Return why this machine cannot have such hosts; None if it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2 (the command ip)"
    try:
        with Hosts():
            return None
    except subprocess.CalledProcessError as error:
        return f"no joined network namespaces here: {error.stderr.strip()}"


class Hosts:
    """Make two hosts that see only each other, in a `with`, whose end kills their processes and removes them."""

    def __enter__(self):
        self.names = [f"liif-{os.getpid()}-{number}" for number in (0, 1)]
        with contextlib.ExitStack() as made:
            for name in self.names:
                ip("netns", "add", name)
                made.callback(ip, "netns", "delete", name)
            self._join()
            self._made = made.pop_all()
        return self

    def __exit__(self, *error):
        self._made.close()

    def _join(self):
        first, second = self.names
        ip(*f"link add wire netns {first} type veth peer name wire netns {second}".split())
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "wire", "up")

    def start(self, code, *arguments, **environment):
        """Run code on both hosts with torchrun's variables; return each process and the file with its errors."""
        environment |= {"GLOO_SOCKET_IFNAME": "wire", "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29400"}
        started = []
        for rank, name in enumerate(self.names):
            command = "-c", ENTER.format(f"/run/netns/{name}") + code, *arguments
            env = os.environ | environment | {"RANK": str(rank)}
            errors = self._made.enter_context(tempfile.TemporaryFile("w+"))
            process = warm.Process(*command, stderr=errors, env=env, modules=warm.OPTIMIZERS)
            started.append((self._made.enter_context(process), errors))
        return started

    def kill(self, number):
        """Kill everything on a host."""
        listed = subprocess.run(["ip", "netns", "pids", self.names[number]], capture_output=True, text=True)
        for pid in map(int, listed.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cut(self):
        """Pull the cable without notice to either host."""
        ip("-n", self.names[1], "link", "set", "wire", "down")

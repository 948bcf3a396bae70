"""Run programs with a version of Triton, each in a child of one process that has imported what they need.

    python -m tests.ptx.server

conftest.py starts this process. A line of its input is a program in JSON: [code, arguments, environment variables]. It
answers each with a line of JSON: [exit code, output, errors].
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback

from triton.runtime.cache import triton_key

from tests.ptx import attention, cases

assert attention and cases  # children find them imported


def run(code: str, arguments: list[str], variables: dict[str, str]) -> list[object]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if not child:
            failed = 1
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                sys.argv[1:] = arguments
                os.environ.update(variables)
                exec(code, {})
                failed = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(failed)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        errors.seek(0)
        return [code, out.read(), errors.read()]


def main() -> None:
    triton_key()  # hashes Triton's files, once for all children
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

"""Examine the fused kernels on this machine (`liif-fast qualify`), so that `auto` may take them.

runner.py starts processes (child.py) and combines their results. Each process runs checks.py and speed.py on the
problems of problems.py. liif_fast/backends/verdict.py stores the verdict and reads it for `auto`.
"""

from liif_fast.qualification.runner import Unavailable, qualify

__all__ = ["Unavailable", "qualify"]

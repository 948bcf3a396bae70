"""`liif-fast qualify`: examine the fused kernels on this machine, so that `auto` may take them.

runner.py starts processes (child.py) and writes the verdict. Each process runs checks.py and speed.py on the problems
of problems.py. liif_fast/backends/verdict.py stores the verdict and reads it for `auto`.
"""

from liif_fast.qualification.runner import Unavailable, qualify

__all__ = ["Unavailable", "qualify"]

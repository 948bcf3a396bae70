"""`liif-fast qualify`: examine the fused kernels on this machine, so that `auto` may take them there.

runner.py starts processes and makes the verdict; child.py is such a process; checks.py and speed.py are what it does,
on the problems of problems.py. liif_fast/backends/verdict.py keeps the verdict, and reads it for `auto`.
"""

from liif_fast.qualification.runner import Unavailable, qualify

__all__ = ["Unavailable", "qualify"]

import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")
# Last: an instrumented or installed liif_fast that stands before the source tree stays the one that is tested.
sys.path.append(str(Path(__file__).parents[2]))

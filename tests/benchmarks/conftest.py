import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")
# Appended, so that an instrumented or installed liif_fast earlier in the path is still the one tested.
sys.path.append(str(Path(__file__).parents[2]))

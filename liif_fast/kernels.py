"""Make the source tree's folder kernels/ importable; in an installed package the folder itself is here."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "kernels")]

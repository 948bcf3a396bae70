"""In a source tree: the folder kernels/ under its importable name. An installed package has the folder itself here."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "kernels")]

"""Make a small model, pictures, and servers for the tests of the viewer."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from liif_fast.cli.view import listen
from liif_fast.images import write_strips
from liif_fast.models import make
from liif_fast.models.checkpoint import save_model
from liif_fast.view.app import Server, Settings
from liif_fast.view.rendering import CPU_AREA, Renderer
from liif_fast.view.shelf import Shelf

HEIGHT, WIDTH = 103, 131  # above the size at which PyTorch's convolutions round otherwise


def save_small_model(path: Path) -> Path:
    """Write a small LIIF with random weights, which adds to its input's interpolation."""
    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 8, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [16]}}
    args = {"encoder_spec": encoder, "imnet_spec": imnet, "residual": "bilinear"}
    save_model(make({"name": "liif", "args": args}), path)
    return path


def picture(channels: int = 3, depth: int = 8, height: int = HEIGHT, width: int = WIDTH) -> NDArray:
    """Make smooth colours with noise; alpha goes from hidden to visible."""
    y, x = np.mgrid[:height, :width]
    planes = [np.sin(0.2 * x + 0.1 * y + c) for c in range(3 if channels > 2 else 1)]
    values = 0.5 + 0.4 * np.stack(planes, -1) + np.random.default_rng(0).uniform(-0.1, 0.1, (height, width, 1))
    if channels in (2, 4):
        values = np.concatenate((values, np.clip(x / width * 1.6 - 0.3, 0, 1)[..., None]), 2)
    return (values * (2**depth - 1)).round().astype(f"uint{depth}")


def save_pictures(folder: Path) -> dict[str, NDArray]:
    """Write a picture of each kind that PNG holds; return their pixels by name."""
    made = {}
    for channels, kind in enumerate(("gray", "gray-alpha", "rgb", "rgb-alpha"), 1):
        for depth in (8, 16):
            name = f"{kind}-{depth}.png"
            made[name] = picture(channels, depth)
            write_strips(folder / name, [made[name]], made[name].shape, depth, {})
    return made


def make_server(root: Path, model: Path | None, **changes: Any) -> Server:
    """Return a server as `serve` makes it."""
    settings = Settings(frozenset({"127.0.0.1", "localhost", "testserver"}), None, True, CPU_AREA)
    return Server(Shelf(root), Renderer(model and str(model), "cpu"), str(model), settings._replace(**changes))


@contextmanager
def running(server: Server) -> Iterator[str]:
    """Serve on a port of this machine in a thread, and yield the address."""
    import uvicorn

    listening = listen("127.0.0.1", 0)
    uv = uvicorn.Server(uvicorn.Config(server.app(), log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=uv.run, args=([listening],), daemon=True)
    thread.start()
    for _ in range(600):
        if uv.started:
            break
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}{server.prefix}"
    finally:
        uv.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server does not end"

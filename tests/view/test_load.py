"""Clients that come, go and zoom send 200 requests; memory is bounded, and every answer is right."""

import http.client
import random
import threading
from urllib.parse import urlsplit

import numpy as np
import pytest

for needed in ("starlette", "uvicorn"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'liif-fast[view]'")

from liif_fast.images import read_image
from liif_fast.upscaling import upscale
from liif_fast.upscaling.cache import Cache

from .support import HEIGHT, WIDTH, make_server, running

CLIENTS, REQUESTS = 8, 25


def test_200_requests(pictures, small_model, tmp_path):
    folder, pixels = pictures
    names = sorted(name for name in pixels if name.startswith(("rgb", "gray-alpha")))
    server = make_server(folder, small_model)
    server.tiles = Cache(1 << 20)
    server.renderer._features = Cache(1 << 20)
    server.renderer._open = Cache(4 * HEIGHT * WIDTH * 32)  # fewer than there are photographs
    statuses, kept, failures, peaks = [], [], [], []
    threads = threading.active_count()

    def client(number):
        rng = random.Random(number)
        try:
            for turn in range(REQUESTS):
                connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=120)
                name, scale = rng.choice(names), rng.choice((1.5, 2, 3, 3.7))
                size = round(WIDTH * scale), round(HEIGHT * scale)
                left, top = rng.randrange(size[0] - 64), rng.randrange(size[1] - 64)
                path = f"/iiif/3/{name}@{size[0]}x{size[1]}/{left},{top},64,64/max/0/default.png"
                connection.request("GET", path)
                if rng.random() < 0.4:  # goes away before the answer
                    connection.close()
                    continue
                answer = connection.getresponse()
                body = answer.read()
                connection.close()
                statuses.append(answer.status)
                if answer.status == 200 and turn % 8 == 0:
                    kept.append((name, size, left, top, body))
                peaks.append((server.queue.waiting, server.tiles.used, server.renderer._features.used))
        except Exception as error:
            failures.append(error)

    with running(server) as address:
        clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for each in clients:
            each.start()
        for each in clients:
            each.join(300)
            assert not each.is_alive(), "a client waits for ever"
        assert not failures
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)  # the server still answers
        connection.request("GET", "/iiif/3/rgb-8.png@200x160/0,0,9,9/max/0/default.png")
        assert connection.getresponse().status == 200
        assert server.queue.waiting == 0
        assert not server.queue._jobs
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) > 50
    waiting, tiles, features = (max(column) for column in zip(*peaks, strict=True))
    assert waiting <= 64
    assert tiles <= 1 << 20
    assert features <= 1 << 20
    assert len(server.renderer._open) <= 4
    assert threading.active_count() <= threads + 8  # the pool of asyncio's helpers and no thread a request
    assert len(kept) > 5
    for name, size, left, top, body in kept[:12]:
        (tmp_path / "tile.png").write_bytes(body)
        window = upscale(pixels[name], str(small_model), size=size, region=(top, left, 64, 64))
        assert np.array_equal(read_image(tmp_path / "tile.png").pixels, window)

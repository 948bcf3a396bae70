"""Measure how long a user of the viewer waits, through the server: `python -m benchmarks.view [PHOTO]`.

The server is warm: the model is loaded, as it is once the page has been open for a moment. The first picture is the one
that the page shows at once. The first tile also encodes its surroundings. The next tiles find them encoded. The two
precisions take turns.
"""

import http.client
import statistics
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import uvicorn
from PIL import Image

from benchmarks.records import ROOT
from liif_fast.cli.view import listen
from liif_fast.view.app import Server, Settings
from liif_fast.view.rendering import GPU_AREA, Renderer
from liif_fast.view.shelf import Shelf

PHOTO = ROOT / "liif_fast" / "assets" / "chelsea.png"
BUDGETS = {"first picture": 0.5, "first tile": None, "next tile": 0.25}  # goals in seconds, on two idle cores
ROUNDS, TILES = 5, 8


def main() -> None:
    """Print the median of each wait for each precision."""
    photo = Path(sys.argv[1] if len(sys.argv) > 1 else PHOTO)
    with Image.open(photo) as image:
        width, height = image.size
    waits: dict[str, dict[str, list[float]]] = {each: {name: [] for name in BUDGETS} for each in ("float32", "bf16")}
    settings = Settings(frozenset({"127.0.0.1"}), None, True, GPU_AREA)
    warm = Renderer()
    warm.warm()
    for number, precision in enumerate(tuple(waits) * ROUNDS):
        renderer = Renderer(precision=precision)
        renderer._model = warm._model
        server = Server(Shelf(photo), renderer, precision, settings)
        listening = listen("127.0.0.1", 0)
        running = uvicorn.Server(uvicorn.Config(server.app(), log_level="error"))
        thread = threading.Thread(target=running.run, args=([listening],), daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        connection = http.client.HTTPConnection(*listening.getsockname())

        def get(path: str, connection: http.client.HTTPConnection = connection) -> float:
            start = time.perf_counter()
            connection.request("GET", f"/iiif/3/{quote(photo.name, safe='')}{path}")
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise SystemExit(f"{path}: {answer.status} {body[:200]!r}")
            return time.perf_counter() - start

        waited = waits[precision]
        waited["first picture"].append(get("/full/!1024,1024/0/default.webp"))
        size = f"@{4 * width + number}x{4 * height + number}"
        waited["first tile"].append(get(f"{size}/256,256,256,256/max/0/default.webp"))
        waited["next tile"] += [
            get(f"{size}/{left},260,256,256/max/0/default.webp") for left in range(270, 270 + TILES)
        ]
        running.should_exit = True
        thread.join()
    print(f"{photo.name}, {width}x{height}, tiles of 256 at x4")
    print(f"{'':<14}" + "".join(f"{precision:>10}" for precision in waits))
    for name, budget in BUDGETS.items():
        row = "".join(f"{statistics.median(waited[name]):8.3f} s" for waited in waits.values())
        print(f"{name:<14}{row}" + (f"  (goal: under {budget} s)" if budget else ""))


if __name__ == "__main__":
    main()

"""`liif-fast view`: zoom into a photograph, in the browser."""

import argparse
import hashlib
import os
import shlex
import socket
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liif_fast.cli import EXIT_CODES, add_compute, given_path, say
from liif_fast.images import FORMATS, check_input, open_picture
from liif_fast.images.writing import changes_colours

if TYPE_CHECKING:
    from liif_fast.view.app import Server

_ABOUT = "Open a page on which one zooms continuously into a photograph, x1 to x30, beside bicubic and nearest."
_EPILOG = """\
The page is served to this machine alone, under an address that holds a random token. It stays until Ctrl-C.
"""
PATIENCE = 30.0  # seconds that a connection may take for a request
MISSING = "{command} needs Starlette and Uvicorn: pip install 'liif-fast[view]'"


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "view", help="zoom into a photograph", description=_ABOUT, epilog=_EPILOG + EXIT_CODES
    )
    parser.add_argument("photo", type=given_path, metavar="PHOTO", help="an image file")
    parser.add_argument("--no-browser", action="store_true", help="only print the page's address")
    add_serving(parser)
    parser.set_defaults(run=run)


def add_serving(parser: argparse.ArgumentParser) -> None:
    """Add the options that `view` and `serve` share."""
    parser.add_argument("--port", type=port, default=0, metavar="P", help="default: any that is free")
    parser.add_argument("--model", type=os.path.expanduser, metavar="MODEL", help="as for upscale")
    add_compute(parser)


def run(args: argparse.Namespace) -> int:
    check_input(args.photo)
    picture = open_picture(args.photo)  # said now, not in the browser
    page = {"photo": shell_word(args.photo)}
    page["tiles"] = "png" if changes_colours(picture.info, FORMATS[".webp"], picture.shape[2]) else "webp"
    asked = {"model": args.model, "backend": args.backend, "device": args.device, "precision": args.precision}
    usual = (None, "auto", "float32")
    page["model"] = "".join(f" --{name} {shell_word(each)}" for name, each in asked.items() if each not in usual)
    try:
        from liif_fast.view.app import new_token
        from liif_fast.view.shelf import served_name
    except ModuleNotFoundError as error:
        raise ImportError(MISSING.format(command="view")) from error
    page["name"] = served_name(Path(args.photo).resolve())
    server = make_server(args.photo, args, hosts=("127.0.0.1", "localhost"), token=new_token(), page=page)

    def opened(number: int) -> None:
        address = f"http://127.0.0.1:{number}{server.prefix}/"
        print(address, flush=True)
        if not args.no_browser and not webbrowser.open(address):
            say("no browser opens here; open the address above")

    return serve(server, "127.0.0.1", args.port, opened)


def shell_word(text: str) -> str:
    """Quote an argument for a shell; a name that is not UTF-8 by the codes of its bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "$'" + "".join(f"\\x{byte:02x}" for byte in os.fsencode(text)) + "'"
    return shlex.quote(text)


def make_server(
    root: str,
    args: argparse.Namespace,
    *,
    hosts: tuple[str, ...],
    token: str | None = None,
    page: dict[str, str] | None = None,
) -> "Server":
    """Return the server of a file or a folder; with a token it is not for other sites."""
    from liif_fast.devices import pick_device
    from liif_fast.models.catalogue import find_model
    from liif_fast.upscaling.choice import CHOICES
    from liif_fast.view.app import Server, Settings
    from liif_fast.view.rendering import CPU_AREA, GPU_AREA, Renderer
    from liif_fast.view.shelf import Shelf

    device = pick_device(args.device)
    models = CHOICES if args.model is None else [args.model]
    hashes = [hashlib.sha256(find_model(each).read_bytes()).hexdigest() for each in models]
    maker = " ".join((*hashes, str(device), str(args.backend), args.precision))
    # The page saves whole windows; its user alone waits for them.
    area = CPU_AREA if device.type == "cpu" and token is None else GPU_AREA
    settings = Settings(frozenset(hosts), token, token is None, area, page)
    return Server(Shelf(root), Renderer(args.model, args.device, args.backend, args.precision), maker, settings)


def serve(server: "Server", host: str, number: int, opened: Callable[[int], None]) -> int:
    """Serve until Ctrl-C; `opened` is called with the port once the server answers.

    Raises:
        Exception: the model cannot be loaded; the server has ended.
    """
    import asyncio

    import uvicorn

    listening = listen(host, number)
    bound = listening.getsockname()[1]

    waiting: dict[Any, float] = {}  # connections without a whole request, with their last request, and since when

    class Serving(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                asyncio.get_running_loop().run_in_executor(None, opened, bound)

        async def on_tick(self, counter: int) -> bool:
            """Close connections that send no whole request, because each takes one of the places."""
            nonlocal waiting
            now = time.monotonic()
            idle = [each for each in self.server_state.connections if _waits(each)]
            keys = [(each, getattr(each, "cycle", None)) for each in idle]  # every request has a cycle of its own
            waiting = {key: waiting.get(key, now) for key in keys}
            for (each, _), since in waiting.items():
                if now - since > PATIENCE:
                    each.transport.close()
            return await super().on_tick(counter)

    config = uvicorn.Config(
        server.app(),
        log_level="error",  # a warning would come for every request that is not HTTP
        access_log=False,
        server_header=False,
        limit_concurrency=512,
        timeout_graceful_shutdown=1,
    )
    running = Serving(config)

    def fail(error: BaseException) -> None:
        failures.append(error)
        running.should_exit = True

    failures: list[BaseException] = []
    server.fail = fail
    running.run([listening])
    if failures:
        raise failures[0]
    return 0


def _waits(connection: Any) -> bool:
    """Say whether a connection of Uvicorn's has sent no whole request since its last answer."""
    cycle = getattr(connection, "cycle", None)  # a WebSocket has none, and nothing here answers it
    return cycle is None or bool(cycle.response_complete)


def listen(host: str, number: int) -> socket.socket:
    """Return a socket that listens on a port, 0 for any that is free.

    Its connections send at once. Otherwise a small answer, whose head and body are two packets, waits 40 ms for the
    client to confirm the first: asyncio asks for it only of sockets that were made with the protocol's number.

    Raises:
        OSError: the port is taken.
    """
    listening = socket.create_server((host, number), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def port(text: str) -> int:
    """Parse a TCP port; 0 takes any that is free."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)

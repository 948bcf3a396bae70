"""`liif-fast serve`: serve a folder of photographs by the IIIF Image API."""

import argparse
import ipaddress
import re
from contextlib import suppress
from pathlib import Path

from liif_fast.cli import EXIT_CODES, given_path
from liif_fast.cli.view import MISSING, add_serving, make_server, serve
from liif_fast.images import ImageFileError

_ABOUT = "Serve a folder of photographs by the IIIF Image API 3.0, level 2, enlarged by the model."
_EPILOG = """\
Any IIIF viewer zooms into NAME@xK, the photograph K times as large. Every site may read the answers, as IIIF asks.
"""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "serve", help="serve photographs (IIIF)", description=_ABOUT, epilog=_EPILOG + EXIT_CODES
    )
    parser.add_argument(
        "folder", type=given_path, metavar="FOLDER", help="the folder; the folders inside it are served as well"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        type=host_name,
        metavar="NAME",
        help="a name by which clients may call this server; needed with another --host; may be repeated",
    )
    add_serving(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if not Path(args.folder).is_dir():
        raise ImageFileError(f"{args.folder}: is not a folder; serve takes a folder of photographs")
    if not _is_loopback(args.host) and not args.allow_host:
        raise ValueError(
            f"--host {args.host} lets other machines in: name the hosts that they may ask for, as --allow-host NAME"
        )
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(MISSING.format(command="serve")) from error
    shown = f"[{args.host}]" if ":" in args.host else args.host
    if not _is_loopback(args.host):
        shown = args.allow_host[0]  # the address that is printed must be one that is answered
    hosts = (*LOOPBACK, shown.lower(), *args.allow_host)
    server = make_server(args.folder, args, hosts=hosts)
    return serve(server, args.host, args.port, lambda number: print(f"http://{shown}:{number}/", flush=True))


def host_name(text: str) -> str:
    """A host's name or address as argparse wants it, in the form of the header Host, without the port."""
    try:
        address = ipaddress.ip_address(text[1:-1] if text[:1] + text[-1:] == "[]" else text)
    except ValueError:
        with suppress(UnicodeError):
            name = text.encode("idna").decode().lower()
            if re.fullmatch(r"[a-z0-9._-]+", name):
                return name
        raise argparse.ArgumentTypeError(f"expected a name without scheme and port, got {text!r}") from None
    return f"[{address}]" if address.version == 6 else str(address)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

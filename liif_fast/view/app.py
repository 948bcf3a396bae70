"""The server: IIIF Image API 3.0 for `serve`, and the zoom page beside it for `view`."""

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liif_fast import __version__
from liif_fast.upscaling.cache import Cache
from liif_fast.view.iiif import FORMATS, PROFILE, RequestError, describe, parse_identifier, parse_request
from liif_fast.view.queue import BusyError, GoneError, Queue
from liif_fast.view.rendering import Renderer, needs_model, photograph_size
from liif_fast.view.shelf import Shelf

logger = logging.getLogger("liif_fast.view")

TILE_BYTES = 256 << 20  # of answers that are kept
IMAGES = "/iiif/3"
_PAGE = {"": "text/html", "view.js": "text/javascript", "view.css": "text/css"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_LEVEL = f'<{PROFILE}>;rel="profile"'


class _Anything(PathConvertor):
    regex = "(?s:.*)"  # names of files may have line breaks


register_url_convertor("liif_fast_anything", _Anything())


class Settings(NamedTuple):
    """The settings that differ between `view` and `serve`.

    Args:
        hosts: the values of the header Host that are answered, without the port.
        token: the first part of every path; None for none.
        public: whether other sites' scripts may read the answers (CORS), as IIIF asks.
        max_area: most pixels of an answer.
        page: the values that the page shows: `name` of the photograph, the format of its `tiles`, and `photo` and
            `model` as they stand in the command that it copies; None for no page.
    """

    hosts: frozenset[str]
    token: str | None
    public: bool
    max_area: int
    page: Mapping[str, str] | None = None


def new_token() -> str:
    """Return a token that cannot be guessed."""
    return secrets.token_urlsafe(24)


class Server:
    """Answer the requests for the photographs of a shelf.

    Args:
        shelf: the photographs.
        renderer: makes the pixels.
        maker: names the renderer's model and options; other pixels need another name, since ETags hold it.
        settings: the differences between `view` and `serve`.

    Attributes:
        fail: called with the error when the model cannot be loaded; logs it unless replaced.
    """

    def __init__(self, shelf: Shelf, renderer: Renderer, maker: str, settings: Settings) -> None:
        self.shelf, self.renderer, self.maker, self.settings = shelf, renderer, maker, settings
        self.fail: Callable[[BaseException], None] = lambda error: logger.error("%s", error)
        # The photograph itself does not wait for the model: Pillow's work has its own thread.
        self.queue, self.plain, self.tiles = Queue(), Queue(), Cache[bytes](TILE_BYTES)
        self.prefix = "" if settings.token is None else f"/{settings.token}"

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [Route(f"{self.prefix}{IMAGES}/{{path:liif_fast_anything}}", self.iiif)]
        if self.settings.page is not None:
            routes += [
                Route(f"{self.prefix}/{name}", _page(name or "index.html", kind), name=name or "index")
                for name, kind in _PAGE.items()
            ]
            routes += [Route(f"{self.prefix}/page.json", self.page)]
        else:
            routes += [Route("/", self.names)]
        routes += [Route(f"{self.prefix}/status.json", self.status)]
        return Starlette(routes=routes, middleware=[Middleware(Guard, settings=self.settings)], lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Load the model in its thread while the page already shows the photograph."""
        warming = asyncio.create_task(self.queue.run("warm", self.renderer.warm, _here))
        warming.add_done_callback(self._warmed)
        yield
        warming.cancel()
        self.queue.close()
        self.plain.close()

    def _warmed(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error)

    async def iiif(self, request: Request) -> Response:
        """Answer a path of the Image API."""
        try:
            parts = _parts(request.scope, f"{self.prefix}{IMAGES}/")
            identifier = parse_identifier(parts[0])
            entry = await asyncio.to_thread(self.shelf.find, identifier.name)
            address = f"{str(request.base_url).rstrip('/')}{self.prefix}{IMAGES}/{quote(parts[0], safe='@')}"
            if len(parts) == 1:
                return RedirectResponse(f"{address}/info.json", 303)
            size = await asyncio.to_thread(photograph_size, entry)
            enlarged = identifier.enlarged(*size)
            if parts[1:] == ["info.json"]:
                return self._info(request, describe(address, *enlarged, self.settings.max_area))
            if len(parts) != 5:
                raise RequestError(400, "path must be {identifier}/{region}/{size}/{rotation}/{quality}.{format}")
            wanted = parse_request(size, enlarged, parts[1:], self.settings.max_area)
        except RequestError as error:
            return Response(f"{error}\n", error.status, media_type="text/plain")
        tag = entry.tag(self.maker, __version__, wanted)
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Link": _LEVEL}
        # A proxy that compresses makes the tag weak, which does not matter here (RFC 9110, section 13.1.2).
        known = request.headers.get("if-none-match", "").split(",")
        if {tag, "*"} & {each.strip().removeprefix("W/") for each in known}:
            return Response(status_code=304, headers=headers)
        try:
            queue = self.queue if needs_model(wanted) else self.plain
            body = self.tiles.get(tag)
            if body is None:
                body = await queue.run(tag, lambda: self.renderer.render(entry, wanted), request.is_disconnected)
        except BusyError:
            return Response("too many requests wait\n", 503, {"Retry-After": "1"}, "text/plain")
        except (GoneError, asyncio.CancelledError):  # the second when the server ends
            return Response(status_code=499)
        except RequestError as error:
            return Response(f"{error}\n", error.status, media_type="text/plain")
        self.tiles.put(tag, body, len(body))
        return Response(body, headers=headers, media_type=FORMATS[wanted.format])

    def _info(self, request: Request, content: dict[str, Any]) -> Response:
        linked = "application/ld+json" in request.headers.get("accept", "")
        kind = f'application/ld+json;profile="{content["@context"]}"' if linked else "application/json"
        return JSONResponse(content, headers={"Link": _LEVEL, "Cache-Control": "no-cache"}, media_type=kind)

    async def names(self, request: Request) -> Response:
        """List the photographs of `serve` as the addresses of their info.json."""
        base = f"{str(request.base_url).rstrip('/')}{IMAGES}/"
        found = await asyncio.to_thread(self.shelf.names)
        return JSONResponse({"images": [f"{base}{quote(name, safe='')}/info.json" for name in found]})

    async def page(self, request: Request) -> Response:
        """Tell the page what it shows."""
        return JSONResponse(dict(self.settings.page or {}), headers={"Cache-Control": "no-store"})

    async def status(self, request: Request) -> Response:
        """Count what has been done."""
        kept = {"tiles": self.tiles.used, "waiting": self.queue.waiting + self.plain.waiting}
        return JSONResponse(self.queue.counts | kept, headers={"Cache-Control": "no-store"})


class Guard:
    """Refuse other hosts' names (DNS rebinding) and other methods; set the headers that keep other sites out."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"content-security-policy", _POLICY.encode()),
        ]
        if settings.public:
            self.headers += [
                (b"access-control-allow-origin", b"*"),
                (b"access-control-expose-headers", b"ETag, Link"),
                (b"cross-origin-resource-policy", b"cross-origin"),
            ]
        else:
            self.headers += [
                (b"cross-origin-resource-policy", b"same-origin"),
                (b"cross-origin-opener-policy", b"same-origin"),
            ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self.headers]
            await send(message)

        request = Request(scope)
        host = request.headers.get("host", "")
        match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::\d*)?", host)
        name = match[1] if match else ""
        answer: ASGIApp = self.app
        if name.lower() not in self.settings.hosts:
            answer = Response("this host's name is not served here\n", 421, media_type="text/plain")
        elif request.method == "OPTIONS" and self.settings.public:
            allowed = {"Access-Control-Allow-Methods": "GET, HEAD", "Access-Control-Allow-Headers": "*"}
            answer = Response(status_code=204, headers=allowed)
        elif request.method not in ("GET", "HEAD"):
            answer = Response("only GET and HEAD\n", 405, {"Allow": "GET, HEAD"}, "text/plain")
        await answer(scope, receive, guarded)


def _parts(scope: Scope, prefix: str) -> list[str]:
    """Return the decoded parts of the path behind a prefix; an encoded / in one does not divide it."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    raw = raw.partition(b"?")[0]
    if not raw.startswith(prefix.encode()):
        raise RequestError(404, "no such path")
    try:
        return [unquote_to_bytes(part).decode() for part in raw[len(prefix) :].split(b"/")]
    except UnicodeDecodeError:
        raise RequestError(400, "path must be UTF-8") from None


def _page(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (files("liif_fast.view") / "page" / name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, headers={"Cache-Control": "no-cache"}, media_type=kind)

    return answer


async def _here() -> bool:
    return False

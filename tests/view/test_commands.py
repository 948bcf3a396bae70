"""Test `liif-fast view` and `liif-fast serve`: addresses, refusals, and an end by Ctrl-C."""

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import pytest
from PIL import Image

from liif_fast import upscale
from liif_fast.cli import main, view
from liif_fast.cli.view import listen, shell_word
from liif_fast.images import write_strips
from liif_fast.images.colour import COLOUR
from liif_fast.models import make
from liif_fast.models.checkpoint import save_model

from .. import warm
from .support import make_server, picture


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(picture()).save(path)
    return path


def refusal(capsys, *arguments):
    assert main(arguments) in (1, 2)
    return capsys.readouterr().err


def test_refusals(photo, capsys, monkeypatch):
    assert "No such file" in refusal(capsys, "view", "missing.png")
    assert "is not a folder; serve takes a folder" in refusal(capsys, "serve", str(photo))
    assert "expected a port from 0 to 65535, got '70000'" in refusal(capsys, "view", str(photo), "--port", "70000")
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        assert "--allow-host NAME" in refusal(capsys, "serve", str(photo.parent), "--host", host)
    for name in ("http://a.example", "a.example:80", "a.example/", "", "*", "[::1", "a..b"):
        asked = ("serve", str(photo.parent), "--host", "0.0.0.0", "--allow-host", name)
        assert "expected a name without scheme and port" in refusal(capsys, *asked), name
    for module in ("starlette", "uvicorn", "starlette.applications"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "liif_fast.view.app", raising=False)
    for command, path in (("view", photo), ("serve", photo.parent)):
        expected = f"{command} needs Starlette and Uvicorn: pip install 'liif-fast[view]'"
        assert expected in refusal(capsys, command, str(path))


@pytest.mark.parametrize(
    "command",
    [
        "serve",
        "view",
        "train --config",
        "plot",
        "plot run",
        "export a",
        "verify a",
        "eval --config",
        "models get a --wheel",
    ]
    + [f"eval --config a --model a {option}" for option in ("--save", "--markdown", "--json")],
)
def test_an_empty_path_is_not_the_current_folder(command, capsys):
    assert "is empty; give a name" in refusal(capsys, *command.split(), "")


@pytest.mark.parametrize("name", ["it's.png", "a b.png", "\udcff\udc80'.png"])
def test_the_copied_command_names_the_file(name):
    """This includes a file whose name is not UTF-8, which JSON cannot hold."""
    word = shell_word(name)
    word.encode()
    assert subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True).stdout == os.fsencode(name)


def test_connections_send_at_once():
    """With Nagle's algorithm each JPEG tile came 40 ms late."""
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_view_serves_until_it_is_interrupted(photo, small_model):
    for needed in ("starlette", "uvicorn"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'liif-fast[view]'")
    command = ["-m", "liif_fast", "view", photo, "--no-browser", "--model", small_model, "--device", "cpu"]
    command += ["--precision", "bf16"]
    reading, writing = os.pipe()
    with (
        open(reading) as out,
        tempfile.TemporaryFile("w+") as err,
        warm.Process(*command, stdout=writing, stderr=err) as process,
    ):
        os.close(writing)
        address = out.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        assert len(address.split("/")[3]) >= 32  # the token
        with urllib.request.urlopen(f"{address}page.json", timeout=60) as answer:
            told = json.load(answer)
        options = f" --model {small_model} --device cpu --precision bf16"
        assert told == {"name": "photo.png", "photo": str(photo), "tiles": "webp", "model": options}
        with urllib.request.urlopen(f"{address}iiif/3/photo.png@x3/9,9,40,30/max/0/default.png", timeout=60) as answer:
            tile = np.asarray(Image.open(answer))
        rendered = [
            upscale(picture(), small_model, scale=3, region=(9, 9, 30, 40), precision=p) for p in ("bf16", "float32")
        ]
        assert np.array_equal(tile, rendered[0])
        assert not np.array_equal(tile, rendered[1])
        for said in (b"\x16\x03\x01\r\n\r\n", b"GET / HT"):  # TLS, and half a request
            with socket.create_connection(("127.0.0.1", int(address.split(":")[2].split("/")[0]))) as client:
                client.sendall(said)
                client.shutdown(socket.SHUT_WR)
                client.recv(99)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        err.seek(0)
        assert err.read() == "liif-fast: interrupted\n"


def test_half_a_request_does_not_keep_its_place(photo, small_model, monkeypatch):
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'liif-fast[view]'")
    monkeypatch.setattr(view, "PATIENCE", 0.2)
    server, ports = make_server(photo.parent, small_model), SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(view.serve, server, "127.0.0.1", 0, ports.put)
        try:
            place = ("127.0.0.1", ports.get(timeout=60))
            busy = http.client.HTTPConnection(*place, timeout=60)
            busy.connect()
            with (
                busy.sock as kept,
                socket.create_connection(place, 60) as half,
                socket.create_connection(place) as other,
            ):
                half.sendall(b"GET / HT")
                other.sendall(b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\nGET")
                closed = []
                while not closed:  # many short requests, for as long as half a request is borne
                    busy.request("GET", "/status.json")
                    busy.getresponse().read()
                    closed = select.select([half], [], [], 0.02)[0]
                assert half.recv(99) == b""
                answer = b""
                while part := other.recv(999):
                    answer += part
                busy.request("GET", "/status.json")
                assert busy.getresponse().status == 200
                assert busy.sock is kept
            assert answer.startswith(b"HTTP/1.1 200 OK")
        finally:
            server.fail(InterruptedError("the end"))
        with pytest.raises(InterruptedError, match="the end"):
            served.result(60)


@pytest.mark.parametrize("fault", ["no model", "a model of more channels"])
def test_a_model_that_cannot_render_ends_the_server(photo, tmp_path, fault):
    """It ends with one line. The page is up before the model is loaded, so the command cannot refuse it earlier."""
    for needed in ("starlette", "uvicorn"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'liif-fast[view]'")
    path = tmp_path / "model.safetensors"
    if fault == "no model":
        path.write_bytes(b"rubbish")
    else:
        encoder = {
            "name": "edsr-baseline",
            "args": {"n_resblocks": 1, "n_feats": 8, "n_colors": 4, "no_upsampling": True},
        }
        imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [16]}}
        save_model(make({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}), path)
    done = warm.run("-m", "liif_fast", "serve", photo.parent, "--model", path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr


def test_other_pixels_have_other_tags(photo, small_model, monkeypatch):
    for needed in ("starlette", "uvicorn"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'liif-fast[view]'")
    seen = []
    monkeypatch.setattr("liif_fast.cli.serve.serve", lambda server, *rest: seen.append(server.maker) or 0)
    for options in ((), ("--precision", "bf16"), ("--backend", "torch"), ("--model", str(small_model))):
        assert main(["serve", str(photo.parent), *options]) == 0
    monkeypatch.setattr("liif_fast.upscaling.choice.CHOICES", (small_model, small_model))  # as another release's are
    assert main(["serve", str(photo.parent)]) == 0
    assert len(set(seen)) == 5


@pytest.mark.parametrize(
    ("ending", "channels", "info", "tiles"),
    [
        ("png", 3, {}, "webp"),
        ("png", 3, {COLOUR: {b"cICP": bytes((12, 13, 0, 1))}}, "png"),
        ("png", 3, {COLOUR: {b"cICP": bytes((1, 13, 0, 1)), b"gAMA": bytes(4)}}, "webp"),
        ("jpg", 3, {"icc_profile": bytes(16) + b"RGB " + bytes(100)}, "webp"),
        ("jpg", 1, {"icc_profile": bytes(16) + b"GRAY" + bytes(100)}, "png"),  # WebP stores gray as RGB
    ],
)
def test_the_page_asks_for_tiles_that_keep_the_colours(
    tmp_path, small_model, monkeypatch, ending, channels, info, tiles
):
    for needed in ("starlette", "uvicorn"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'liif-fast[view]'")
    path, pixels, seen = tmp_path / f"a.{ending}", picture(channels), []
    write_strips(path, [pixels], pixels.shape, 8, info)
    monkeypatch.setattr("liif_fast.cli.view.serve", lambda server, *rest: seen.append(server.settings.page) or 0)
    assert main(["view", str(path), "--model", str(small_model)]) == 0
    assert seen[0]["tiles"] == tiles


def test_serve_answers_to_the_hosts_that_are_named(photo, small_model, monkeypatch, capsys):
    for needed in ("starlette", "uvicorn"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'liif-fast[view]'")
    seen = []
    monkeypatch.setattr("liif_fast.cli.serve.serve", lambda *arguments: seen.append(arguments) or 0)
    command = ["serve", str(photo.parent), "--model", str(small_model), "--port", "8123"]
    named = [f"--allow-host={name}" for name in ("Pictures.example", "2001:DB8::1", "[2001:db8::2]", "bücher.example")]
    assert main([*command, "--host", "0.0.0.0", *named]) == 0
    assert main(command) == 0
    assert main([*command, "--host", "127.0.0.5"]) == 0
    (server, host, port, opened), (usual, *rest, _), (other, *_, at) = seen
    opened(8123)
    at(8123)
    assert capsys.readouterr().out == "http://pictures.example:8123/\nhttp://127.0.0.5:8123/\n"
    assert other.settings.hosts - usual.settings.hosts == {"127.0.0.5"}
    assert (host, port, rest) == ("0.0.0.0", 8123, ["127.0.0.1", 8123])
    others = {"pictures.example", "[2001:db8::1]", "[2001:db8::2]", "xn--bcher-kva.example"}
    assert server.settings.hosts - usual.settings.hosts == others
    assert (usual.settings.hosts, usual.settings.token) == ({"127.0.0.1", "localhost", "[::1]"}, None)
    assert usual.settings.public and usual.settings.page is None

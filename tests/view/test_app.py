"""Test the server's answers: the pixels of `upscale`, the Image API, and the protection from other sites."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image

for needed in ("starlette", "httpx2"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'liif-fast[view,test]'")
from starlette.testclient import TestClient

from liif_fast.images import read_image
from liif_fast.upscaling import upscale, upscale_file
from liif_fast.view.app import new_token
from liif_fast.view.rendering import Renderer, _resized
from liif_fast.view.shelf import Shelf

from .. import warm
from .support import HEIGHT, WIDTH, make_server, picture


@pytest.fixture(scope="module")
def client(pictures, small_model):
    with TestClient(make_server(pictures[0], small_model).app()) as made:
        yield made


def pixels_of(answer, tmp_path):
    assert answer.status_code == 200, answer.text
    path = tmp_path / "answer.png"
    path.write_bytes(answer.content)
    return read_image(path).pixels


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", ["gray", "gray-alpha", "rgb", "rgb-alpha"])
def test_tiles_are_upscale_bit_for_bit(client, pictures, small_model, tmp_path, kind, depth):
    """Photographs have 16 bits, are gray, or have alpha; tiles come in any order."""
    name, size = f"{kind}-{depth}.png", (485, 381)
    whole = upscale(pictures[1][name], str(small_model), size=size)
    for left, top, w, h in ((256, 256, 229, 125), (0, 0, 256, 256), (101, 93, 50, 60)):
        answer = client.get(f"/iiif/3/{name}@{size[0]}x{size[1]}/{left},{top},{w},{h}/max/0/default.png")
        assert np.array_equal(pixels_of(answer, tmp_path), whole[top : top + h, left : left + w])


@pytest.mark.parametrize("what", ["turned", "CMYK", "one pixel", "one column", "one row", "animated"])
def test_odd_files_are_served_as_upscale_reads_them(small_model, tmp_path, what):
    shape = {"one pixel": (1, 1), "one column": (2000, 1), "one row": (1, 2000)}.get(what, (40, 60))
    image, path = Image.fromarray(picture(3, 8, *shape)), tmp_path / ("a.jpg" if what == "CMYK" else "a.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6 if what == "turned" else 1
    further = {"save_all": True, "append_images": [image.rotate(180)]} if what == "animated" else {}
    image = image.convert("CMYK") if what == "CMYK" else image
    image.save(path, exif=exif, **further)
    pixels = read_image(path).pixels
    height, width = shape[::-1] if what == "turned" else shape
    with TestClient(make_server(tmp_path, small_model).app()) as client:
        info = client.get(f"/iiif/3/{path.name}/info.json").json()
        assert (info["width"], info["height"]) == (width, height)
        answer = client.get(f"/iiif/3/{path.name}@x3/full/max/0/default.png")
    assert np.array_equal(pixels_of(answer, tmp_path), upscale(pixels, str(small_model), scale=3))


def test_other_ways_to_the_same_pixels(client, pictures, small_model, tmp_path):
    """These are `^`, the virtual image, and a fraction that is a window of a whole output."""
    pixels = pictures[1]["rgb-8.png"]
    whole = upscale(pixels, str(small_model), scale=3)
    for path in ("rgb-8.png/full/^pct:300", "rgb-8.png/full/^393,", "rgb-8.png@x3/full/max", "rgb-8.png/full/^393,309"):
        assert np.array_equal(pixels_of(client.get(f"/iiif/3/{path}/0/default.png"), tmp_path), whole), path
    part = client.get("/iiif/3/rgb-8.png/20,30,40,50/^120,150/0/default.png")
    assert np.array_equal(pixels_of(part, tmp_path), whole[90:240, 60:180])
    turned = client.get("/iiif/3/rgb-8.png@x3/full/max/!90/default.png")
    assert np.array_equal(pixels_of(turned, tmp_path), np.rot90(whole[:, ::-1], -1))
    webp = client.get("/iiif/3/rgb-8.png@x3/full/max/0/color.webp")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(webp.content))), whole)
    gray = pixels_of(client.get("/iiif/3/rgb-8.png@x3/full/max/0/gray.png"), tmp_path)[..., 0]
    assert np.abs(gray.astype(int) - np.asarray(Image.fromarray(whole).convert("L"))).max() <= 1


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_without_a_model_the_photograph_gets_the_one_that_upscale_takes(tmp_path, ending):
    """It gets the model that `upscale` takes for a file of this kind."""
    file = tmp_path / f"photo.{ending}"
    Image.fromarray(picture(height=40, width=50)).save(file)
    with TestClient(make_server(file, None).app()) as client:
        tile = client.get(f"/iiif/3/{file.name}@x2/30,20,40,30/max/0/default.png")
    upscale_file(file, tmp_path / "out.png", scale=2, region=(20, 30, 30, 40))
    assert np.array_equal(pixels_of(tile, tmp_path), read_image(tmp_path / "out.png").pixels)


def test_fractions(client, tmp_path):
    """A region that is no window of a whole output is rendered nevertheless, with values near its neighbour's."""
    one = pixels_of(client.get("/iiif/3/rgb-8.png/pct:10.1,20,30,40/^pct:370/0/default.png"), tmp_path)
    assert one.shape == (round(HEIGHT * 0.4 * 3.7), round(WIDTH * 0.3 * 3.7), 3)
    other = pixels_of(client.get("/iiif/3/rgb-8.png/pct:10.1001,20,30,40/^pct:370/0/default.png"), tmp_path)
    assert np.abs(one.astype(int) - other).mean() < 1


@pytest.mark.parametrize("name", ["rgb-8.png", "gray-alpha-16.png"])
def test_plain_interpolation(client, pictures, tmp_path, name):
    """Pillow resizes the part that a window covers: the photograph at its own size, and a smaller one by Lanczos."""
    pixels = pictures[1][name]
    assert np.array_equal(pixels_of(client.get(f"/iiif/3/{name}/full/max/0/default.png"), tmp_path), pixels)
    nearest = pixels_of(client.get(f"/iiif/3/{name}@x2/10,20,30,40/max/0/nearest.png"), tmp_path)
    assert np.array_equal(nearest, pixels.repeat(2, 0).repeat(2, 1)[20:60, 10:40])
    small = pixels_of(client.get(f"/iiif/3/{name}/full/65,51/0/default.png"), tmp_path)
    bicubic = pixels_of(client.get(f"/iiif/3/{name}@x2/full/max/0/bicubic.png"), tmp_path)
    assert small.shape == (51, 65, pixels.shape[2])
    if pixels.dtype == np.uint8:
        image = Image.fromarray(pixels)
        assert np.array_equal(small, np.asarray(image.resize((65, 51), Image.Resampling.LANCZOS)))
        assert np.array_equal(bicubic, np.asarray(image.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BICUBIC)))


def test_a_part_of_16_bits_is_that_of_the_whole(pictures):
    """Only the pixels that the kernels reach become float32, and all agree up to float32's rounding."""
    pixels = pictures[1]["gray-16.png"]
    plane = Image.fromarray(pixels[..., 0].astype(np.float32))
    for size, box in (
        ((40, 30), (20.3, 11.7, 60.1, 80.9)),
        ((90, 70), (100.2, 3.5, 131, 9.25)),
        ((5, 4), (0, 0, 131, 103)),
    ):
        for how in (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC):
            whole = np.asarray(plane.resize(size, how, box)).round().clip(0, 65535)
            assert np.abs(_resized(pixels, size, box, how)[..., 0] - whole).max() <= 2


def test_an_open_photograph_takes_no_more_than_the_cache_counts(pictures, small_model):
    renderer = Renderer(str(small_model), "cpu")
    for name in pictures[1]:
        photograph = renderer._photograph(Shelf(pictures[0]).find(name))
        planes = photograph.upscaler._canvas.planes
        held = photograph.pixels.nbytes + sum(plane.view.inp.nbytes for plane in planes)
        held += sum(each.plane.nbytes for each in planes if not np.shares_memory(each.plane, photograph.pixels))
        assert held <= photograph.nbytes, name


def test_info(client):
    answer = client.get("/iiif/3/rgb-8.png@x16/info.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() | {"id": "http://testserver/iiif/3/rgb-8.png@x16", "width": WIDTH * 16} == answer.json()
    linked = client.get("/iiif/3/rgb-8.png/info.json", headers={"accept": "application/ld+json"})
    assert linked.headers["content-type"].startswith("application/ld+json")
    assert 'rel="profile"' in linked.headers["link"]
    moved = client.get("/iiif/3/rgb-8.png", follow_redirects=False)
    assert (moved.status_code, moved.headers["location"]) == (303, "http://testserver/iiif/3/rgb-8.png/info.json")
    assert "http://testserver/iiif/3/gray-8.png/info.json" in client.get("/").json()["images"]


@pytest.mark.parametrize(("name", "quoted"), [("ü b%.png", "%C3%BC%20b%25.png"), ("a\nb.png", "a%0Ab.png")])
def test_a_name_with_folders_is_one_part_of_the_path(small_model, tmp_path, name, quoted):
    (tmp_path / "below").mkdir()
    Image.fromarray(picture()).save(tmp_path / "below" / name)
    with TestClient(make_server(tmp_path, small_model).app()) as client:
        (address,) = client.get("/").json()["images"]
        assert address.endswith(f"/below%2F{quoted}/info.json")
        info = client.get(address)
        assert info.status_code == 200
        assert info.json()["id"] + "/info.json" == address
        assert client.get(f"{info.json()['id']}/full/max/0/default.jpg").status_code == 200


def test_an_answer_is_validated_before_any_work(client, pictures):
    path = "/iiif/3/rgb-8.png@400x320/0,0,64,64/max/0/default.png"
    first = client.get(path)
    made = client.get("/status.json").json()["made"]
    again = client.get(path, headers={"if-none-match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    for known in (f"W/{first.headers['etag']}", "*"):
        assert client.get(path, headers={"if-none-match": known}).status_code == 304
    assert client.get(path).content == first.content
    assert client.get("/status.json").json()["made"] == made
    file = pictures[0] / "rgb-8.png"
    content = file.read_bytes()
    file.write_bytes(content + b"\0")  # changed: what is kept of it does not count
    try:
        assert client.get(path, headers={"if-none-match": first.headers["etag"]}).status_code == 200
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("missing.png/info.json", 404),
        ("..%2Fmodel%2Fsmall.safetensors/info.json", 404),
        ("%2Fetc%2Fpasswd/info.json", 404),
        ("%2e%2e/info.json", 404),
        ("rgb-8.png%00/info.json", 404),
        ("%ff/info.json", 400),
        ("rgb-8.png/nothing", 400),
        ("rgb-8.png/full/max/0/default.png/more", 400),
        ("rgb-8.png/full/^pct:1000000/0/default.png", 400),
        ("rgb-8.png@x64/full/9000,/0/default.png", 400),
        ("rgb-8.png@x65/info.json", 400),
        ("rgb-8.png@999999999x999999999/info.json", 400),
        ("rgb-8.png/full/max/45/default.png", 501),
        ("broken.png/info.json", 404),
        ("bomb.png/info.json", 404),
        ("short.png/full/max/0/default.png", 404),
    ],
)
def test_refusals(client, pictures, path, status):
    """Each refusal is one line, and names no path of this machine."""
    (pictures[0] / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    header = (pictures[0] / "gray-8.png").read_bytes()
    import zlib

    def sized(width, height):
        chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + header[24:29]
        return header[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + header[33:]

    (pictures[0] / "bomb.png").write_bytes(sized(100_000, 100_000))
    (pictures[0] / "short.png").write_bytes(sized(200, 2000))
    answer = client.get(f"/iiif/3/{path}")
    assert answer.status_code == status
    assert answer.text.count("\n") == 1
    assert str(pictures[0]) not in answer.text


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "", "evil.example:80", "localhost@evil", "localhost:80@evil", "[::1"],
)
def test_a_name_that_was_rebound_to_this_machine_is_refused(client, host):
    answer = client.get("/iiif/3/rgb-8.png/info.json", headers={"host": host})
    assert answer.status_code == 421
    for good in ("localhost", "LOCALHOST:8000", "127.0.0.1:1"):
        assert client.get("/iiif/3/rgb-8.png/info.json", headers={"host": good}).status_code == 200


def test_only_reading(client):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.request(method, "/iiif/3/rgb-8.png/info.json").status_code == 405
    assert client.head("/iiif/3/rgb-8.png/info.json").status_code == 200


def test_serve_lets_every_site_read(client):
    for path in ("/iiif/3/rgb-8.png/info.json", "/iiif/3/rgb-8.png/full/max/0/default.jpg", "/iiif/3/none/info.json"):
        answer = client.get(path, headers={"origin": "https://viewer.example"})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.options("/iiif/3/rgb-8.png/info.json").status_code == 204
    assert client.get("/view.js").status_code == 404  # there is no page


@pytest.fixture(scope="module")
def private(pictures, small_model):
    page = {"name": "rgb-8.png", "photo": "rgb-8.png", "tiles": "webp"}
    server = make_server(pictures[0] / "rgb-8.png", small_model, token=new_token(), public=False, page=page)
    with TestClient(server.app()) as made:
        yield made, server.prefix


def test_view_is_for_who_knows_the_token(private):
    client, prefix = private
    for path in ("/", "/view.js", "/page.json", "/status.json", "/iiif/3/rgb-8.png/info.json"):
        assert client.get(prefix + path).status_code == 200
        for wrong in ("", "/x", prefix[:-1], prefix + "x", prefix.swapcase()):
            assert client.get(wrong + path).status_code == 404
    assert client.get(f"{prefix}/iiif/3/gray-8.png/info.json").status_code == 404  # one photograph, not its folder
    assert len(prefix) > 30
    assert new_token() != new_token()


def test_view_is_not_for_other_sites(private):
    client, prefix = private
    for path in ("/", "/view.js", "/iiif/3/rgb-8.png/full/max/0/default.png"):
        headers = client.get(prefix + path, headers={"origin": "https://evil.example"}).headers
        assert "access-control-allow-origin" not in headers
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["referrer-policy"] == "no-referrer"  # which would tell the token
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
    assert client.options(f"{prefix}/").status_code == 405


def test_the_package_needs_no_server():
    """Neither the package nor `upscale` imports Starlette, Uvicorn, or their dependencies."""
    code = (
        "import sys; import liif_fast, liif_fast.upscaling, liif_fast.cli.program as p; p.build_parser();"
        "print([name for name in ('starlette', 'uvicorn', 'anyio', 'h11') if name in sys.modules])"
    )
    assert warm.run("-c", code, check=True).stdout == "[]\n"

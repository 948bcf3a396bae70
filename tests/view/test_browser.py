"""In a real browser, the page and a foreign viewer show what `upscale` writes."""

import base64
import io
import os
import shutil
import struct
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

for needed in ("starlette", "uvicorn", "playwright"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'liif-fast[view,test]'")
from playwright.sync_api import Error, sync_playwright

from liif_fast.cli import main
from liif_fast.images import read_image, write_strips
from liif_fast.images.colour import COLOUR
from liif_fast.upscaling import upscale

from .support import make_server, picture, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
    pytest.mark.xdist_group("browser"),  # one browser for all of them
]
SIZE = {"width": 500, "height": 380}
EXACT = "() => document.body.dataset.state === 'exact'"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses its sandbox to root
        try:
            made = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        except Error as error:
            pytest.skip(f"{CHROMIUM} does not start: {str(error).splitlines()[0]}")
        yield made
        made.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "a photo's.png"
    Image.fromarray(picture()).save(path)
    return path


@pytest.fixture(scope="module")
def server(photo, small_model):
    page = {"name": photo.name, "photo": "PHOTO", "tiles": "webp", "model": " --model MODEL"}
    return make_server(photo, small_model, token="secret", public=False, page=page)


@pytest.fixture(scope="module")
def address(server):
    with running(server) as made:
        yield f"{made}/"


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport=SIZE, has_touch=True)
    made = context.new_page()
    complaints = []
    made.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.goto(address)
    made.wait_for_function("() => globalThis.view")
    yield made
    context.close()
    assert not complaints


def screen(page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))


def bare(page) -> np.ndarray:
    """Return the screen without the controls that lie on the picture."""
    page.evaluate(
        "() => document.querySelectorAll('#split, .label, #bar, #note').forEach(each => { each.style.opacity = 0 })"
    )
    return screen(page)


def seen(page) -> dict:
    return page.evaluate("() => view.onScreen()")


def exact(page) -> None:
    page.wait_for_function(EXACT, timeout=60_000)


def test_the_screen_is_the_output_of_upscale(page, small_model):
    """At a scale of 3.7 all pixels right of the border are the model's, those on the left are Pillow's bicubic."""
    page.evaluate("() => view.go(70, 50, 3.7)")
    exact(page)
    at, shown = seen(page), bare(page)
    assert (at["N"], at["M"], at["w"], at["h"]) == (485, 381, at["w"], at["h"])
    whole = upscale(picture(), str(small_model), size=(at["N"], at["M"]))
    bicubic = np.asarray(Image.fromarray(picture()).resize((at["N"], at["M"]), Image.Resampling.BICUBIC))
    left = page.evaluate("() => Math.round((view.onScreen().N / 131) * 70 - 250)")
    top = page.evaluate("() => Math.round((view.onScreen().M / 103) * 50 - 190)")
    rows, columns = slice(at["y"], at["y"] + at["h"]), slice(at["x"], at["x"] + at["w"])
    y = slice(at["y"] - top, at["y"] - top + at["h"])
    x = slice(at["x"] - left, at["x"] - left + at["w"])
    border = 250 - x.start  # the column at which the model begins
    assert np.array_equal(shown[y, x][:, border:], whole[rows, columns][:, border:])
    # Pillow rounds the corner of a part to float32, so a tile may differ from the whole by one level.
    difference = np.abs(shown[y, x].astype(int) - bicubic[rows, columns])[:, :border]
    assert difference.max() <= 1 and (difference == 0).mean() > 0.99


def test_the_saved_window_is_the_file_that_the_copied_command_writes(page, photo, small_model, tmp_path):
    page.evaluate("() => view.go(30.2, 41.7, 9.3)")
    exact(page)
    with page.expect_download() as download:
        page.keyboard.press("s")
    download.value.save_as(tmp_path / "saved.png")
    command = page.evaluate("() => view.command()").replace("PHOTO", "\0").replace("MODEL", str(small_model)).split()
    command = [str(photo) if each == "\0" else each for each in command]
    assert command[:2] == ["liif-fast", "upscale"]
    command[command.index("out.png")] = str(tmp_path / "out.png")
    assert main(command[1:]) == 0
    saved, made = (read_image(tmp_path / name).pixels for name in ("saved.png", "out.png"))
    assert saved.shape == made.shape == (380, 500, 3)
    assert np.array_equal(saved, made)


def test_quick_zooms_leave_stale_tiles_unrendered(page, server, monkeypatch):
    """There are twelve zooms during one tile; tiles requested and left are dropped before they cost anything."""
    render, held, queue = server.renderer.render, threading.Event(), server.queue

    def slowly(entry, request):
        if request.quality == "default":
            assert held.wait(60)
        return render(entry, request)

    def asked():
        return len(queue._jobs) + queue.counts["made"] + queue.counts["dropped"]

    def wait(until):
        limit = time.monotonic() + 60
        while not until():
            assert time.monotonic() < limit
            page.wait_for_timeout(20)

    monkeypatch.setattr(server.renderer, "render", slowly)
    before = page.evaluate("() => fetch('status.json').then(answer => answer.json())")
    for step in range(12):
        earlier = asked()
        page.evaluate(f"() => view.go(60, 50, {4.1 + step * 0.71})")
        wait(lambda earlier=earlier: asked() > earlier)
    held.set()
    exact(page)
    wait(lambda: not queue._jobs)
    after = page.evaluate("() => fetch('status.json').then(answer => answer.json())")
    needed = 2  # at least, of the model's tiles at each step: 250 x 380 pixels of tiles of 256
    assert after["made"] - before["made"] < 12 * needed
    assert after["dropped"] > before["dropped"]
    assert after["waiting"] == 0


def test_states_and_keys(page):
    state = page.locator("#state")
    told = page.evaluate("() => { view.go(60, 50, 2.5); return [document.body.dataset.state, state.textContent] }")
    assert told == ["moving", "moving: the browser's interpolation"]
    exact(page)
    assert state.inner_text() == "exact"
    assert page.locator("#scale").inner_text() == "×2.50 328×258 of 131×103"
    assert page.locator("#beyond").is_hidden()
    page.evaluate("() => view.go(65, 51, 1)")
    exact(page)
    assert state.inner_text() == "exact: the photograph itself"
    page.keyboard.press("c")  # the command would write the model's pixels
    assert page.locator("#note").inner_text() == "zoom in: up to ×1 nothing is upscaled"
    page.evaluate("() => view.go(60, 50, 2.5)")
    canvas = page.locator("#canvas")
    canvas.focus()
    for key, scale in (("+", 3.12), ("-", 2.5), ("1", 1), ("0", 3.69)):
        page.keyboard.press(key)
        assert f"×{scale:.2f}" in page.locator("#scale").inner_text().replace("3.13", "3.12")
    before = seen(page)
    page.evaluate("() => view.go(60, 50, 8)")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    after = page.evaluate("() => [view.onScreen().x, view.onScreen().y]")
    assert after == [60 * 8 + 80 - 250, 50 * 8 + 80 - 190]
    assert before["w"] <= 500
    assert page.locator("#beyond").is_visible()
    exact(page)
    plain = bare(page)
    page.keyboard.press("g")
    lines = (screen(page) != plain).any(2)
    columns = np.flatnonzero(lines.all(0))
    assert len(columns) == pytest.approx(500 / 8, abs=1) and set(np.diff(columns)) == {8}
    page.keyboard.press("b")
    assert page.locator("#left").text_content() == "nearest"
    page.keyboard.press("b")
    assert page.locator("#left").text_content() == "no comparison"
    page.keyboard.press("h")
    assert page.locator("#help").get_attribute("hidden") is None
    assert "s=8.0000" in page.evaluate(
        "async () => { await new Promise(r => setTimeout(r, 200)); return location.search }"
    )


def test_wheel_drag_border_and_touch(page):
    page.evaluate("() => view.go(60, 50, 4)")
    page.mouse.move(100, 150)
    place = "() => { const at = view.onScreen(); return [(at.x + 100) / at.N, (at.y + 150) / at.M] }"
    page.evaluate("() => view.go(60, 50, 5)")
    size, before = page.evaluate("() => view.onScreen().N"), page.evaluate(place)
    page.mouse.wheel(0, -200)
    page.wait_for_function(f"() => view.onScreen().N > {size}", timeout=5000)
    assert page.evaluate(place) == pytest.approx(before, abs=2e-3)  # what is under the pointer stays there
    size = page.evaluate("() => view.onScreen().N")
    page.mouse.move(250, 90)  # on the border between the pictures
    page.mouse.wheel(0, -200)
    page.wait_for_function(f"() => view.onScreen().N > {size}", timeout=5000)
    page.evaluate("() => view.go(60, 50, 8)")
    start = seen(page)
    page.mouse.move(400, 100)
    page.mouse.down()
    page.mouse.move(340, 130, steps=3)
    page.mouse.up()
    assert page.evaluate("() => view.onScreen().x") == pytest.approx(start["x"] + 60, abs=1)
    assert page.evaluate("() => view.onScreen().y") == pytest.approx(start["y"] - 30, abs=1)
    start = seen(page)
    page.mouse.down(button="right")
    page.mouse.move(400, 90, steps=3)
    page.mouse.up(button="right")
    assert seen(page) == start
    page.locator("#split").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#split").get_attribute("aria-valuenow") == "48"
    page.mouse.move(240, 90)
    page.mouse.down()
    page.mouse.move(100, 90)
    page.mouse.up()
    assert page.locator("#split").get_attribute("aria-valuenow") == "20"
    touch = page.context.new_cdp_session(page)
    scale = page.evaluate("() => view.onScreen().N")
    for kind, gap in (("touchStart", 40), ("touchMove", 60), ("touchMove", 80), ("touchEnd", None)):
        points = [] if gap is None else [{"x": 300 - gap, "y": 200, "id": 0}, {"x": 300 + gap, "y": 200, "id": 1}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert page.evaluate("() => view.onScreen().N") == pytest.approx(2 * scale, rel=0.05)


def test_all_controls_are_on_the_screen_of_a_small_phone(browser, address):
    context = browser.new_context(viewport={"width": 320, "height": 568}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(f"{address}?x=60&y=50&s=7.3")
    page.wait_for_function("() => globalThis.view")
    page.keyboard.press("h")
    for each in page.locator("button, .label, #bar, #help").all():
        box = each.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 320, each.inner_text()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 568, each.inner_text()
    context.close()


def test_below_its_size_the_photograph_is_reduced_from_all_its_pixels(browser, small_model, tmp_path):
    """The first picture has at most 1024 pixels a side, and must not stay where the screen shows more."""
    path, pixels = tmp_path / "large.png", picture(height=900, width=1500)
    Image.fromarray(pixels).save(path)
    shown = {"name": path.name, "photo": path.name, "tiles": "webp"}
    with running(make_server(path, small_model, token="secret", public=False, page=shown)) as served:
        context = browser.new_context(viewport=SIZE)
        page = context.new_page()
        page.goto(f"{served}/?x=700&y=400&s=0.9")
        page.wait_for_function("() => document.body.dataset.state === 'reduced'", timeout=60_000)
        assert page.locator("#state").inner_text() == "the photograph, reduced"
        at, right = seen(page), bare(page)[:, 250:]
        whole = Image.fromarray(pixels).resize((1350, 810), Image.Resampling.LANCZOS)
        wanted = np.asarray(whole)[at["y"] : at["y"] + 380, at["x"] + 250 : at["x"] + 500]
        assert np.abs(right.astype(int) - wanted).max() <= 1
        context.close()


def test_the_browser_shows_described_colours_as_those_of_the_file(browser, small_model, tmp_path):
    """The page needs PNG here, because WebP cannot say that the values are linear."""
    path, pixels = tmp_path / "linear.png", picture()
    write_strips(path, [pixels], pixels.shape, 8, {COLOUR: {b"gAMA": struct.pack(">I", 100_000)}})
    shown = []
    for tiles in ("png", "webp"):
        told = {"name": path.name, "photo": path.name, "tiles": tiles}
        with running(make_server(path, small_model, token="secret", public=False, page=told)) as served:
            page = browser.new_page(viewport=SIZE)
            page.goto(f"{served}/?x=65.5&y=51.5&s=1")
            exact(page)
            at = page.evaluate("() => { const { x, y } = view.onScreen(); return [x, y] }")
            assert at == [0, 0]
            shown.append(bare(page))
            page.close()
    page = browser.new_page(viewport=SIZE)
    address = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    page.set_content(f'<body style="margin:0;background:#1b1b1d"><img src="{address}" style="margin:138px 184px">')
    page.wait_for_function("() => document.images[0].complete")
    part = np.s_[139:240, 186:314]
    assert np.abs(screen(page)[part].astype(int) - shown[0][part]).max() <= 1
    assert np.abs(shown[1][part].astype(int) - shown[0][part]).max() > 20
    page.close()


def test_a_photograph_that_cannot_be_read_is_said_on_the_page(browser, address):
    context = browser.new_context(viewport=SIZE)
    page = context.new_page()
    page.route("**/full/**", lambda route: route.fulfill(status=404, body="a.png: cannot be read\n"))
    page.goto(address)
    page.wait_for_selector("#note", timeout=10_000)
    assert page.locator("#note").inner_text() == "a.png: cannot be read"
    context.close()


@pytest.fixture(scope="module")
def openseadragon(tmp_path_factory):
    """Return OpenSeadragon from npm, in the tested version."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm is installed, which brings OpenSeadragon")
    folder = tmp_path_factory.mktemp("npm")
    done = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder, "openseadragon@6.1.1"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"npm cannot fetch OpenSeadragon: {done.stderr.strip().splitlines()[-1]:.120}")
    return Path(folder) / "node_modules" / "openseadragon" / "build" / "openseadragon" / "openseadragon.min.js"


def test_openseadragon_zooms_into_a_virtual_image(browser, photo, small_model, openseadragon):
    """A foreign viewer, on another site, opens the photograph enlarged 8 times, and shows the model's pixels."""
    with running(make_server(photo.parent, small_model)) as served:
        context = browser.new_context(viewport=SIZE)
        page = context.new_page()
        page.set_content('<body style="margin:0"><div id="osd" style="width:500px;height:380px"></div>')
        page.add_script_tag(path=openseadragon)
        page.evaluate(
            """address => new Promise((done, failed) => {
                globalThis.viewer = OpenSeadragon({ id: "osd", tileSources: address, showNavigationControl: false,
                    immediateRender: true, crossOriginPolicy: "Anonymous", drawer: "canvas", animationTime: 0 });
                viewer.addOnceHandler("open", () => done());
                viewer.addOnceHandler("open-failed", event => failed(event.message));
            })""",
            f"{served}/iiif/3/a%20photo's.png@x8/info.json",
        )
        assert page.evaluate("() => { const s = viewer.source; return [s.width, s.height] }") == [1048, 824]
        # One pixel of the screen is one of the image; its corner lies at (256, 128).
        page.evaluate(
            """() => {
                const part = viewer.world.getItemAt(0).imageToViewportRectangle(256, 128, 500, 380);
                viewer.viewport.fitBounds(part, true);
            }"""
        )
        page.wait_for_function("() => viewer.world.getItemAt(0).getFullyLoaded()", timeout=60_000)
        page.wait_for_timeout(300)
        shown = screen(page)
        whole = upscale(picture(), str(small_model), scale=8)
        difference = np.abs(shown.astype(int) - whole[128 : 128 + 380, 256 : 256 + 500])
        assert np.median(difference) <= 2  # OpenSeadragon asks for JPEG unless told
        assert difference.mean() < 4
        context.close()

"""Take the pictures of docs/viewer.md from the viewer's page in Chromium: `python -m benchmarks.view_pictures`."""

import io
import shutil
import subprocess
import sys

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from benchmarks.records import ROOT
from benchmarks.view import PHOTO

FOLDER = ROOT / "docs" / "images"
STATE = "document.querySelector('#state').textContent"


def take(page: Page, name: str, place: tuple[float, float, float], until: str) -> None:
    """Go to a place (x, y, scale) of the photograph, wait for a state, and write a picture of the page."""
    page.evaluate("place => view.go(...place)", place)
    page.wait_for_function(until, timeout=600_000)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.save(FOLDER / f"viewer-{name}.jpg", quality=85)
    print(name, page.locator("#bar").inner_text().splitlines()[:3])


def main() -> None:
    command = [sys.executable, "-m", "liif_fast", "view", PHOTO, "--no-browser"]
    with sync_playwright() as playwright, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 900, "height": 560})
            page.goto(address)
            page.wait_for_function("() => globalThis.view")
            take(page, "exact", (118, 62, 7.3), f"() => {STATE} === 'exact'")
            take(page, "coming", (125, 78, 5.1), f"() => parseInt({STATE}) <= 8")
            page.keyboard.press("g")
            page.keyboard.press("b")
            take(page, "grid", (105, 62, 16), f"() => {STATE} === 'exact'")
            browser.close()
        finally:
            server.terminate()  # Popen's end waits for it


if __name__ == "__main__":
    main()

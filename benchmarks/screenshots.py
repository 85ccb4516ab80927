"""Pictures of the viewer, wide and narrow, for the README; ends with an error where the page asks another host.

python -m benchmarks.screenshots --run runs/demo     (needs chromium: apt install chromium)
"""

import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import tyro
from PIL import Image

from codegrid.pipelines.view import View
from codegrid.pipelines.viewer.run import serve

from .browser import Browser

SIZES = {"viewer.png": 1400, "viewer-narrow.png": 400}  # the width of the window
FILLED = """['#samples', '#completions'].every(place => document.querySelector(place + ' img'))
    && [...document.querySelectorAll('.progress')].every(words => words.innerText.trim() == '100% drawn')"""
LOADED = "[...document.images].every(image => image.complete && image.naturalWidth)"


@dataclass(frozen=True)
class Screenshots:
    """Open the viewer in headless Chromium, and save what it shows."""

    run: str = "runs/demo"
    """Folder that holds tokenizer/ and prior/."""
    output: str = "docs"
    """Folder for the pictures."""


def main() -> None:
    """Save the pictures."""
    settings = tyro.cli(Screenshots)
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("error: no chromium: install it, with apt install chromium")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = serve(View(run=settings.run, port=port))
    for name, width in SIZES.items():
        with Browser(program) as browser:
            look(browser, f"http://127.0.0.1:{port}", width, Path(settings.output) / name)
    page.close()


def look(browser: Browser, address: str, width: int, path: Path) -> None:
    """Save a picture of the whole page."""
    browser.open(address, width, 900)
    browser.wait_for(FILLED)
    # a window as high as the page: pictures further down are not loaded before they are seen
    browser.resize(width, browser.value_of("document.querySelector('.gradio-container').scrollHeight"))
    browser.wait_for(LOADED)
    browser.save_picture(path)
    shrink(path)
    print(f"{path}: {path.stat().st_size:,} bytes; {len(browser.requested)} requests")
    for complaint in browser.complaints:
        print(f"  the browser says: {complaint}")
    foreign = {urlsplit(asked).hostname for asked in browser.requested} - {urlsplit(address).hostname, None, ""}
    needed = browser.value_of("document.documentElement.scrollWidth")
    if foreign or needed > width:
        raise SystemExit(f"error: asked {foreign or 'no other host'}; {needed} of {width} pixels wide")


def shrink(path: Path) -> None:
    """Save a picture with 256 colours: a third of the bytes."""
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()

"""Screenshots of the viewer at three widths, light and dark, some of them for the README, and a check for faults.

python -m benchmarks.screenshots --run runs/demo     (needs chromium, and axe-core: see `make screenshots`)

Ends with an error if the page contacts another host, is wider than its window, shows small pictures, shows no focus, or
if axe-core finds a serious accessibility fault.
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

WIDTHS = (400, 900, 1400)  # of the window
SCHEMES = ("light", "dark")
IN_README = {(1400, "light"): "viewer.png", (400, "light"): "viewer-narrow.png"}
TALLEST = 5  # times the width
LEAST = {"#samples img": 80, "#completions img": 80, "#input img": 150, "#grid img": 300}  # width in pixels
FILLED = """['#samples', '#completions'].every(place => document.querySelector(place + ' img'))
    && [...document.querySelectorAll('.progress')].every(words => words.innerText.trim() == '100% drawn')"""
LOADED = "[...document.images].every(image => image.complete && image.naturalWidth)"
WIDTH_OF = "Math.min(...[...document.querySelectorAll('{}')].map(image => image.getBoundingClientRect().width))"
# every part that the keyboard can focus without a visible outline
UNSEEN = """[...document.querySelectorAll('button, input, textarea, a[href], [tabindex="0"]')].filter(part => {
    part.focus({focusVisible: true});
    const style = getComputedStyle(part), box = part.getBoundingClientRect();
    return document.activeElement == part && box.width > 1 && box.height > 1
        && (style.outlineStyle == 'none' || parseFloat(style.outlineWidth) < 2);
}).map(part => part.outerHTML.slice(0, 120))"""
FAULTS = """axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.map(
    fault => [fault.impact, fault.id, fault.nodes.length, fault.nodes[0].html.slice(0, 200)]))"""


@dataclass(frozen=True)
class Screenshots:
    """Open the viewer in headless Chromium, save screenshots, and check for faults."""

    run: str = "runs/demo"
    """Folder that holds tokenizer/ and prior/."""
    output: str = "docs"
    """Folder for the README's pictures."""
    others: str = "build/viewer"
    """Folder for the pictures of every width and scheme."""
    axe: str = "build/axe/node_modules/axe-core/axe.min.js"
    """The script of axe-core."""


def main() -> None:
    """Save the pictures."""
    settings = tyro.cli(Screenshots)
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("error: no chromium: install it with apt install chromium")
    if not Path(settings.axe).is_file():
        raise SystemExit(f"error: no {settings.axe}: run make screenshots, or npm install --prefix build/axe axe-core")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, faults = Path(settings.others), []
    folder.mkdir(parents=True, exist_ok=True)
    with serve(View(run=settings.run, port=port)) as served:
        for width in WIDTHS:
            for scheme in SCHEMES:
                path = folder / f"viewer-{width}-{scheme}.png"
                with Browser(program) as browser:
                    look(browser, served.address, width, scheme, path)
                    found = find_faults(browser, served.address, width, settings.axe)
                faults += [f"{path}: {fault}" for fault in found]
                if (width, scheme) in IN_README:
                    picture = Image.open(path)
                    height = min(picture.height, TALLEST * width)  # the README shows them side by side
                    picture.crop((0, 0, width, height)).save(Path(settings.output) / IN_README[width, scheme])
    if faults:
        raise SystemExit("\n".join(["error: the page has faults", *faults]))


def look(browser: Browser, address: str, width: int, scheme: str, path: Path) -> None:
    """Save a picture of the whole page."""
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(address, width, 900)
    browser.wait_for(FILLED)
    # a window as tall as the page: pictures further down load only when they are visible
    browser.resize(width, browser.value_of("document.querySelector('.gradio-container').scrollHeight"))
    browser.wait_for(LOADED)
    browser.save_picture(path)
    shrink(path)
    print(f"{path}: {path.stat().st_size:,} bytes; {len(browser.requested)} requests")
    for complaint in browser.complaints:
        print(f"  the browser says: {complaint}")


def find_faults(browser: Browser, address: str, width: int, axe: str) -> list[str]:
    """Return what is wrong with the open page, in words."""
    faults = []
    foreign = {urlsplit(asked).hostname for asked in browser.requested} - {urlsplit(address).hostname, None, ""}
    if foreign:
        faults.append(f"it contacts other hosts: {', '.join(map(str, foreign))}")
    needed = browser.value_of("document.documentElement.scrollWidth")
    if needed > width:
        faults.append(f"it is {needed} pixels wide")
    for place, least in LEAST.items():
        if (found := browser.value_of(WIDTH_OF.format(place))) < least:
            faults.append(f"{place} is {found:.0f} pixels wide")
    browser.value_of(Path(axe).read_text(encoding="utf-8"))
    for impact, name, count, example in browser.value_of(FAULTS):
        words = f"axe-core, {impact}: {name}, {count} times, such as {example}"
        print(f"  {words}")
        faults += [words] if impact in ("serious", "critical") else []
    return faults + [f"no visible focus on {part}" for part in browser.value_of(UNSEEN)]


def shrink(path: Path) -> None:
    """Reduce a picture to 256 colours, and so to a third of its bytes."""
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()

"""The viewer's server: on this machine alone, and a page that asks no other for anything."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

# The browser itself refuses what would come from elsewhere, or go there. Gradio's page has scripts and styles in it.
POLICY = (
    "default-src 'self' 'unsafe-inline' data: blob:; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval' blob:; "
    "form-action 'self'; frame-ancestors 'self'"
)
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none is fetched
CSS = """
.gradio-container { max-width: 1400px !important; width: 100%; margin: auto; }
.gradio-container .main { padding: 12px !important; }
.section { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px 16px 16px; }
.pixels img { image-rendering: pixelated; width: 100%; }
#grid img { cursor: crosshair; image-rendering: auto; }
#examples, #examples .grid-wrap { height: auto !important; min-height: 0 !important; }
#examples .grid-container { grid-template-columns: repeat(10, minmax(0, 1fr)) !important; }
@media (max-width: 640px) { #examples .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)) !important; } }
#examples .grid-container { grid-template-rows: none !important; grid-auto-rows: auto !important; }
#examples .gallery-item, #examples .thumbnail-item { width: 100%; height: auto; min-height: 0; }
#examples .thumbnail-item { aspect-ratio: 1; }
.control [data-testid="block-info"] { white-space: nowrap; }
.progress { opacity: 0.75; font-size: 0.9em; }
footer { display: none !important; }
"""


class KeepHome:
    """ASGI middleware: adds the policy, and takes the addresses of other hosts out of the page."""

    def __init__(self, app: Callable) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable, send: Callable) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        host = dict(scope["headers"]).get(b"host", b"")
        await self.app(scope, receive, _at_home(send, host))


def _at_home(send: Callable, host: bytes) -> Callable[[MutableMapping[str, Any]], Awaitable[None]]:
    start: MutableMapping[str, Any] = {}
    pieces: list[bytes] = []

    async def send_clean(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            if _header(message, b"content-type").startswith(b"text/html"):
                start.update(message)  # goes out with the body, whose length changes
                return
        elif start:
            pieces.append(message.get("body", b""))
            if message.get("more_body"):
                return
            message = {**message, "body": without_foreign_hosts(b"".join(pieces), host)}
            headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            length = str(len(message["body"])).encode()
            await send({**start, "headers": [*headers, (b"content-length", length)]})
            start.clear()
        await send(message)

    return send_clean


def without_foreign_hosts(html: bytes, host: bytes) -> bytes:
    """A page without addresses that lead elsewhere than to `host`."""
    return re.sub(rb"https?://(?!" + re.escape(host) + rb"(?![\w.:-]))[^\"'\s<>\\]*", b"", html)


def _header(message: MutableMapping[str, Any], name: bytes) -> bytes:
    return next((value for key, value in message["headers"] if key.lower() == name), b"")


def launch_page(page: gr.Blocks, host: str, port: int) -> None:
    """Serve a page in a thread. Raises OSError where that cannot be."""
    page.launch(
        server_name=host, server_port=port, share=False, inbrowser=False, prevent_thread_lock=True, quiet=True,
        max_file_size="64mb", ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False, footer_links=[],
        theme=gr.themes.Default(**FONTS), css=CSS, app_kwargs={"middleware": [Middleware(KeepHome)]},
    )  # fmt: skip

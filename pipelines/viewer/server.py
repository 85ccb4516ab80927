"""The viewer's server: on this machine alone, with a page that asks no other for anything."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

# The browser itself refuses what would come from elsewhere, or go there. Gradio's page has scripts and styles in it.
POLICY = (
    "default-src 'self' 'unsafe-inline' data: blob:; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval' blob:; "
    "form-action 'self'; frame-ancestors 'self'; base-uri 'self'"
)
FONTS: dict[str, Any] = {
    "font": ["system-ui", "sans-serif"],
    "font_mono": ["ui-monospace", "monospace"],
}  # none is fetched
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
Message = MutableMapping[str, Any]


class KeepHome:
    """ASGI middleware that adds the policy to every answer."""

    def __init__(self, app: Callable) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Callable, send: Callable[[Message], Awaitable[None]]) -> None:
        """Answer one request."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def launch_page(page: gr.Blocks, host: str, port: int) -> None:
    """Serve a page in a thread. Raises OSError where that cannot be."""
    page.launch(
        server_name=host, server_port=port, share=False, inbrowser=False, prevent_thread_lock=True, quiet=True,
        max_file_size="64mb", ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False, footer_links=[],
        theme=gr.themes.Default(**FONTS), css=CSS, app_kwargs={"middleware": [Middleware(KeepHome)]},
    )  # fmt: skip

"""The viewer's server: it listens by default to this machine alone, and its page loads nothing from elsewhere."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
import uvicorn
from fastapi import FastAPI

from codegrid.errors import InputError
from codegrid.pipelines.running.device import environment

from .guard import AT_ONCE, Guard, Trusted
from .look import CSS, SCRIPT, make_theme

LAST_SECONDS = 5  # to wait for a drawing in progress when the server ends


@contextmanager
def private_folder() -> Iterator[Path]:
    """Give gradio a folder that no other user can read for uploads and pictures, and remove it afterwards."""
    with TemporaryDirectory(prefix="codegrid-view-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        with environment(GRADIO_TEMP_DIR=str(folder)):
            yield folder


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises `InputError` if the address cannot be used."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # :: is everywhere, 0.0.0.0 too
        return socket.create_server(address, family=family, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"`host` {host}, `port` {port}: cannot listen there ({error}): choose another `port`, or leave out `host`"
        ) from error


@contextmanager
def serve_page(page: gr.Blocks, listener: socket.socket, trusted: Trusted, folder: Path) -> Iterator[None]:
    """Serve a page in a thread, for as long as the context lasts; `folder` is that of `private_folder`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app, page, "/", max_file_size=AT_ONCE, ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
        show_error=False, footer_links=[], theme=make_theme(), css=CSS, js=SCRIPT,
    )  # fmt: skip
    page.has_launched = True  # otherwise gradio would also read files that were not uploaded
    guarded = Guard(app, trusted, folder)
    server = uvicorn.Server(uvicorn.Config(guarded, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        if not server.started:
            raise RuntimeError("the viewer's server did not start")
        yield
    finally:
        page.close(verbose=False)
        server.should_exit = True
        thread.join(LAST_SECONDS)

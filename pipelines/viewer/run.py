"""The viewer: models are loaded, and their page is served until Ctrl-C."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from codegrid.errors import InputError, import_extra
from codegrid.pipelines.generation.pairing import find_priors
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.device import choose_device

if TYPE_CHECKING:
    import gradio

    from codegrid.pipelines.view import View


def view(settings: View) -> None:
    """Serve the page until Ctrl-C."""
    page = serve(settings)
    print_once(f"open http://{settings.host}:{settings.port} in a browser; Ctrl-C ends it")
    page.block_thread()


def serve(settings: View) -> gradio.Blocks:
    """Start the page's server, in a thread, and return gradio's Blocks."""
    # gradio reads these when it is imported; then it asks its own server, which no proxy can reach, how it is
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("NO_PROXY", "no_proxy"):  # where both are set, the second counts
        earlier = os.environ.get(name) or os.environ.get(name.swapcase())
        os.environ[name] = ",".join(filter(None, (earlier, settings.host, "127.0.0.1,localhost")))
    import_extra("gradio", "the viewer", "view")
    check_address(settings.host, settings.port)
    pipeline = load_pipeline(settings)

    # not above: they import gradio
    from .examples import find_examples
    from .page import build_page
    from .server import launch_page

    run = Path(settings.run) if settings.run is not None else None
    page = build_page(pipeline, find_examples(pipeline, run), settings.run or str(settings.tokenizer))
    launch_page(page, settings.host, settings.port)
    return page


def load_pipeline(settings: View) -> TwoStagePipeline:
    """Load the models of a run's folder, or those given in their place."""
    run = Path(settings.run or "")
    if settings.run is not None and not run.is_dir():
        raise InputError(f"no folder {run}: give `run`, the folder that holds tokenizer/ and prior/")
    tokenizer = settings.tokenizer or run / "tokenizer"
    priors = list(settings.prior) or find_priors(run) or [str(run / "prior")]
    return TwoStagePipeline.from_parts(tokenizer, priors, choose_device(settings.device))


def check_address(host: str, port: int) -> None:
    """Raise `InputError` where nothing can listen there: gradio would say so late, and in many lines."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: not held up by the last one
            listener.bind(address)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"`host` {host}, `port` {port}: cannot listen there ({error}): choose another `port`, or leave out `host`"
        ) from error

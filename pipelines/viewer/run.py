"""The body of `codegrid view`: models are loaded, and their page is served until Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from codegrid.errors import InputError, import_extra
from codegrid.hub import HUB_PREFIX
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.generation.tokenizers import load_tokenizer
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.device import choose_device
from codegrid.pipelines.running.outputs import RUN_FILE, visible
from codegrid.pipelines.running.places import PARTS, find_priors, find_tokenizers
from codegrid.pipelines.training.checkpoints import STATES
from codegrid.pretrained import PREFIX
from codegrid.protocols import Tokenizer
from codegrid.registry import load
from codegrid.usable import CONFIG, WEIGHTS

if TYPE_CHECKING:
    import gradio

    from codegrid.pipelines.view import View


ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Served(NamedTuple):
    """A page that is being served."""

    address: str
    page: gradio.Blocks
    folder: Path  # holds uploads and the pictures that are shown


def view(settings: View) -> None:
    """Serve the page until Ctrl-C or another signal to end. No uploads are left behind."""
    heard = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
    earlier = {number: signal.signal(number, _end) for number in heard}
    try:
        with serve(settings) as served:
            print_once(f"open {served.address} in a browser; press Ctrl-C to stop")
            threading.Event().wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)  # a second signal would interrupt the cleanup
    raise SystemExit(0 if number == signal.SIGINT else 128 + number)


@contextmanager
def serve(settings: View) -> Iterator[Served]:
    """Serve the page in a thread, for as long as the context lasts."""
    # gradio reads these when it is imported
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY"):
        os.environ[name] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import_extra("gradio", "the viewer", "view")

    # imported here: they import gradio
    from .examples import find_examples
    from .guard import Trusted
    from .media import medium_of
    from .page import build_page
    from .server import listen, private_folder, serve_page
    from .videos import find_starts

    with listen(settings.host, settings.port) as listener, private_folder() as folder:
        tokenizer, pipeline = load_models(settings)
        medium_of(tokenizer.signal)  # refuses what it cannot show
        run = None if settings.run is None else Path(settings.run)
        examples = find_examples(tokenizer, pipeline, run, settings.dataset, settings.data_root)
        starts = find_starts(pipeline, run, settings.dataset, settings.data_root)
        page = build_page(tokenizer, pipeline, examples, settings.run or " ".join(settings.tokenizer), starts)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        with serve_page(page, listener, Trusted.of(settings.host, settings.trusted_hosts), folder):
            yield Served(f"http://{host}:{settings.port}", page, folder)


def load_models(settings: View) -> tuple[Tokenizer, TwoStagePipeline | None]:
    """Load the tokenizer and, if there are priors, the pipeline: those of a run, or those given in their place."""
    device = choose_device(settings)
    run, tokenizer, priors = settings.run, list(settings.tokenizer), list(settings.prior)
    if run is not None:
        priors = priors or find_priors(run)
        tokenizer = tokenizer or find_tokenizers(run)
        if not tokenizer:  # a model's own folder, or a name on the hub
            _check_holds_a_model(run)
            found = load(run, device)
            if isinstance(found, TwoStagePipeline):
                return found.tokenizer, found
            tokenizer = [run]
    if not priors:
        return load_tokenizer(tokenizer, device), None
    pipeline = TwoStagePipeline.from_parts(tokenizer, priors, device)
    return pipeline.tokenizer, pipeline


def _check_holds_a_model(run: str) -> None:
    """Raise `InputError` if a folder without tokenizer/ is no model's own folder, nor one that is being trained."""
    if run.startswith((HUB_PREFIX, PREFIX)) or visible(Path(run)) & {CONFIG, WEIGHTS, RUN_FILE, STATES}:
        return
    words = f"it holds no {PARTS['tokenizer']}/" if Path(run).is_dir() else "there is no such folder"
    raise InputError(f"`run` {run}: {words}: give one with tokenizer/ and, for samples, prior/")

"""A page in the browser: encode images, edit their codes, sample, complete.

python -m pipelines.view --run runs/demo
"""

from typing import TYPE_CHECKING

from codegrid.pipelines.running.cli import run_script, say
from codegrid.pipelines.running.use_configs import View

if TYPE_CHECKING:
    import gradio


def view(settings: View) -> None:
    """Serve the page until Ctrl-C."""
    page = serve(settings)
    say(f"open http://{settings.host}:{settings.port} in a browser; Ctrl-C ends it")
    page.block_thread()


def serve(settings: View) -> "gradio.Blocks":
    """Start the page's server, in a thread, and return gradio's Blocks."""
    # imported here, so that --help answers before torch is loaded
    import os
    from pathlib import Path

    from codegrid.errors import InputError
    from codegrid.pipelines.generation.pipeline import TwoStagePipeline
    from codegrid.pipelines.running.device import choose_device

    # gradio reads these when it is imported; then it asks its own server, which no proxy can reach, how it is
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("NO_PROXY", "no_proxy"):  # where both are set, the second counts
        earlier = os.environ.get(name) or os.environ.get(name.swapcase())
        os.environ[name] = ",".join(filter(None, (earlier, settings.host, "127.0.0.1,localhost")))
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError('the viewer needs gradio: install it with pip install -e ".[view]"') from error
    run = Path(settings.run)
    if not run.is_dir():
        raise InputError(f"no folder {run}: give --run the folder that holds tokenizer/ and prior/")
    _check_address(settings)
    pipeline = TwoStagePipeline.from_pretrained(run, choose_device(settings.device))

    from codegrid.pipelines.viewer.examples import find_examples
    from codegrid.pipelines.viewer.page import build_page
    from codegrid.pipelines.viewer.server import launch_page

    page = build_page(pipeline, find_examples(pipeline, run), str(run))
    launch_page(page, settings.host, settings.port)
    return page


def _check_address(settings: View) -> None:
    """Raise `InputError` where nothing can listen there: gradio would say so late, and in many lines."""
    import socket

    from codegrid.errors import InputError

    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: not held up by the last one
            listener.bind(address)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"--host {settings.host} --port {settings.port}: cannot listen there ({error}): "
            "choose another --port, or leave out --host"
        ) from error


def main() -> None:
    """The command line."""
    run_script(View, view)


if __name__ == "__main__":
    main()

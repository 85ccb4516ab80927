"""Parts of the page that several of its sections have: downloads, and what is drawn, with a way to stop it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gradio as gr

from .answers import Answers
from .wording import told

NARROW = 150  # pixels below which a part moves into the next row: two stand side by side on a telephone
DRAWINGS = 4  # drawings, of all visitors: none waits for another's, and the machine can do so many

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
DRAWING = {**QUIET, "concurrency_limit": DRAWINGS}
CONTROL: dict[str, Any] = {"min_width": NARROW, "elem_classes": "control"}
SAVE = "const link = document.createElement('a'); link.href = content"


class Drawing(NamedTuple):
    """The parts of the page that start a drawing, stop it and show it."""

    event: dict[str, Any]  # of the button; the page repeats it
    button: gr.Button
    stop: gr.Button
    sheet: gr.HTML
    drawn: gr.State
    progress: gr.Markdown

    @property
    def outputs(self) -> list:
        """The parts that a drawing changes, in the order of the answers of `Answers.sample`."""
        return [self.sheet, self.drawn, self.progress]


def add_drawing(answers: Answers, act: Callable, words: str, name: str, inputs: list) -> Drawing:
    """Add a button that draws, one that stops it, downloads, how far it is, and what is drawn."""
    with gr.Row():
        button = gr.Button(words, variant="primary", min_width=NARROW)
        stop = gr.Button(f"Stop {name}", min_width=NARROW)
        drawn = gr.State()
        add_download(f"Download {name}", answers.download_sheet, drawn, f"{name}.png")
        add_download(f"Download codes of {name}", answers.download_codes, drawn, f"{name}.npz")
    progress = gr.Markdown(elem_classes="progress")
    sheet = gr.HTML(elem_id=name)
    event = {"fn": told(act), "inputs": inputs, "outputs": [sheet, drawn, progress], **DRAWING}
    return Drawing(event, button, stop, sheet, drawn, progress)


def add_download(words: str, act: Callable, source: gr.State, file: str) -> None:
    """Add a button that makes a file of what the page holds, and lets the browser save it under a name."""
    button = gr.Button(words, min_width=NARROW)
    content = gr.Textbox(visible=False)
    save = f"content => {{ {SAVE}; link.download = '{file}'; link.click(); }}"
    made = button.click(told(act), source, content, **QUIET)
    made.success(None, content, None, js=save, **QUIET)


def add_caption(words: str) -> None:
    """Add the name of a picture above it: gradio's own would cover a corner."""
    gr.Markdown(words, elem_classes="caption")

"""Sections of the viewer's page that need a prior: new images and completions; and parts that sections share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gradio as gr

from codegrid.codes import NO_LABEL
from codegrid.file_names import printable
from codegrid.pipelines.generation.futures import FRAMES
from codegrid.pipelines.generation.kept_part import default_rows
from codegrid.sampling_config import choices_of

from .answers import OF_CLASS, OWN, Answers
from .media import COLUMNS
from .videos import MOST, Videos
from .wording import CONTROLS, told

NARROW = 150  # pixels below which a part moves to the next row: two fit side by side on a phone
DRAWINGS = 4  # drawings at once, of all visitors: enough that nobody waits for others, and few enough for the machine

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
CONTROL: dict[str, Any] = {"min_width": NARROW, "elem_classes": "control"}
IN_A_ROW = 5  # controls
MAX_PROMPTS = 10_000  # characters
BUTTONS = 12  # actions that have one; others are written
LARGE = 256  # codes of a sample: only a few larger samples are drawn when the page is opened
RANGES: dict[str, tuple[float, float, float, float, str]] = {  # lowest, highest, initial value, step, meaning of 0
    "temperature": (0, 2, 1, 0.05, ""),
    "top_k": (0, 0, 0, 1, " (0: all)"),
    "top_p": (0.01, 1, 1, 0.01, ""),
    "guidance_scale": (0, 10, 1, 0.1, ""),
}


class Drawing(NamedTuple):
    """The parts of the page that start a drawing, stop it and show it."""

    event: dict[str, Any]  # of the button; the page also triggers it when it is filled
    button: gr.Button
    stop: gr.Button
    drawn: gr.State
    progress: gr.Markdown
    outputs: list  # the parts that a drawing changes, in the order of the values of `Answers.sample`


def add_drawing(
    answers: Answers, act: Callable, words: str, name: str, inputs: list, save: tuple[Callable, str] | None = None
) -> Drawing:
    """Add a button that draws, one that stops it, downloads, the progress and the drawn images.

    `save` is what makes the file of a download, and its ending; by default all images in one file.
    """
    make, ending = save or (answers.download_sheet, answers.medium.files)
    with gr.Row():
        button = gr.Button(words, variant="primary", min_width=NARROW)
        stop = gr.Button(f"Stop {name}", min_width=NARROW)
        drawn = gr.State()
        add_download(f"Download {name}", make, drawn, f"{name}{ending}")
        add_download(f"Download codes of {name}", answers.download_codes, drawn, f"{name}.npz")
    progress = gr.Markdown(elem_classes="progress")
    outputs = [gr.HTML(elem_id=name), drawn, progress]
    event = {"fn": told(act), "inputs": inputs, "outputs": outputs, **QUIET, "concurrency_limit": DRAWINGS}
    return Drawing(event, button, stop, drawn, progress, outputs)


def add_download(words: str, act: Callable, source: gr.State, file: str) -> None:
    """Add a button that makes a file from `source`, and lets the browser save it as `file`."""
    button = gr.Button(words, min_width=NARROW)
    content = gr.Textbox(visible=False)
    link = "const link = document.createElement('a'); link.href = content"
    save = f"content => {{ {link}; link.download = '{file}'; link.click(); }}"
    made = button.click(told(act), source, content, **QUIET)
    made.success(None, content, None, js=save, **QUIET)


def add_sampling(answers: Answers) -> tuple[list, Drawing]:
    """Add the section of new images. Returns its controls, which completions share, and its drawing."""
    choices = answers.label_choices()
    several = len(answers.pipeline.priors) > 1 if answers.pipeline else False
    by = "by several priors, coarse to fine" if several else "by the prior"
    gr.Markdown(f"## New {answers.medium.noun}s\nDrawn {by}.")
    with gr.Row():
        labels = _add_prompts(answers) if answers.reads_texts else gr.Dropdown(
            choices, multiselect=True, label=f"{CONTROLS['labels']}, used in turn (none chosen: all classes)",
            scale=2, visible=bool(choices), min_width=2 * NARROW,
        )  # fmt: skip
        number = gr.Slider(1, 100, _few(answers, 2 * COLUMNS), step=1, label=CONTROLS["num_samples"], **CONTROL)
        seed = gr.Number(0, label=CONTROLS["seed"], precision=0, minimum=0, min_width=NARROW)
        at_random = gr.Button("Random seed", min_width=NARROW)
    at_random.click(answers.new_seed, None, seed, **QUIET)
    controls = [*_add_controls(answers), seed]
    return controls, add_drawing(answers, answers.sample, "Sample", "samples", [labels, number, *controls])


def add_completion(
    answers: Answers, rows: range, encoded: gr.State, controls: list
) -> tuple[list[gr.Slider], gr.Dropdown | gr.Textbox, Drawing]:
    """Add the section of completions: below rows of codes, or in a box if the priors can keep any codes.

    Returns its sliders of the part to keep, its label, and its drawing.
    """
    choices, fills_any = answers.label_choices(), answers.fills_any()
    kept = "All codes outside of a box of pixels" if fills_any else answers.medium.kept
    words = f"{kept} are kept, including edits, and the rest is drawn."
    if answers.keeps_roughly():
        words = "The image outside of a box of pixels is kept, but only roughly, and the rest is drawn."
    gr.Markdown(f"## Completions\n{words}")
    box = _add_box(answers) if fills_any else []
    with gr.Row():
        keep = box or [_add_rows(answers, rows)]
        number = gr.Slider(1, 100, _few(answers, COLUMNS), step=1, label=CONTROLS["num_completions"], **CONTROL)
        label = gr.Textbox("", label="Prompt", max_lines=1, min_width=NARROW) if answers.reads_texts else gr.Dropdown(
            choices, value=choices[-1][1] if choices else None, label="Label", visible=bool(choices), min_width=NARROW
        )  # fmt: skip
    inputs = [encoded, *keep, number, label, *controls]
    act = answers.fill_in if fills_any else answers.complete
    return keep, label, add_drawing(answers, act, "Complete", "completions", inputs)


def add_gallery(pictures: list | None, count: int, words: str, name: str) -> gr.Gallery:
    """Add pictures to pick one from; without any, they are filled in when the page is opened."""
    return gr.Gallery(
        pictures, columns=count, height="auto", allow_preview=False, interactive=False, show_label=False, buttons=[],
        format="png", elem_id=name, object_fit="contain", label=words,
    )  # fmt: skip


def add_videos(videos: Videos, controls: list) -> Drawing:
    """Add the section that continues videos, with a field of actions and a button for each. Returns its drawing."""
    count, given = len(videos.starts.actions), videos.starts.actions.shape[1]
    follows = " What really followed is shown, too." if videos.starts.next_codes else ""
    gr.Markdown(
        f"## Videos\nPick what to continue: these are the last of {given} given frames of test videos. The prior draws "
        f"those that come after.{follows}"
    )
    starts, number = add_gallery(videos.thumbnails(), count, "Videos to pick from", "starts"), gr.State(0)

    def pick(event: gr.SelectData) -> int:
        return event.index

    starts.select(pick, None, number, **QUIET)
    with gr.Row():
        known = "; none: those that were really taken" if videos.starts.next_actions is not None else ""
        written = gr.Textbox(
            "", label=CONTROLS["actions"], info=f"one for each new frame, or one for all{known}", max_lines=2,
            max_length=MAX_PROMPTS, placeholder=", ".join(videos.names[:3]), scale=3, min_width=2 * NARROW,
            visible=bool(videos.names),
        )  # fmt: skip
        frames = gr.Slider(
            1, MOST, FRAMES, step=1, label=CONTROLS["frames"], info="if not told by several actions", scale=1,
            min_width=NARROW,
        )  # fmt: skip
    with gr.Row(visible=bool(videos.names)):
        for action in videos.names[:BUTTONS]:

            def add(before: str, action: str = action) -> str:
                return videos.add(before, action)

            gr.Button(f"+ {action}", size="sm", min_width=NARROW // 2).click(add, written, written, **QUIET)
        gr.Button("Clear actions", size="sm", min_width=NARROW // 2).click(str, None, written, **QUIET)
    inputs, save = [number, written, frames, *controls], (videos.download, ".gif")
    return add_drawing(videos.answers, videos.roll_out, "Continue", "videos", inputs, save)


def _add_prompts(answers: Answers) -> gr.Textbox:
    """Add the field of prompts, at first one that the prior's card shows samples of."""
    shown = answers.pipeline.prompts[:1] if answers.pipeline else []
    return gr.Textbox(
        "\n".join(map(printable, shown)), label=CONTROLS["prompts"], info="one per line; they are used in turn",
        placeholder="no text", lines=2, max_length=MAX_PROMPTS, scale=2, min_width=2 * NARROW,
    )  # fmt: skip


def _add_rows(answers: Answers, rows: range) -> gr.Slider:
    shapes = len({grid.shape for grid in answers.layout})
    return gr.Slider(
        rows.start, max(rows.start + 1, rows[-1]), default_rows(answers.layout), step=1, label=answers.medium.rows,
        info="counted in the finest grid" if shapes > 1 else None, scale=2, min_width=2 * NARROW,
    )  # fmt: skip


def _add_box(answers: Answers) -> list[gr.Slider]:
    """Add a row of the sliders of a box, at first the middle of the image."""
    height, width = answers.tokenizer.signal.size
    with gr.Row():
        corner = [
            gr.Slider(0, side - 1, side // 4, step=1, label=CONTROLS[name], **CONTROL)
            for name, side in (("top", height), ("left", width))
        ]
        sides = [
            gr.Slider(1, side, side // 2, step=1, label=CONTROLS[name], **CONTROL)
            for name, side in (("height", height), ("width", width))
        ]
    return corner + sides


def _few(answers: Answers, number: int) -> int:
    return number if sum(grid.num_sites for grid in answers.layout) <= LARGE else 4


def _add_controls(answers: Answers) -> list:
    """Add the controls that the priors support: sliders, and below them what priors have settings of their own for.

    Returns them in the order of `Answers.controls`.
    """
    rows = [[name for name in answers.controls if (name in RANGES) == is_slider] for is_slider in (True, False)]
    if len(answers.controls) <= IN_A_ROW:
        rows = [answers.controls]
    added: dict[str, Any] = {}
    for names in filter(None, rows):
        with gr.Row():
            added |= {name: _add_control(answers, name) for name in names}
    return [added[name] for name in answers.controls]


def _add_control(answers: Answers, name: str) -> Any:
    label = CONTROLS[name]
    if name == OF_CLASS:
        return gr.Dropdown(answers.label_choices(), value=NO_LABEL, label=label, **CONTROL)
    if name not in RANGES and choices_of(name):
        return gr.Dropdown([(OWN, ""), *choices_of(name)], value="", label=label, **CONTROL)
    if name not in RANGES:  # a text: a number that is not given would become 0
        return gr.Textbox("", label=label, placeholder=OWN, max_lines=1, **CONTROL)
    low, high, value, step, zero = RANGES[name]
    most = max(grid.num_embeddings for grid in answers.layout)
    return gr.Slider(low, high or most, value, step=step, label=label + zero, **CONTROL)

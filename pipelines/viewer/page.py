"""The viewer's page: what stands where on it, and which action each part calls."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gradio as gr

from codegrid.codes import describe_layout
from codegrid.pipelines.generation.pipeline import TwoStagePipeline

from .actions import COLUMNS, Actions, as_pixels, told
from .examples import Examples

LARGE = 256  # codes of a sample: of larger ones only a few are drawn when the page is opened
HOUR = 3600  # seconds after which gradio forgets pictures that it has shown; at the end it forgets all
NARROW = 150  # pixels below which a picture moves into the next row: two stand side by side on a telephone

CONTROL: dict[str, Any] = {"min_width": NARROW, "elem_classes": "control"}
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class Editor(NamedTuple):
    """The parts of the upper section that others read, in the order of what `Actions.show` gives."""

    encoded: gr.State
    codes: gr.State
    image: gr.Image
    reconstruction: gr.Image
    grid: gr.Dropdown
    row: gr.Number
    column: gr.Number
    code: gr.Slider
    picture: gr.Image
    edited: gr.Image


def build_page(pipeline: TwoStagePipeline, examples: Examples, title: str) -> gr.Blocks:
    """Build the page, which is filled when it is opened: the first example, its codes, samples and completions."""
    actions = Actions(pipeline, examples)
    with gr.Blocks(title=f"Codegrid: {title}", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        gr.Markdown(f"# Codegrid\n{_describe(pipeline, title)}")
        with gr.Column(elem_classes="section"):
            gallery, upload = _add_pictures_to_pick(examples)
            editor = _add_editor(actions)
        controls, sample = _add_sampling(actions)
        label, complete = _add_completion(actions, editor, controls)

        def pick(event: gr.SelectData) -> tuple:
            return actions.pick(event.index)

        def fill() -> tuple:
            return [as_pixels(image[None]) for image in examples.images], *actions.pick(0)

        gallery.select(told(pick), None, [*editor, label], **QUIET)
        upload.upload(told(actions.upload), upload, list(editor), **QUIET)
        # not before it is opened: what is forgotten is made again
        filled = page.load(fill, None, [gallery, *editor, label], **QUIET)
        for event in (sample, complete):
            if event is not None:
                filled.then(**event)
    return page


def _describe(pipeline: TwoStagePipeline, title: str) -> str:
    size, classes = pipeline.tokenizer.signal.size, pipeline.conditions.num_classes
    return (
        f"`{title}`: images of {'×'.join(map(str, size))} pixels, {describe_layout(pipeline.layout)}, "
        f"{f'{classes} classes' if classes else 'no classes'}"
    )


def _add_pictures_to_pick(examples: Examples) -> tuple[gr.Gallery, gr.UploadButton]:
    gr.Markdown(f"## Image → codes → image\nPick one of the {examples.source}, or upload a picture.")
    gallery = gr.Gallery(
        columns=COLUMNS, height="auto", allow_preview=False, interactive=False, show_label=False, buttons=[],
        format="png", elem_classes="pixels", elem_id="examples", object_fit="contain",
    )  # fmt: skip
    return gallery, gr.UploadButton("Upload a picture", file_types=["image"], size="sm")


def _add_picture(name: str, caption: str | None = None) -> gr.Image:
    """Add a picture, and above it what it shows: gradio's own label would cover a corner."""
    if caption:
        gr.Markdown(caption, elem_classes="caption")
    return gr.Image(
        label=caption or name, show_label=False, interactive=False, buttons=[], format="png", elem_classes="pixels",
        elem_id=name,
    )  # fmt: skip


def _add_editor(actions: Actions) -> Editor:
    encoded, codes = gr.State(), gr.State()
    with gr.Row():
        with gr.Column(min_width=NARROW):
            image = _add_picture("input", "Input")
        with gr.Column(min_width=NARROW):
            reconstruction = _add_picture("reconstruction", "Reconstruction")
        with gr.Column(min_width=NARROW):
            picture = _add_picture("grid", "Codes: click one")
        with gr.Column(min_width=NARROW):
            edited = _add_picture("edited", "After your edits")
    with gr.Row():
        choices = [(f"{number}: {grid}", number) for number, grid in enumerate(actions.layout)]
        grid = gr.Dropdown(
            choices, value=0, label="Grid", info="coarse to fine", visible=len(choices) > 1, min_width=2 * NARROW
        )
        row = gr.Number(label="Row", precision=0, min_width=NARROW)
        column = gr.Number(label="Column", precision=0, min_width=NARROW)
        code = gr.Slider(
            0, actions.layout[0].num_embeddings - 1, step=1, label="Code there",
            info="change it, and see the image follow", scale=2, buttons=[],
        )  # fmt: skip
        undo = gr.Button("Undo all edits", min_width=NARROW)

    def click(shown: tuple, number: int, event: gr.SelectData) -> tuple:
        return actions.click(shown, number, *event.index)

    latest = {**QUIET, "trigger_mode": "always_last"}  # a slider is faster than a decoder
    grid.input(told(actions.choose), [codes, grid], [row, column, code, picture], **QUIET)
    picture.select(told(click), [codes, grid], [row, column, code, picture], **QUIET)
    for number in (row, column):
        number.input(told(actions.point), [codes, grid, row, column], [code, picture], **latest)
    code.input(told(actions.edit), [codes, grid, row, column, code], [codes, picture, edited], **latest)
    undo.click(told(actions.undo), [encoded, grid, row, column], [codes, code, picture, edited], **QUIET)
    return Editor(encoded, codes, image, reconstruction, grid, row, column, code, picture, edited)


def _few(actions: Actions, number: int) -> int:
    return number if sum(grid.num_sites for grid in actions.layout) <= LARGE else 4


def _add_sampling(actions: Actions) -> tuple[list, dict]:
    """Add the controls that completion shares, and return them with the event that draws samples."""
    choices = actions.label_choices()
    with gr.Column(elem_classes="section"):
        gr.Markdown("## New images\nDrawn code by code, by the prior.")
        with gr.Row():
            labels = gr.Dropdown(
                choices, multiselect=True, label="Labels, taken in turn (none chosen: all classes)", scale=2,
                visible=bool(choices), min_width=2 * NARROW,
            )  # fmt: skip
            number = gr.Slider(1, 100, _few(actions, 2 * COLUMNS), step=1, label="Number", **CONTROL)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=NARROW)
        controls = [*_add_controls(actions), seed]
        event = _add_drawing(actions.sample, "Sample", "samples", [labels, number, *controls])
    return controls, event


def _add_controls(actions: Actions) -> list:
    """Add the controls that mean something to the priors, in the order of `Actions.controls`."""
    most = max(grid.num_embeddings for grid in actions.layout)
    ranges = {
        "temperature": (0, 2, 1, 0.05, "Temperature"),
        "top_k": (0, most, 0, 1, "Top-k (0: all)"),
        "top_p": (0.01, 1, 1, 0.01, "Top-p"),
        "guidance_scale": (0, 10, 1, 0.1, "Guidance scale"),
        "num_inference_steps": (0, 100, 0, 1, "Steps (0: the prior's own)"),
    }
    sliders = []
    with gr.Row():
        for name in actions.controls:
            low, high, value, step, label = ranges[name]
            sliders.append(gr.Slider(low, high, value, step=step, label=label, **CONTROL))
    return sliders


def _add_completion(actions: Actions, editor: Editor, controls: list) -> tuple[gr.Dropdown, dict | None]:
    """Add completions, and return their label and the event that draws them: None where no codes can be kept."""
    rows, choices = actions.layout[0].shape[0], actions.label_choices()
    with gr.Column(elem_classes="section", visible=actions.can_complete()):
        gr.Markdown("## Completions\nThe upper rows of the codes above are kept, edits too, and the rest is drawn.")
        with gr.Row():
            keep = gr.Slider(
                1, max(2, rows - 1), max(1, rows // 2), step=1, label="Rows of codes to keep", scale=2,
                min_width=2 * NARROW,
            )  # fmt: skip
            number = gr.Slider(1, 100, _few(actions, COLUMNS), step=1, label="Number", **CONTROL)
            label = gr.Dropdown(
                choices, value=choices[-1] if choices else None, label="Label", visible=bool(choices),
                min_width=NARROW,
            )  # fmt: skip
        event = _add_drawing(
            actions.complete, "Complete", "completions", [editor.codes, keep, number, label, *controls]
        )
    return label, event if actions.can_complete() else None


def _add_drawing(act: Callable, words: str, name: str, inputs: list) -> dict[str, Any]:
    """Add a button, the sheet that it draws and how far that is; return its event, which the page repeats."""
    button = gr.Button(words, variant="primary")
    picture = _add_picture(name)
    progress = gr.Markdown(elem_classes="progress")
    event = {"fn": told(act), "inputs": inputs, "outputs": [picture, progress], **QUIET}
    button.click(**event)
    return event

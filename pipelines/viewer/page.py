"""The viewer's page: what is where on it, and what calls what in `page_parts.py`."""

from typing import NamedTuple

import gradio as gr

from codegrid.pipelines.generation.pipeline import TwoStagePipeline

from .examples import Examples
from .page_parts import COLUMNS, Actions, to_pixels, told, told_of_each

LARGE = 256  # codes of a grid: of larger ones only a few are drawn when the page is opened
HOUR = 3600  # seconds after which gradio forgets pictures that it has shown; at the end it forgets all
NARROW = 150  # pixels below which a picture moves into the next row: two stand side by side on a telephone

CONTROL = {"min_width": NARROW, "elem_classes": "control"}


class Editor(NamedTuple):
    """The parts of the upper section that others read, in the order of what `Actions.show` gives."""

    encoded: gr.State
    codes: gr.State
    image: gr.Image
    reconstruction: gr.Image
    row: gr.Number
    column: gr.Number
    code: gr.Slider
    grid: gr.Image
    edited: gr.Image


def build_page(pipeline: TwoStagePipeline, examples: Examples, title: str) -> gr.Blocks:
    """The page, filled when it is opened: the first example, its codes, samples and completions."""
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

        gallery.select(told(pick), None, [*editor, label], show_progress="hidden", api_visibility="private")
        upload.upload(told(actions.upload), upload, list(editor), show_progress="hidden", api_visibility="private")
        filled = page.load(  # not before: what is forgotten is made again
            lambda: ([to_pixels(image[None]) for image in examples.images], *actions.pick(0)),
            None, [gallery, *editor, label], show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        filled.then(**sample)
        if complete:
            filled.then(**complete)
    return page


def _describe(pipeline: TwoStagePipeline, title: str) -> str:
    tokenizer, prior = pipeline.tokenizer, pipeline.prior
    (height, width), (rows, columns) = tokenizer.image_size, tokenizer.grid_shape
    classes = f"{prior.num_classes} classes" if prior.num_classes else "no classes"
    return (
        f"`{title}`: images of {height}×{width} pixels, {rows}×{columns} codes, "
        f"a codebook of {tokenizer.num_embeddings}, {classes}"
    )


def _add_pictures_to_pick(examples: Examples) -> tuple[gr.Gallery, gr.UploadButton]:
    gr.Markdown(f"## Image → codes → image\nPick one of the {examples.source}, or upload a picture.")
    gallery = gr.Gallery(
        columns=COLUMNS, height="auto", allow_preview=False, interactive=False, show_label=False, buttons=[],
        format="png", elem_classes="pixels", elem_id="examples", object_fit="contain",
    )  # fmt: skip
    return gallery, gr.UploadButton("Upload a picture", file_types=["image"], size="sm")


def _add_picture(name: str, caption: str | None = None) -> gr.Image:
    """A picture, and above it what it shows: gradio's own label would cover a corner."""
    if caption:
        gr.Markdown(caption, elem_classes="caption")
    return gr.Image(
        label=caption or name, show_label=False, interactive=False, buttons=[], format="png", elem_classes="pixels",
        elem_id=name,
    )  # fmt: skip


def _add_editor(actions: Actions) -> Editor:
    height, width = actions.grid_shape
    last = actions.pipeline.tokenizer.num_embeddings - 1
    encoded, codes = gr.State(), gr.State()
    with gr.Row():
        with gr.Column(min_width=NARROW):
            image = _add_picture("input", "Input")
        with gr.Column(min_width=NARROW):
            reconstruction = _add_picture("reconstruction", "Reconstruction")
        with gr.Column(min_width=NARROW):
            grid = _add_picture("grid", "Codes: click one")
        with gr.Column(min_width=NARROW):
            edited = _add_picture("edited", "After your edits")
    with gr.Row():
        row = gr.Number(label="Row", info=f"0 to {height - 1}, from the top", precision=0, min_width=NARROW)
        column = gr.Number(label="Column", info=f"0 to {width - 1}", precision=0, min_width=NARROW)
        code = gr.Slider(
            0, last, step=1, label="Code there", info="change it, and see the image follow", scale=2, buttons=[]
        )
        undo = gr.Button("Undo all edits", min_width=NARROW)
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    latest = {**quiet, "trigger_mode": "always_last"}  # a slider is faster than a decoder
    grid.select(told(actions.click), codes, [row, column, code, grid], **quiet)
    for number in (row, column):
        number.input(told(actions.point), [codes, row, column], [code, grid], **latest)
    code.input(told(actions.edit), [codes, row, column, code], [codes, grid, edited], **latest)
    undo.click(told(actions.undo), [encoded, row, column], [codes, code, grid, edited], **quiet)
    return Editor(encoded, codes, image, reconstruction, row, column, code, grid, edited)


def _few(actions: Actions, number: int) -> int:
    height, width = actions.grid_shape
    return number if height * width <= LARGE else 4


def _add_sampling(actions: Actions) -> tuple[list, dict]:
    """The controls that completion shares, and the event that draws samples."""
    choices = actions.label_choices()
    with gr.Column(elem_classes="section"):
        gr.Markdown("## New images\nDrawn row by row, from the top, by the prior.")
        with gr.Row():
            labels = gr.Dropdown(
                choices, multiselect=True, label="Labels, taken in turn (none chosen: all classes)", scale=2,
                visible=bool(choices), min_width=2 * NARROW,
            )  # fmt: skip
            number = gr.Slider(1, 100, _few(actions, 2 * COLUMNS), step=1, label="Number", **CONTROL)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=NARROW)
        controls = [*_add_controls(actions), seed]
        button = gr.Button("Sample", variant="primary")
        picture = _add_picture("samples")
        progress = gr.Markdown(elem_classes="progress")
    event = {
        "fn": told_of_each(actions.sample), "inputs": [labels, number, *controls], "outputs": [picture, progress],
        "show_progress": "hidden", "api_visibility": "private",
    }  # fmt: skip
    button.click(**event)
    return controls, event


def _add_controls(actions: Actions) -> list:
    """Temperature, top-k, top-p and the guidance scale, in the order in which `page_parts` reads them."""
    prior = actions.pipeline.prior
    guided = bool(prior.num_classes and prior.label_dropout)
    with gr.Row():
        temperature = gr.Slider(0, 2, 1, step=0.05, label="Temperature", **CONTROL)
        top_k = gr.Slider(0, prior.num_embeddings, 0, step=1, label="Top-k (0: all)", **CONTROL)
        top_p = gr.Slider(0.01, 1, 1, step=0.01, label="Top-p", **CONTROL)
        guidance = gr.Slider(
            0, 10, 1, step=0.1, label="Guidance scale" if guided else "Guidance (not learnt)", interactive=guided,
            **CONTROL,
        )  # fmt: skip
    return [temperature, top_k, top_p, guidance]


def _add_completion(actions: Actions, editor: Editor, controls: list) -> tuple[gr.Dropdown, dict | None]:
    """The label that completions are given, and the event that draws them; None where grids have a single row."""
    rows, choices = actions.grid_shape[0], actions.label_choices()
    with gr.Column(elem_classes="section", visible=rows > 1):
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
        button = gr.Button("Complete", variant="primary")
        picture = _add_picture("completions")
        progress = gr.Markdown(elem_classes="progress")
    event = {
        "fn": told_of_each(actions.complete), "inputs": [editor.codes, keep, number, label, *controls],
        "outputs": [picture, progress], "show_progress": "hidden", "api_visibility": "private",
    }  # fmt: skip
    button.click(**event)
    return label, event if rows > 1 else None

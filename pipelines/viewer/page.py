"""The viewer's page: its layout, and the answer that each part calls."""

import gradio as gr

from codegrid.codes import describe_layout
from codegrid.file_names import printable
from codegrid.model_card import escape
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.generation.starts import Starts
from codegrid.protocols import Tokenizer

from .actions import Encoded
from .answers import Answers
from .examples import Examples
from .sections import NARROW, QUIET, Drawing, add_completion, add_download, add_gallery, add_sampling, add_videos
from .videos import Videos
from .wording import CONTROLS, told

HOUR = 3600  # seconds after which gradio deletes pictures that it has shown; at the end it deletes all


def build_page(
    tokenizer: Tokenizer,
    pipeline: TwoStagePipeline | None,
    examples: Examples,
    title: str,
    starts: Starts | None = None,
) -> gr.Blocks:
    """Build the page. When it is opened, it fills with the first example, its codes, samples and completions.

    If there are `starts`, they can be continued as videos.
    """
    answers, title = Answers(tokenizer, pipeline, examples), printable(title)  # a folder's name may not be UTF-8
    label, drawings = None, []
    with gr.Blocks(title=f"Codegrid: {title}", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        gr.Markdown(f"# Codegrid\n{_describe(answers, title)}")
        with gr.Column(elem_classes="section"):
            gallery, upload = _add_pictures_to_pick(answers)
            editor, code, undo = _add_editor(answers)
        if pipeline is not None:
            with gr.Column(elem_classes="section"):
                controls, sampling = add_sampling(answers)
            drawings.append(sampling)
        if pipeline is not None and starts is not None:
            with gr.Column(elem_classes="section"):
                drawings.append(add_videos(Videos(answers, pipeline, starts), controls))
        if (rows := answers.rows_to_keep()) or answers.fills_any():
            with gr.Column(elem_classes="section"):
                keep, label, completion = add_completion(answers, rows, editor[0], controls)
            drawings.append(completion)

        def pick(event: gr.SelectData) -> tuple:
            return answers.pick(event.index)[: len(chosen)]

        def fill() -> tuple:
            return answers.medium.thumbnails(examples.images), *answers.pick(0)[: len(chosen)]

        chosen = editor if label is None else [*editor, label]
        gallery.select(told(pick), None, chosen, **QUIET)
        upload.upload(told(answers.upload), upload, editor, **QUIET)
        # only when it is opened: pictures that were deleted are made again
        filled = page.load(fill, None, [gallery, *chosen], **QUIET)
        running = [_let_draw(answers, drawing, filled) for drawing in drawings]
        if label is not None:
            # completions of codes that have changed are stopped and removed
            for change in (gallery.select, upload.upload, code.input, undo.click, *(part.input for part in keep)):
                change(told(answers.forget), completion.drawn, completion.outputs, cancels=running[-1], **QUIET)
    return page


def _describe(answers: Answers, title: str) -> str:
    classes = len(answers.classes)
    ways = ["asked in words"] * answers.reads_texts + [f"{classes} classes"] * (classes > 0)
    asked = ", ".join(ways) or "no classes"
    knows = "no prior, so no samples" if answers.pipeline is None else asked
    return f"{escape(title)}: {answers.medium.describe()}, {describe_layout(answers.layout)}, {knows}"


def _add_pictures_to_pick(answers: Answers) -> tuple[gr.Gallery, gr.UploadButton]:
    examples, medium = answers.examples, answers.medium
    source, upload = escape(printable(examples.source)), medium.upload
    gr.Markdown(f"## {medium.heading}\nPick one of the {source}, or {upload[0].lower()}{upload[1:]}.")
    gallery = add_gallery(None, len(examples.images), "Pictures to pick from", "examples")
    return gallery, gr.UploadButton(upload, file_types=medium.file_types, size="sm")


def _add_editor(answers: Answers) -> tuple[list, gr.Slider, gr.Button]:
    """Add the upper section.

    Returns its parts in the order of the values of `Answers.show`, then the parts that make and undo edits.
    """
    encoded, noun = gr.State(), answers.medium.noun
    with gr.Row(elem_classes=f"pictures of-{noun}"):
        image, reconstruction = gr.HTML(elem_id="input"), gr.HTML(elem_id="reconstruction")
        edited = gr.HTML(elem_id="edited")
        with gr.Column(elem_classes="wide"):
            gr.Markdown("Codes: click one", elem_classes="caption")  # gradio's own would cover a corner
            picture = gr.Image(
                label="Codes", show_label=False, interactive=False, buttons=[], format="png", elem_id="grid"
            )
    words = gr.Markdown(elem_id="words")
    with gr.Row():
        speaker = gr.Dropdown(
            answers.speaker_choices(), label=CONTROLS["speaker"], info="another one converts the voice",
            visible=bool(answers.speakers), min_width=NARROW,
        )  # fmt: skip
        choices = [(f"{number}: {grid}", number) for number, grid in enumerate(answers.layout)]
        grid = gr.Dropdown(
            choices, value=answers.first, label=CONTROLS["grid"], info="coarse to fine", visible=len(choices) > 1,
            min_width=2 * NARROW,
        )  # fmt: skip
        row = gr.Number(label=CONTROLS["row"], precision=0, min_width=NARROW)
        column = gr.Number(label=CONTROLS["column"], precision=0, min_width=NARROW)
        code = gr.Slider(
            0, answers.layout[answers.first].num_embeddings - 1, step=1, label=CONTROLS["code"],
            info=f"change it, and the {noun} follows", scale=2, buttons=[],
        )  # fmt: skip
    with gr.Row():
        undo = gr.Button("Undo all edits", min_width=NARROW)
        add_download(f"Download edited {noun}", answers.download_image, encoded, answers.medium.file)
        add_download("Download edited codes", answers.download_edited, encoded, "codes.npz")

    def click(shown: Encoded, number: int, event: gr.SelectData) -> tuple:
        return answers.click(shown, number, *event.index)

    latest = {**QUIET, "trigger_mode": "always_last"}  # a slider is faster than a decoder
    grid.input(told(answers.choose), [encoded, grid], [row, column, code, picture], **QUIET)
    picture.select(told(click), [encoded, grid], [row, column, code, picture], **QUIET)
    for number in (row, column):
        number.input(told(answers.point), [encoded, grid, row, column], [code, picture], **latest)
    site = [encoded, grid, row, column]
    code.input(told(answers.edit), [*site, code], [encoded, picture, edited, words], **latest)
    speaker.input(told(answers.speak), [encoded, speaker], [encoded, edited, words], **QUIET)
    undo.click(told(answers.undo), site, [encoded, code, picture, edited, words], **QUIET)
    parts = [encoded, image, reconstruction, grid, row, column, code, picture, edited, words]
    return parts + [speaker] * bool(answers.speakers), code, undo


def _let_draw(answers: Answers, drawing: Drawing, filled: gr.events.Dependency) -> list:
    """Draw when the button is clicked and when the page is filled, until stopped; return both events."""
    running = [drawing.button.click(**drawing.event), filled.then(**drawing.event)]
    drawing.stop.click(answers.stop, drawing.progress, drawing.progress, cancels=running, **QUIET)
    return running

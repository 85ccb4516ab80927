"""Sections of the page that need a prior: new images, and completions."""

from typing import Any

import gradio as gr

from .answers import COLUMNS, Answers
from .parts import CONTROL, NARROW, QUIET, Drawing, add_drawing
from .wording import CONTROLS, told

LARGE = 256  # codes of a sample: of larger ones only a few are drawn when the page is opened
RANGES: dict[str, tuple[float, float, float, float, str]] = {  # lowest, highest, at first, step, what 0 means
    "temperature": (0, 2, 1, 0.05, ""),
    "top_k": (0, 0, 0, 1, " (0: all)"),
    "top_p": (0.01, 1, 1, 0.01, ""),
    "guidance_scale": (0, 10, 1, 0.1, ""),
    "num_inference_steps": (0, 100, 0, 1, " (0: the prior's own)"),
}


def add_sampling(answers: Answers) -> tuple[list, Drawing]:
    """Add the controls that completion shares, and return them with what draws samples."""
    choices = answers.label_choices()
    gr.Markdown("## New images\nDrawn code by code, by the prior.")
    with gr.Row():
        labels = gr.Dropdown(
            choices, multiselect=True, label=f"{CONTROLS['labels']}, taken in turn (none chosen: all classes)",
            scale=2, visible=bool(choices), min_width=2 * NARROW,
        )  # fmt: skip
        number = gr.Slider(1, 100, _few(answers, 2 * COLUMNS), step=1, label=CONTROLS["num_samples"], **CONTROL)
        seed = gr.Number(0, label=CONTROLS["seed"], precision=0, minimum=0, min_width=NARROW)
        at_random = gr.Button("Random seed", min_width=NARROW)
    at_random.click(answers.new_seed, None, seed, **QUIET)
    controls = [*_add_controls(answers), seed]
    return controls, add_drawing(answers, answers.sample, "Sample", "samples", [labels, number, *controls])


def add_completion(answers: Answers, encoded: gr.State, controls: list) -> tuple[gr.Slider, gr.Dropdown, Drawing]:
    """Add completions: how many rows they keep, their label, and what draws them."""
    rows, choices = answers.layout[0].shape[0], answers.label_choices()
    gr.Markdown("## Completions\nThe upper rows of the codes above are kept, edits too, and the rest is drawn.")
    with gr.Row():
        keep = gr.Slider(
            1, max(2, rows - 1), max(1, rows // 2), step=1, label=CONTROLS["keep_rows"], scale=2, min_width=2 * NARROW
        )
        number = gr.Slider(1, 100, _few(answers, COLUMNS), step=1, label=CONTROLS["num_completions"], **CONTROL)
        label = gr.Dropdown(
            choices, value=choices[-1][1] if choices else None, label="Label", visible=bool(choices), min_width=NARROW
        )
    inputs = [encoded, keep, number, label, *controls]
    return keep, label, add_drawing(answers, answers.complete, "Complete", "completions", inputs)


def forget_when_changed(answers: Answers, completion: Drawing, running: list, changes: list[Any]) -> None:
    """Stop and take away completions where, by one of these events, they are no longer of what stands above."""
    for changed in changes:
        changed(told(answers.forget), completion.drawn, completion.outputs, cancels=running, **QUIET)


def _few(answers: Answers, number: int) -> int:
    return number if sum(grid.num_sites for grid in answers.layout) <= LARGE else 4


def _add_controls(answers: Answers) -> list:
    """Add the controls that mean something to the priors, in the order of `Answers.controls`."""
    most = max(grid.num_embeddings for grid in answers.layout)
    sliders = []
    with gr.Row():
        for name in answers.controls:
            low, high, value, step, zero = RANGES[name]
            label = CONTROLS[name] + zero
            sliders.append(gr.Slider(low, high or most, value, step=step, label=label, **CONTROL))
    return sliders

"""Wording of the viewer's page: the names of its controls, and errors that use them."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import gradio as gr

from codegrid.errors import InputError

# what the page calls the parameters that errors name
CONTROLS = {
    "labels": "Labels",
    "prompts": "Prompts",
    "of_class": "Class",
    "num_samples": "Number",
    "num_completions": "Number",
    "keep_rows": "Rows of codes to keep",
    "top": "Hidden from row",
    "left": "Hidden from column",
    "height": "Rows hidden",
    "width": "Columns hidden",
    "box": "Hidden box",
    "seed": "Seed",
    "temperature": "Temperature",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "guidance_scale": "Guidance scale",
    "guidance_schedule": "Guidance schedule",
    "num_inference_steps": "Steps",
    "choice_temperature": "Choice temperature",
    "unmask_order": "Order",
    "mask_schedule": "Mask schedule",
    "solver": "Solver",
    "grid": "Grid",
    "row": "Row",
    "column": "Column",
    "code": "Code there",
    "speaker": "Speaker",
    "start": "Start",
    "frames": "New frames",
    "actions": "Actions",
}


def told(act: Callable) -> Callable:
    """Decorate a function or a generator so that an `InputError` is shown on the page, in the page's words."""

    @wraps(act)
    def tell_of_each(*args: Any) -> Iterator:
        with _telling():
            yield from act(*args)

    return tell_of_each if inspect.isgeneratorfunction(act) else _telling()(act)


@contextmanager
def _telling() -> Iterator[None]:
    """Show an `InputError` on the page, with parameters named as its controls: `top_k` → Top-k."""
    try:
        yield
    except InputError as error:
        words = re.sub(r"`(\w+)`", lambda name: CONTROLS.get(name[1], name[1]), str(error))
        raise gr.Error(words.replace("`", ""), print_exception=False) from error

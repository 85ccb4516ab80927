"""Words of the viewer's page: what its controls are called, and errors that speak of them."""

import inspect
import re
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr

from codegrid.errors import InputError

# what the page calls the parameters that errors name
CONTROLS = {
    "labels": "Labels",
    "num_samples": "Number",
    "num_completions": "Number",
    "keep_rows": "Rows of codes to keep",
    "seed": "Seed",
    "temperature": "Temperature",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "guidance_scale": "Guidance scale",
    "num_inference_steps": "Steps",
    "grid": "Grid",
    "row": "Row",
    "column": "Column",
    "code": "Code there",
}


def in_words_of_the_page(error: InputError) -> str:
    """Return an error's message with parameters named as the page's controls: `top_k` → Top-k."""
    return re.sub(r"`(\w+)`", lambda name: CONTROLS.get(name[1], name[1]), str(error)).replace("`", "")


def told(act: Callable) -> Callable:
    """Decorate a function or a generator: an `InputError` is shown on the page."""

    @wraps(act)
    def tell(*args: Any) -> Any:
        try:
            return act(*args)
        except InputError as error:
            raise gr.Error(in_words_of_the_page(error), print_exception=False) from error

    @wraps(act)
    def tell_of_each(*args: Any) -> Iterator:
        try:
            yield from act(*args)
        except InputError as error:
            raise gr.Error(in_words_of_the_page(error), print_exception=False) from error

    return tell_of_each if inspect.isgeneratorfunction(act) else tell

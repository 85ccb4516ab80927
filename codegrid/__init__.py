"""Codegrid: two-stage discrete generative models. image → codes → prior → codes → image.

The names below are imported when they are first used, so that `import codegrid` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.codes import CodeDataset
    from .errors import InputError
    from .pipelines.generation.pipeline import TwoStagePipeline
    from .stage1_vqvae.tokenizer import VQVAE
    from .stage2_prior.pixelcnn.network import GatedPixelCNN

_HOMES = {
    "VQVAE": "stage1_vqvae.tokenizer",
    "GatedPixelCNN": "stage2_prior.pixelcnn.network",
    "CodeDataset": "data.codes",
    "TwoStagePipeline": "pipelines.generation.pipeline",
    "InputError": "errors",
}

__all__ = ["VQVAE", "CodeDataset", "GatedPixelCNN", "InputError", "TwoStagePipeline"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

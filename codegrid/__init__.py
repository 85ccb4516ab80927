"""Codegrid: two-stage discrete generative models. image → codes → prior → codes → image.

The names below are imported when they are first used, so that `import codegrid` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .codes import HIDDEN, NO_LABEL, Condition, Grid, Known, Layout, Progress, Signal
    from .data.codes import CodeDataset
    from .data.conversion import as_images
    from .errors import InputError
    from .noise import Noise
    from .pipelines.generation.pipeline import TwoStagePipeline
    from .registry import load, register
    from .sampling_config import SamplingConfig
    from .stage1_vqvae.tokenizer import VQVAE
    from .stage2_prior.pixelcnn.network import GatedPixelCNN
    from .stage2_prior.sampling.draw import sample

_HOMES = {
    "CodeDataset": "data.codes",
    "Condition": "codes",
    "GatedPixelCNN": "stage2_prior.pixelcnn.network",
    "Grid": "codes",
    "HIDDEN": "codes",
    "InputError": "errors",
    "Known": "codes",
    "Layout": "codes",
    "NO_LABEL": "codes",
    "Noise": "noise",
    "Progress": "codes",
    "SamplingConfig": "sampling_config",
    "Signal": "codes",
    "TwoStagePipeline": "pipelines.generation.pipeline",
    "VQVAE": "stage1_vqvae.tokenizer",
    "as_images": "data.conversion",
    "load": "registry",
    "register": "registry",
    "sample": "stage2_prior.sampling.draw",
}

__all__ = [
    "HIDDEN",
    "NO_LABEL",
    "VQVAE",
    "CodeDataset",
    "Condition",
    "GatedPixelCNN",
    "Grid",
    "InputError",
    "Known",
    "Layout",
    "Noise",
    "Progress",
    "SamplingConfig",
    "Signal",
    "TwoStagePipeline",
    "as_images",
    "load",
    "register",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

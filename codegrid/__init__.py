"""Codegrid: two-stage discrete generative models. image → codes → prior → codes → image.

The names below are imported when they are first used, so that `import codegrid` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .codes import HIDDEN, NO_LABEL, Condition, Grid, Known, Layout, Losses, Moment, Progress, Signal
    from .data.codes import CodeDataset
    from .data.conversion import as_images
    from .data.sources import load_images
    from .errors import InputError
    from .noise import Noise
    from .pipelines.compression.compressing import compress
    from .pipelines.compression.decompressing import decompress
    from .pipelines.drawing.sheets import as_sheet
    from .pipelines.exporting.run import export_model
    from .pipelines.generation.pipeline import TwoStagePipeline
    from .pipelines.generation.voices import convert_voice
    from .pipelines.importing.run import import_model
    from .pipelines.train_prior import TrainPrior
    from .pipelines.train_tokenizer import TrainTokenizer
    from .pipelines.training.prior import train_prior
    from .pipelines.training.tokenizer import train_tokenizer
    from .protocols import Quantized
    from .registry import load, register
    from .sampling_config import SamplingConfig
    from .stage1_vqvae.code_tokenizer import CodeTokenizer
    from .stage1_vqvae.hierarchical import HierarchicalVQVAE
    from .stage1_vqvae.stacked import StackedTokenizer
    from .stage1_vqvae.tokenizer import VQVAE
    from .stage1_vqvae.waves import WaveVQVAE
    from .stage2_prior.diffusion.prior import DiffusionPrior
    from .stage2_prior.maskgit.network import MaskGIT
    from .stage2_prior.next_scale.prior import NextScalePrior
    from .stage2_prior.pixelcnn.network import GatedPixelCNN
    from .stage2_prior.pixelsnail.network import PixelSNAIL
    from .stage2_prior.sampling.draw import sample
    from .stage2_prior.sequential_prior import SequentialPrior
    from .stage2_prior.transformer.gpt import GPT
    from .stage2_prior.transformer.network import CausalTransformer
    from .stage2_prior.wavenet.network import WaveNet

__all__ = [
    "GPT", "HIDDEN", "NO_LABEL", "VQVAE", "CausalTransformer", "CodeDataset", "CodeTokenizer", "Condition",
    "DiffusionPrior", "GatedPixelCNN", "Grid", "HierarchicalVQVAE", "InputError", "Known", "Layout", "Losses",
    "MaskGIT", "Moment", "NextScalePrior", "Noise", "PixelSNAIL", "Progress", "Quantized", "SamplingConfig",
    "SequentialPrior", "Signal", "StackedTokenizer", "TrainPrior", "TrainTokenizer", "TwoStagePipeline", "WaveNet",
    "WaveVQVAE", "as_images", "as_sheet", "compress", "convert_voice", "decompress", "export_model", "import_model",
    "load", "load_images", "register", "sample", "train_prior", "train_tokenizer",
]  # fmt: skip

_HOMES = {
    "codes": "HIDDEN NO_LABEL Condition Grid Known Layout Losses Moment Progress Signal",
    "data.codes": "CodeDataset",
    "data.conversion": "as_images",
    "data.sources": "load_images",
    "errors": "InputError",
    "noise": "Noise",
    "pipelines.compression.compressing": "compress",
    "pipelines.compression.decompressing": "decompress",
    "pipelines.drawing.sheets": "as_sheet",
    "pipelines.exporting.run": "export_model",
    "pipelines.generation.pipeline": "TwoStagePipeline",
    "pipelines.generation.voices": "convert_voice",
    "pipelines.importing.run": "import_model",
    "pipelines.train_prior": "TrainPrior",
    "pipelines.train_tokenizer": "TrainTokenizer",
    "pipelines.training.prior": "train_prior",
    "pipelines.training.tokenizer": "train_tokenizer",
    "protocols": "Quantized",
    "registry": "load register",
    "sampling_config": "SamplingConfig",
    "stage1_vqvae.code_tokenizer": "CodeTokenizer",
    "stage1_vqvae.hierarchical": "HierarchicalVQVAE",
    "stage1_vqvae.stacked": "StackedTokenizer",
    "stage1_vqvae.tokenizer": "VQVAE",
    "stage1_vqvae.waves": "WaveVQVAE",
    "stage2_prior.diffusion.prior": "DiffusionPrior",
    "stage2_prior.maskgit.network": "MaskGIT",
    "stage2_prior.next_scale.prior": "NextScalePrior",
    "stage2_prior.pixelcnn.network": "GatedPixelCNN",
    "stage2_prior.pixelsnail.network": "PixelSNAIL",
    "stage2_prior.sampling.draw": "sample",
    "stage2_prior.sequential_prior": "SequentialPrior",
    "stage2_prior.transformer.gpt": "GPT",
    "stage2_prior.transformer.network": "CausalTransformer",
    "stage2_prior.wavenet.network": "WaveNet",
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names.split():
            globals()[name] = value = getattr(import_module(f"{__name__}.{module}"), name)  # cached
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

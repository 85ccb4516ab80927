"""Stage 2: priors over codes, and the samplers that draw new codes from them.

The names below are imported when they are first used: options and backends can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conditions import Conditions
    from .diffusion.prior import DiffusionPrior
    from .maskgit.network import MaskGIT
    from .next_scale.prior import NextScalePrior
    from .pixelcnn.network import GatedPixelCNN
    from .pixelcnn.video import VideoPrior
    from .pixelsnail.network import PixelSNAIL
    from .sampling.draw import draw, sample
    from .sampling.rollout import roll_out
    from .transformer.gpt import GPT
    from .transformer.network import CausalTransformer
    from .wavenet.network import WaveNet

_HOMES = {
    "CausalTransformer": "transformer.network",
    "Conditions": "conditions",
    "DiffusionPrior": "diffusion.prior",
    "GPT": "transformer.gpt",
    "GatedPixelCNN": "pixelcnn.network",
    "MaskGIT": "maskgit.network",
    "NextScalePrior": "next_scale.prior",
    "PixelSNAIL": "pixelsnail.network",
    "VideoPrior": "pixelcnn.video",
    "WaveNet": "wavenet.network",
    "draw": "sampling.draw",
    "roll_out": "sampling.rollout",
    "sample": "sampling.draw",
}

__all__ = [
    "GPT", "CausalTransformer", "Conditions", "DiffusionPrior", "GatedPixelCNN", "MaskGIT", "NextScalePrior",
    "PixelSNAIL", "VideoPrior", "WaveNet", "draw", "roll_out", "sample",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

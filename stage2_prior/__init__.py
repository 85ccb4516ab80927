"""Stage 2: the prior over codes, and the samplers that draw new ones from it."""

from .choice import Controls
from .contract import NO_LABEL
from .pixelcnn import GatedPixelCNN
from .sampling import sample_cached, sample_plain

__all__ = ["NO_LABEL", "Controls", "GatedPixelCNN", "sample_cached", "sample_plain"]

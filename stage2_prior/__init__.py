"""Stage 2: the prior over codes, and the samplers that draw new ones from it."""

from .pixelcnn import GatedPixelCNN
from .sampling import sample_cached, sample_plain

__all__ = ["GatedPixelCNN", "sample_cached", "sample_plain"]

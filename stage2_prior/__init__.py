"""Stage 2: the prior over codes, and the samplers that draw new ones from it."""

from codegrid.codes import NO_LABEL
from codegrid.stage2_prior.pixelcnn.network import GatedPixelCNN
from codegrid.stage2_prior.sampling.logits import Controls
from codegrid.stage2_prior.sampling.sequential import sample_cached, sample_plain

__all__ = ["NO_LABEL", "Controls", "GatedPixelCNN", "sample_cached", "sample_plain"]

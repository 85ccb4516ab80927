"""How much each image and its reconstruction look alike: structural similarity, and a distance of features.

The distance is that of early features of lite0, which tell a blurred picture from a sharp one, as the error of pixels
does not. It is not LPIPS: no weights are fitted to people's judgements, so the two cannot be compared.

Shapes: b batch, c channels, H W image.
"""

from importlib.metadata import version
from typing import Any

import torch

from codegrid.data.images import to_float

from .features import Extractor
from .lite0 import Lite0
from .metrics import Metrics
from .perceptual import FeatureDistance, Perceptual
from .reconstruction import WINDOW, Reconstruction, structural_similarity

SMALLEST = 8  # pixels of a side: a site of the last layer that lite0's distance is taken of
AT_ONCE = 2**22  # pixels that lite0 sees at once: its widest layer has 24 numbers for each


class Likeness:
    """Means over all images of the similarity and, if the extractor is lite0, the distance of reconstructions."""

    def __init__(self, extractor: Extractor | None) -> None:
        self.similarities: list[torch.Tensor] = []
        self.distances: list[torch.Tensor] = []
        self.network: Perceptual | None = None
        self.of_pictures = False  # else of sound
        if extractor is not None and isinstance(extractor.network, Lite0):
            self.network = Perceptual(FeatureDistance(extractor.network).eval(), extractor.description)

    def add(self, batch: Reconstruction) -> None:
        """Add a batch, whose outputs are clipped to [-1, 1]."""
        images, output = to_float(batch.images), batch.output.clamp(-1, 1)
        self.of_pictures = images.ndim == 4
        similarity = structural_similarity(images, output)
        if similarity is not None:
            self.similarities.append(similarity.cpu())
        if self.network is not None and min(images.shape[2:]) >= SMALLEST:
            pieces = (each.split(max(1, AT_ONCE // images[0, 0].numel())) for each in (images, output))
            self.distances += [self.network(*pair).cpu().double() for pair in zip(*pieces, strict=True)]

    def add_to(self, metrics: Metrics, reference: dict[str, Any], seen: dict[str, bool]) -> None:
        """Add `ssim` and `lite0_distance` to metrics, or why they are left out.

        `reference` describes the images; `seen` says whether the network was used to train the tokenizer.
        """
        if self.similarities:
            in_detail = {"data_range": 1.0, "pixel_range": [0, 1], "torchmetrics": version("torchmetrics")}
            metrics.add({"ssim": _mean(self.similarities)}, reference=reference, **in_detail)
        elif self.of_pictures:
            metrics.left_out.append(f"no ssim: it needs images of at least {WINDOW}×{WINDOW} pixels")
        if self.distances and self.network is not None:
            described = {"extractor": self.network.description, **seen}
            metrics.add({"lite0_distance": _mean(self.distances)}, reference=reference, **described)
        elif self.network is not None:
            metrics.left_out.append(f"no lite0_distance: the images are smaller than {SMALLEST}×{SMALLEST} pixels")


def _mean(parts: list[torch.Tensor]) -> float:
    return float(torch.cat(parts).mean())

"""The structural similarity of images and their reconstructions (Wang et al. 2004), through torchmetrics.

Shapes: b batch, c channels, H W image.
"""

import torch

SMALLEST_SIDE = 11  # pixels of the Gaussian window of σ 1.5
DATA_RANGE = 2.0  # the width of [-1, 1]


def structural_similarity(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor | None:
    """SSIM of each pair of images (b, c, H, W) in [-1, 1] → (b,) float64 in [-1, 1]; None where the window is larger.

    11×11 Gaussian window of σ 1.5, K_1 0.01, K_2 0.03, data range 2, the mean over sites and channels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes seconds: not for all scripts

    if min(images.shape[2:]) < SMALLEST_SIDE:
        return None
    # by image: the mean over a batch would give the images of a short last one more weight
    return structural_similarity_index_measure(others, images, data_range=DATA_RANGE, reduction="none").double()

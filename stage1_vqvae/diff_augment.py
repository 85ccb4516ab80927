"""DiffAugment (Zhao et al. 2020): what a discriminator of few images sees is changed at random, real or not.

Real and reconstructed images must be changed alike, by the same random numbers, in the steps of both players: changed
on one side only, the changes would tell the sides apart. Gradients flow through all of it.

Shapes: b batch, c channels, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.noise import Noise

MOVED = 1 / 8  # of a side, at most
CUT = 1 / 2  # of each side
BLANK = 0.0  # beside an image that was moved, and where it was cut: grey, in [-1, 1]


def diff_augment(images: Tensor, policy: Sequence[str], noise: Noise) -> Tensor:
    """Return images (b, c, H, W) in about [-1, 1], changed by the operations of a policy, with gradient.

    Args:
        images: in [-1, 1].
        policy: names in `OPERATIONS`; the order does not matter.
        noise: of these images; the same noise changes other images in the same way.
    """
    for name, operation in OPERATIONS.items():
        if name in policy:
            images = operation(images, noise.of("diff augment", name))
    return images


def _change_colours(images: Tensor, noise: Noise) -> Tensor:
    """Change brightness by up to ±0.5, saturation by up to twice, and contrast by a half."""
    brightness, saturation, contrast = (
        noise.uniforms(name, 1, 1, 1).to(images) for name in ("brightness", "saturation", "contrast")
    )
    images = images + brightness - 0.5
    grey = images.mean(dim=1, keepdim=True)
    images = grey + 2 * saturation * (images - grey)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (contrast + 0.5) * (images - mean)


def _translate(images: Tensor, noise: Noise) -> Tensor:
    """Move each image by up to an eighth of its sides, and leave grey where it was."""
    (rows, columns), shares = images.shape[2:], noise.uniforms("moves", 2).to(images.device)
    chosen = []
    for axis, side in enumerate((rows, columns)):
        most = round(MOVED * side)
        moves = (shares[:, axis, None] * (2 * most + 1)).long() - most
        # 0 is the first line of grey around the image, side + 1 the last one
        chosen.append((torch.arange(1, side + 1, device=images.device) + moves).clamp(0, side + 1))
    padded = F.pad(images, (1, 1, 1, 1), value=BLANK)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[each, :, chosen[0][:, :, None], chosen[1][:, None, :]].permute(0, 3, 1, 2)


def _cut_out(images: Tensor, noise: Noise) -> Tensor:
    """Cut a window of half of each side out of each image; at the edges, a part of it lies outside."""
    shares = noise.uniforms("window", 2).to(images.device)
    inside = []
    for axis, side in enumerate(images.shape[2:]):
        length = round(CUT * side)
        centres = (shares[:, axis, None] * (side + 1 - length % 2)).long()
        places = torch.arange(side, device=images.device) - centres + length // 2
        inside.append((places >= 0) & (places < length))
    window = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    return images.masked_fill(window, BLANK)


OPERATIONS: dict[str, Callable[[Tensor, Noise], Tensor]] = {
    "color": _change_colours, "translation": _translate, "cutout": _cut_out,
}  # fmt: skip

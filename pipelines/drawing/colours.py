"""A colour for each code, and pictures of code grids.

Shapes: K num_embeddings, D embedding_dim, n grids, h w code grid.
"""

from typing import NamedTuple

import numpy as np
import torch

COLOURS = "viridis"  # even steps look even, in grey and to the colour-blind too


class Principal(NamedTuple):
    """A codebook along the directions in which it varies most."""

    coordinates: torch.Tensor  # (K, 2) float64
    shares: torch.Tensor  # (2,) of the variance, 0 ... 1


def principal_components(codebook: torch.Tensor) -> Principal:
    """The first two principal components of a codebook (K, D); the second is 0 where D is 1."""
    centred = codebook.detach().double().cpu()
    centred = centred - centred.mean(0)
    # of the (D, D) covariance: the entries may be many
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    variances, directions = variances.flip(0)[:2].clamp_min(0), directions.flip(1)[:, :2]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    coordinates = centred @ (directions * largest.sign())  # a direction has no sign: without one, colours could flip
    shares = variances / centred.square().sum().clamp_min(1e-300)
    missing = 2 - coordinates.shape[1]
    return Principal(torch.nn.functional.pad(coordinates, (0, missing)), torch.nn.functional.pad(shares, (0, missing)))


def colours_by_nearness(codebook: torch.Tensor) -> torch.Tensor:
    """A colour (K, 3), 0 ... 1, for each entry of a codebook (K, D): entries near on its first component look alike."""
    import matplotlib

    ranks = principal_components(codebook).coordinates[:, 0].argsort().argsort()  # by rank: one far entry takes no room
    places = ranks.numpy() / max(1, len(ranks) - 1)
    return torch.from_numpy(matplotlib.colormaps[COLOURS](places)[:, :3])


def colours_by_number(num_embeddings: int) -> torch.Tensor:
    """A colour (K, 3), 0 ... 1, for each code, unlike those of the next numbers: for codes without vectors."""
    import matplotlib.colors

    numbers = np.arange(num_embeddings)
    hues = numbers * 0.618034 % 1  # the golden ratio: the next hue falls into the widest gap
    strengths = np.stack([hues, 0.45 + 0.45 * (numbers % 3) / 2, 0.95 - 0.4 * (numbers % 5) / 4], axis=1)
    return torch.from_numpy(matplotlib.colors.hsv_to_rgb(strengths))


def paint(codes: torch.Tensor, colours: torch.Tensor, scale: int = 1) -> torch.Tensor:
    """Code grids (n, h, w) in colours (K, 3) → images (n, 3, h·scale, w·scale), 0 ... 1."""
    painted = colours[codes.cpu()].permute(0, 3, 1, 2).float()
    return painted.repeat_interleave(scale, 2).repeat_interleave(scale, 3)

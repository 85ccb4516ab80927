"""Measuring what each of several grids of codes carries: how much worse images become when it is that of another image.

Usage does not tell: a grid whose codes are all in use may still mean nothing to the decoder.

Shapes: n images, c channels, *size an image's sides, *shape the sites of each grid.
"""

import math
from typing import NamedTuple

import torch

from codegrid.codes import Codes
from codegrid.data.images import evenly_spaced, to_float
from codegrid.data.loading import in_order
from codegrid.data.sources import Images
from codegrid.devices import widest
from codegrid.noise import Noise, torch_rng
from codegrid.protocols import Tokenizer

MAX_IMAGES = 256  # the rise is then known to about 5 %
MAX_VALUES = 2**26  # of all these images: large ones are fewer


class Carried(NamedTuple):
    """Errors of reconstructions: MSE over the variance of the training data."""

    error: float  # from their own codes
    rises: tuple[float, ...]  # of that error, for each grid when it alone is another image's; of one grid none
    num_images: int  # n


@torch.no_grad()
def measure_carried(
    tokenizer: Tokenizer, images: Images, batch_size: int = 64, seed: int = 0, max_images: int = MAX_IMAGES
) -> Carried | None:
    """Return what each grid carries; None if there is only one grid, or only one image.

    Up to `max_images` take part, spread over all, in an order that follows from the seed alone; each is given the codes
    of the one before it. The tokenizer is in eval mode.
    """
    at_most = max(2, min(max_images, MAX_VALUES // math.prod(tokenizer.signal.shape)))
    count = min(len(images), at_most)
    if len(tokenizer.layout) == 1 or count < 2:
        return None
    order = torch.randperm(count, generator=torch_rng(seed, "swap"))  # neighbours in a data set may be of one class
    x = to_float(images.batch(evenly_spaced(len(images), count)).images[order])
    pieces = [tokenizer.encode(piece.to(tokenizer.device)) for piece in x.split(batch_size)]
    codes = tuple(torch.cat(grid) for grid in zip(*pieces, strict=True))
    error = _error(tokenizer, x, codes, batch_size)
    swapped = (swap_grid(codes, number) for number in range(len(codes)))
    return Carried(error, tuple(_error(tokenizer, x, each, batch_size) - error for each in swapped), count)


def swap_grid(codes: Codes, number: int) -> Codes:
    """Return codes (n, *shape) with each image's grid of this number replaced by that of the image before it."""
    return (*codes[:number], codes[number].roll(1, 0), *codes[number + 1 :])


def _error(tokenizer: Tokenizer, x: torch.Tensor, codes: Codes, batch_size: int) -> float:
    """Return the error of the images (n, c, *size) in [-1, 1] that codes (n, *shape) make."""
    errors = []
    for rows in in_order(len(x), batch_size):
        here = slice(rows.start, rows.stop)
        noise = Noise(0, rows.start, len(rows), tokenizer.device)
        output = tokenizer.decode(tuple(grid[here] for grid in codes), tuple(x.shape[2:]), noise=noise).clamp(-1, 1)
        squares = (output - x[here].to(output.device)).square()
        errors.append(squares.to(widest(squares.device)).flatten(1).mean(1).cpu().double())
    return float(torch.cat(errors).mean()) / tokenizer.data_variance

"""Several views of an image: the pictures that are encoded, and the one that each epoch of training sees.

A view is the code of a changed picture. Codes are never changed themselves: those of a mirrored image are not the
mirrored codes.

Shapes: n images, v views, b batch, c channels, H W image.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from codegrid.noise import rng

from .augmentation import move
from .code_files import AnyCodes
from .codes import CodeBatch
from .loading import Indices, item_numbers
from .splits import Subset


@dataclass(frozen=True)
class Views:
    """Pictures of an image to encode: view 0 is the image itself, each other one is moved and perhaps mirrored.

    The views of an image are different moves. Which ones follows from (seed, number of the image, view) alone.

    Args:
        number: v. At most (2·shift + 1)², or twice as many with `flip`.
        shift: move by up to this many pixels, vertically and horizontally; the edges are repeated.
        flip: mirror from left to right, at random.
        seed: of the moves.
    """

    number: int = 1
    shift: int = 0
    flip: bool = False
    seed: int = 0

    def of(self, images: torch.Tensor, first: int) -> Iterator[torch.Tensor]:
        """Yield each view (b, c, H, W) of consecutive images of this shape; the first one is number `first`."""
        yield images
        if self.number == 1:
            return
        span = 2 * self.shift + 1
        chosen = torch.tensor([self._choose(first + image, span) for image in range(len(images))])  # (b, v-1)
        for moved in chosen.T:
            mirrored, place = moved // span**2 == 1, moved % span**2
            moves = torch.stack((place // span, place % span))
            yield move(images, torch.where(moves > self.shift, moves - span, moves), mirrored)

    def _choose(self, image: int, span: int) -> list[int]:
        """Return the numbers (v-1) of an image's moves, no two of them equal, and none 0, which changes nothing."""
        draws, chosen = rng(self.seed, "views", image), [0]
        while len(chosen) < self.number:  # one by one: more views do not change the first ones
            moved = int(draws.integers(span**2 * (1 + self.flip)))
            if moved not in chosen:
                chosen.append(moved)
        return chosen[1:]


class EachView:
    """Codes whose every epoch has one view of each image, and v epochs in a row have each view once.

    The rows of this data set are numbered as in the code dataset: i·v + view. `order` has those of an epoch.

    Args:
        codes: n images with v views of each.
        until: the images that are read from several views, counted over the epochs; after them each epoch has view 0 of
            each image, the image itself. None: no such change.
    """

    def __init__(self, codes: AnyCodes | Subset, until: int | None = None) -> None:
        self.codes, self.until = codes, until

    def __len__(self) -> int:
        return len(self.codes)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return the rows (n,) of an epoch; the view of an image follows from (seed, epoch, image)."""
        count, views = len(self.codes), self.codes.views
        images = rng(seed, "epoch", epoch).permutation(count)
        chosen = (rng(seed, "views").integers(views, size=count)[images] + epoch) % views
        if self.until is not None:
            chosen[max(0, self.until - epoch * count) :] = 0
        return images * views + chosen

    def batch(self, indices: Indices) -> CodeBatch:
        """Return some rows, in the given order."""
        return self.codes.batch(*np.divmod(item_numbers(indices), self.codes.views))


def each_view(codes: AnyCodes | Subset, until: int | None = None) -> AnyCodes | Subset | EachView:
    """Return codes as training reads them: one view of each image in an epoch, and view 0 after `until` images."""
    return codes if codes.views == 1 else EachView(codes, until)

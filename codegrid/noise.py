"""Random numbers, all drawn from a seed and a purpose that is spelled out.

Shapes: b samples.
"""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import torch

from .devices import Device, widest

Purpose = str | int


def _key(seed: int, purpose: tuple[Purpose, ...]) -> int:
    """Return 256 bits that follow from a seed and a purpose, the same on every machine."""
    content = json.dumps([int(seed), *purpose]).encode()
    return int.from_bytes(hashlib.sha256(content).digest(), "little")


def rng(seed: int, *purpose: Purpose) -> np.random.Generator:
    """Return the generator for one purpose: `rng(seed, "epoch", 3)`, `rng(seed, "revival", "grid", 1, "step", 40)`.

    Different purposes give independent streams; equal ones give the same numbers each time.
    """
    return np.random.Generator(np.random.PCG64(_key(seed, purpose)))


def torch_rng(seed: int, *purpose: Purpose) -> torch.Generator:
    """Return a torch generator, on the CPU, for one purpose, like the NumPy generator of `rng`."""
    return torch.Generator().manual_seed(_key(seed, purpose) % 2**63)


class Noise:
    """Random numbers for consecutive samples: those of sample i follow from (seed, first_index + i), in any batch.

    Args:
        seed: 0 or more.
        first_index: number of the first sample.
        count: b, how many samples.
        device: where the tensors go. The numbers are drawn on the CPU, and are the same on every device.
        purpose: distinguishes this noise from other noise of the same seed; see `of`.
        sites: (b, n) bool: each of these sites of a sample is a sample of its own; see `of_sites`.

    Examples:
        >>> alone, among_others = Noise(0, first_index=17), Noise(0, count=20)
        >>> bool(alone.uniforms("codes", 49)[0].equal(among_others.uniforms("codes", 49)[17]))
        True
    """

    def __init__(
        self,
        seed: int,
        first_index: int = 0,
        count: int = 1,
        device: Device = "cpu",
        purpose: tuple[Purpose, ...] = (),
        sites: torch.Tensor | None = None,
    ) -> None:
        self.seed, self.first_index, self.count = seed, first_index, count
        self.device, self.purpose, self.sites = device, purpose, sites

    def uniforms(self, name: str, *shape: int) -> torch.Tensor:
        """Return (b, *shape) in [0, 1), in the `widest` type of the device.

        The same name and shape always give the same numbers.
        """
        return self._draw(name, *shape).to(self.device, widest(self.device))

    def _draw(self, name: str, *shape: int) -> torch.Tensor:
        if self.sites is not None:  # site by site, so that the numbers do not depend on n
            whole = Noise(self.seed, self.first_index, self.count, purpose=self.purpose)
            drawn = [whole.of("site", site)._draw(name, *shape) for site in range(self.sites.shape[1])]
            return torch.stack(drawn, 1)[self.sites.cpu()]
        bits = np.random.PCG64(_key(self.seed, (*self.purpose, "sample", name, *shape)))
        # each number takes one step of the generator, so those of earlier samples can be skipped
        bits.advance(self.first_index * math.prod(shape))
        return torch.from_numpy(np.random.Generator(bits).random((self.count, *shape)))

    def normals(self, name: str, *shape: int) -> torch.Tensor:
        """Return (b, *shape) from the standard normal distribution, with the same guarantees as `uniforms`."""
        numbers = torch.special.ndtri(self._draw(f"normal {name}", *shape).clamp_min(2.0**-54))
        return numbers.to(self.device, widest(self.device))

    def of(self, *purpose: Purpose) -> Noise:
        """Return independent noise for the same samples and a part of the work: `of("grid", 1)`, `of("frame", 7)`."""
        return Noise(self.seed, self.first_index, self.count, self.device, (*self.purpose, *purpose), self.sites)

    def of_sites(self, sites: torch.Tensor) -> Noise:
        """Return noise in which each of the sites that `sites` (b, n) bool marks is a sample of its own."""
        return Noise(self.seed, self.first_index, self.count, self.device, self.purpose, sites)

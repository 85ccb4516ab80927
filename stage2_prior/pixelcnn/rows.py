"""Sampling row by row: on a GPU, all operations of a row, about 80 per site, are one CUDA graph.

A graph is recorded once and repeats the same operations on the same tensors. So everything that a row depends on must
be in tensors that stay in place: the uniforms, known codes and masks of its sites, the next row of the map of coarser
grids, and the steps' memory of the sites above. On other devices, a row is a plain call of the same function.

Shapes: b batch, h w code grid, s channels of the coarser grids' map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from codegrid.codes import Condition, Known, Layout, Progress
from codegrid.devices import widest
from codegrid.errors import reason_of
from codegrid.noise import Noise
from codegrid.progress import say
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior.sampling.checks import check_request, spread_known, start_grids, with_hidden
from codegrid.stage2_prior.sampling.logits import sample_from_logits
from codegrid.stage2_prior.sampling.sequential import count_known, sample_sequential, site_by_site

from .cache import PixelCNNSteps
from .kept import of_use_everywhere
from .layers import Conditioning

if TYPE_CHECKING:
    from .network import GatedPixelCNN, PixelCNNNetwork


class RowSampler:
    """Draws the codes of b samples row by row, from the top, in tensors of its own."""

    def __init__(
        self, network: PixelCNNNetwork, layout: Layout, count: int, config: SamplingConfig, given: Conditioning
    ) -> None:
        self.config = config
        self.steps = PixelCNNSteps(network, layout, count * (1 + config.guided), given)
        self.device = device = self.steps.embeddings[0].device
        of_row = count, self.steps.width
        # for each grid: (b, w)
        self.uniforms = [torch.zeros(of_row, dtype=widest(device), device=device) for _ in layout]
        self.known = [torch.zeros(of_row, dtype=torch.bool, device=device) for _ in layout]
        self.codes = [torch.zeros(of_row, dtype=torch.int64, device=device) for _ in layout]  # known ones, then all
        self.map_rows = self.steps.map_rows  # (h, w, b, s); the graph reads the next row's at 1, as it begins at row 0
        self.next_map = None if self.map_rows is None else self.map_rows.new_zeros(2, *self.map_rows.shape[1:])
        self.steps.map_rows = self.next_map
        self._draw = record(self._take_steps, device) if device.type == "cuda" else self._take_steps

    def start(self, given: Conditioning, leading: Sequence[Tensor]) -> None:
        """Begin new samples, whose leading rows (b, rows, w) of each grid are known."""
        self.steps.start(given)
        step_by_step = torch.stack([grid.flatten(1) for grid in leading], -1).flatten(1)
        self.steps.append(step_by_step.repeat(1 + self.config.guided, 1))
        self.map_rows, self.steps.map_rows = self.steps.map_rows, self.next_map

    def draw_row(self, row: int, uniforms: Sequence[Tensor], codes: Sequence[Tensor], known: Sequence[Tensor]) -> None:
        """Draw the codes of a row, the next one, into `codes` (b, w) of each grid, except for those that are known."""
        if self.map_rows is not None and self.next_map is not None and row + 1 < len(self.map_rows):
            self.next_map[1].copy_(self.map_rows[row + 1])
        for own, given in zip((*self.uniforms, *self.codes, *self.known), (*uniforms, *codes, *known), strict=True):
            own.copy_(given)
        self._draw()
        for own, given in zip(self.codes, codes, strict=True):
            given.copy_(own)

    def _take_steps(self) -> None:
        self.steps.row = 0  # the graph must not depend on the row's number
        for grid, (column,) in self.steps.order[: self.steps.width * len(self.codes)]:
            place = slice(column, column + 1)
            new = sample_from_logits(self.steps.next_logits(), self.uniforms[grid][:, place], self.config)
            new = torch.where(self.known[grid][:, place], self.codes[grid][:, place], new)
            self.codes[grid][:, place] = new
            self.steps.append(torch.cat([new, new]) if self.config.guided else new)


def record(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return a CUDA graph of `work`, which must not wait for the GPU; it also runs once.

    Raises `RuntimeError` if something in it cannot be recorded.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    with torch.cuda.device(device):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()  # on the first call, libraries start and choose their kernels, which cannot be recorded
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):  # other threads may use the GPU
            work()
    return graph.replay


@torch.no_grad()
def sample_by_rows(
    prior: GatedPixelCNN,
    given: Condition,
    noise: Noise,
    config: SamplingConfig,
    known: Known | None = None,
    watch: bool = False,
) -> Iterator[Progress]:
    """Draw `noise.count` samples as `sample_sequential` does, which takes over if no graph can be recorded.

    The network keeps the tensors and the graph for the next batch of this size and these settings.

    Raises `InputError` if the prior does not support what is given.
    """
    check_request(prior, given, config)
    kept, key = prior.network.kept, (noise.count, config)
    weights = kept.check(prior.network.parameters())
    shown = with_hidden(given) if config.guided else given
    conditioning = prior.conditioning(shown, noise.count * (1 + config.guided))
    sampler = kept.take(key)
    if sampler is None:
        sampler = _make_sampler(prior, key, conditioning)
        if isinstance(sampler, str):
            say(f"sampling without a CUDA graph, which cannot be recorded: {sampler}")
    try:
        if isinstance(sampler, RowSampler):
            yield from _draw_rows(prior.layout, sampler, conditioning, noise, known, watch)
        else:
            yield from sample_sequential(prior, given, noise, config, known, "torch", watch)
    finally:
        kept.put(key, sampler, weights)


def _make_sampler(prior: GatedPixelCNN, key: tuple[int, SamplingConfig], given: Conditioning) -> RowSampler | str:
    """Return a new sampler, or the reason why there is none."""
    try:
        return of_use_everywhere(lambda: RowSampler(prior.network, prior.layout, *key, given))
    except RuntimeError as error:
        return reason_of(error)


def _draw_rows(
    layout: Layout, sampler: RowSampler, given: Conditioning, noise: Noise, known: Known | None, watch: bool
) -> Iterator[Progress]:
    device, height = sampler.device, layout[0].shape[0]
    known = spread_known(known, layout, noise.count, device)
    codes, drawn = start_grids(layout, noise.count, device, known)
    order = site_by_site(layout)
    first = 0 if known is None else count_known(known, order)[0] * height // len(order)  # first row not known in all
    sampler.start(given, [grid[:, :first] for grid in codes])
    shapes = [grid.shape for grid in layout]
    uniforms = [noise.uniforms(f"grid {i}", math.prod(shape)).view(-1, *shape) for i, shape in enumerate(shapes)]
    uniforms = [grid.to(device) for grid in uniforms]
    for row in range(first, height):
        sampler.draw_row(row, *([grid[:, row] for grid in grids] for grids in (uniforms, codes, drawn)))
        for mark in drawn:
            mark[:, row] = True
        if watch and row + 1 < height:
            yield Progress(codes, drawn, (row + 1 - first) / (height - first))
    yield Progress(codes, drawn, 1.0)

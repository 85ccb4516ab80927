"""Steps of the gated PixelCNN in the native library: one code's logits at a time, or many codes drawn at once.

Shapes: b batch, n samples, h w code grid, K num_embeddings of a grid, m codes of several steps, s channels of the
coarser grids' map.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Event
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codegrid.budget import check_memory
from codegrid.codes import Layout
from codegrid.errors import InputError
from codegrid.native.build import library_or_reason
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior.sampling.sequential import Drawing, site_by_site

from . import structures
from .packing import pack

if TYPE_CHECKING:
    from codegrid.stage2_prior.pixelcnn.network import PixelCNNNetwork

# as the library reads them, whatever torch's defaults are
FLOATS: Any = {"dtype": torch.float32, "device": "cpu"}
INTEGERS: Any = {"dtype": torch.int64, "device": "cpu"}


class NativeSteps:
    """Steps of a prior with float32 weights on the CPU.

    Everything is computed from the codes, on demand: `append` only stores them.

    Args:
        network: the prior's network.
        layout: its grids.
        batch_size: b.
        conditions: rows (b,) of the layers' conditions, or None.
        site_map: (b, s, h, w) from the coarser grids, or None.
        library: a library that was compiled with other flags.
    """

    def __init__(
        self,
        network: PixelCNNNetwork,
        layout: Layout,
        batch_size: int,
        conditions: Tensor | None = None,
        site_map: Tensor | None = None,
        library: ctypes.CDLL | None = None,
    ) -> None:
        self.order = site_by_site(layout)
        found = library or library_or_reason(structures.PIXELCNN)
        if isinstance(found, str):
            raise InputError(found)
        self.layout, self.batch_size, self.library = layout, batch_size, found
        self.packed = pack(network, self.library)
        self.conditions = None if conditions is None else conditions.contiguous()
        self.site_map = None if site_map is None else site_map.permute(2, 3, 0, 1).contiguous()  # (h, w, b, s)
        self.codes = [torch.zeros(batch_size, grid.num_sites, **INTEGERS) for grid in layout]
        self.position = self._computed = 0
        self._logits: Tensor | None = None
        self._drawing: Drawing | None = None  # the one in progress; None while logits are computed
        self._task, self._held = structures.Task(), list[Any]()  # and what it points to
        self._blocks: list[structures.Block] = []

    def next_logits(self) -> Tensor:
        """Return the logits (b, 1, K) of the next code, in raster order, all codes of a site before the next site."""
        if self._logits is None:
            if self._drawing is not None or not self._blocks:
                self._start(None)
            grid, _ = self.order[self.position]
            logits = torch.empty(self.batch_size, self.layout[grid].num_embeddings, **FLOATS)
            self._task.logits = logits.data_ptr()
            self._run(self.position + 1, self.position)
            self._logits = logits.unsqueeze(1)
        return self._logits

    def append(self, codes: Tensor) -> None:
        """Append the codes (b, 1) whose logits were returned last, or known ones (b, m) of several steps."""
        for code in codes.unbind(1):
            grid, (site,) = self.order[self.position]
            low, high = code.aminmax()
            if low < 0 or high >= self.layout[grid].num_embeddings:
                raise IndexError(f"codes {int(low)} to {int(high)}, but K is {self.layout[grid].num_embeddings}")
            self.codes[grid][:, site] = code
            self.position += 1
        self._logits = None

    def draw(self, drawing: Drawing, begin: int, end: int) -> None:
        """Draw the codes of the steps from `begin` to `end` into `drawing`, which holds those before.

        With guidance, the second half of the batch holds the samples of the first half without their labels. Each
        thread draws its own block of samples.
        """
        if self._drawing is not drawing:
            self._start(drawing)
        self._run(end, begin)
        self.position = end

    def _start(self, drawing: Drawing | None) -> None:
        """Prepare to compute on the codes of a drawing or, for logits, on our own."""
        self._drawing, self._computed, self._held = drawing, 0, []
        config = SamplingConfig() if drawing is None else drawing.config
        samples, count = self.batch_size // (1 + config.guided), 1 if drawing is None else torch.get_num_threads()
        height, width = self.layout[0].shape
        self._task = structures.Task(
            height, width, samples, self.batch_size, self._point(self.codes if drawing is None else drawing.codes),
            self._point(drawing and drawing.kept), self._point(drawing and drawing.uniforms),
            *(None if one is None else one.data_ptr() for one in (self.conditions, self.site_map)), None,
            structures.Controls(
                config.temperature, config.top_p, config.guidance_scale, min(config.top_k, 2**62), config.guided
            ),
        )  # fmt: skip
        self._blocks = []
        for numbers in torch.arange(samples, **INTEGERS).tensor_split(min(count, samples)):
            rows = torch.cat([numbers, numbers + samples]) if config.guided else numbers.contiguous()
            block = structures.Block(len(rows), len(numbers), rows.data_ptr(), None)
            floats = self.library.pixelcnn_floats(self.packed.structure, self._task, block)
            check_memory(
                f"the features of {samples:,} samples", 4 * floats * count, "draw fewer at once (`batch_size`)"
            )
            memory = torch.zeros(floats, **FLOATS)
            block.memory = memory.data_ptr()
            self._held += [rows, memory]
            self._blocks.append(block)

    def _point(self, tensors: Sequence[Tensor] | None) -> ctypes.c_void_p | None:
        """Return an array of pointers to contiguous tensors, and keep both alive."""
        if tensors is None:
            return None
        array = (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
        self._held += [array, *tensors]
        return ctypes.cast(array, ctypes.c_void_p)

    def _run(self, end: int, first: int) -> None:
        """Compute the steps up to `end`, each block in a thread of its own. Codes of steps before `first` are known."""
        of_row = self.layout[0].shape[1] * len(self.layout)
        # one call per row, so that an interrupt is noticed
        bounds = [self._computed, *range(self._computed // of_row * of_row + of_row, end, of_row), end]
        stopped = Event()

        def run(block: structures.Block) -> None:
            for begin, until in pairwise(bounds):
                if stopped.is_set():
                    return
                self.library.pixelcnn_run(self.packed.structure, self._task, block, begin, until, first)

        if len(self._blocks) == 1:
            run(self._blocks[0])
        else:
            with ThreadPoolExecutor(len(self._blocks)) as pool:
                try:
                    list(pool.map(run, self._blocks))
                finally:
                    stopped.set()
        self._computed = end

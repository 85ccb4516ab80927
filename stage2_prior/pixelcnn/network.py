"""The gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328) over grids of codes.

Shapes: b batch, h w code grid, c channels, K num_embeddings of a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from codegrid.codes import Codes, Condition, Known, Layout, Losses, Moment, Progress
from codegrid.drawn_priors import Steps
from codegrid.errors import InputError
from codegrid.native.build import Library, library_or_reason
from codegrid.noise import Noise
from codegrid.protocols import NO_CONDITION
from codegrid.same_bits import SameBits
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior.coarser import CoarserNetwork, Conditioning, site_map_of
from codegrid.stage2_prior.labelled import GivenPrior
from codegrid.stage2_prior.likelihood import mean_nats
from codegrid.stage2_prior.native.steps import NativeSteps
from codegrid.stage2_prior.native.structures import PIXELCNN, SAME_BITS
from codegrid.stage2_prior.options import PixelCNNOptions, VideoOptions
from codegrid.stage2_prior.sampling.backends import choose_backend
from codegrid.stage2_prior.sampling.sequential import PlainSteps, sample_sequential, site_by_site
from codegrid.stage2_prior.site_codes import check_one_shape, embed, make_heads, read_heads

from .cache import PixelCNNSteps
from .folding import FoldedWeights
from .kept import Kept, of_use_everywhere
from .layers import GatedLayer
from .rows import sample_by_rows


class PixelCNNNetwork(nn.Module):
    """The network from codes to logits, without any randomness: the part to use `torch.compile` on.

    If there are coarser grids, a network of its own turns them into a map, which each layer adds to its gates. Another
    network in its place, `of_given`, makes the map (b, condition_channels, h, w) of something else.
    """

    def __init__(
        self,
        layout: Layout,
        options: PixelCNNOptions | VideoOptions,
        num_conditions: int,
        given_layout: Layout = (),
        given_features: int = 0,
        of_given: nn.Module | None = None,
    ) -> None:
        super().__init__()
        channels = options.channels
        if given_layout:
            assert isinstance(options, PixelCNNOptions)  # only those can be given coarser grids
            of_given = CoarserNetwork(given_layout, layout[0].shape, options)
        self.coarser = of_given
        map_channels = options.condition_channels if of_given is not None or given_features else 0
        self.of_features = nn.Conv2d(given_features, map_channels, 1) if given_features else None
        self.embeddings = nn.ModuleList(nn.Embedding(grid.num_embeddings, channels) for grid in layout)
        self.layers = nn.ModuleList(
            GatedLayer(channels, options.kernel if i else options.first_kernel, i == 0, num_conditions, map_channels)
            for i in range(options.num_layers)
        )
        self.heads = make_heads(layout, channels)
        # embeds a site's codes for the heads of its later grids
        self.within_site = nn.ModuleList(nn.Embedding(grid.num_embeddings, channels) for grid in layout[:-1])
        self.kept = Kept()

    def tables(self) -> list[nn.Embedding]:
        """Return the embedding of each grid."""
        return cast("list[nn.Embedding]", list(self.embeddings))

    def gated_layers(self) -> list[GatedLayer]:
        """Return the layers, in order."""
        return cast("list[GatedLayer]", list(self.layers))

    def folded(self) -> FoldedWeights:
        """Return the folded weights, which the cached steps use."""
        weights = self.kept.check(self.parameters())
        folded = self.kept.take("folded") or of_use_everywhere(lambda: FoldedWeights(self))
        self.kept.put("folded", folded, weights)
        return cast(FoldedWeights, folded)

    def train(self, mode: bool = True) -> Self:
        """Switch to train or eval mode; train mode drops the samplers' caches, as training needs the memory."""
        if mode:
            self.kept.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.kept.clear()  # nothing must stay behind on the old device
        return super()._apply(fn, recurse)

    def conditioning(self, conditions: Tensor | None, coarser: Codes, features: Tensor | None) -> Conditioning:
        """Return what the gates add for condition rows (b,), coarser codes (b, *shape) and features (b, D, *sites).

        Features of a single site make a map of a single site, which holds for all of them.
        """
        return Conditioning(conditions, site_map_of(self.coarser, coarser, self.of_features, features))

    def forward(
        self,
        codes: Codes,
        conditions: Tensor | None,
        shown: Codes | None = None,
        coarser: Codes = (),
        features: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Turn codes (b, h, w) into logits (b, K, h, w).

        Args:
            codes: of each grid.
            conditions: rows (b,) of the layers' tables.
            shown: masks (b, h, w) of the codes that are not hidden.
            coarser: codes (b, *shape) of the coarser grids.
            features: (b, D, *sites).
        """
        given = self.conditioning(conditions, coarser, features)
        vertical = horizontal = embed(self.embeddings, codes, shown)
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, given)
        return read_heads(self.heads, self.within_site, horizontal, codes, shown)


class GatedPixelCNN(GivenPrior):
    """A gated PixelCNN: p(codes) = Π p(z_i | z_<i, label, coarser grids) in raster order, site after site.

    Args:
        layout: grids of the same shape (h, w), one for each code of a site; as `Grid`s, or as their JSON values.
        grids: their indices in the tokenizer's layout; by default 0, 1, ...
        num_classes: labels are 0 ... num_classes-1; 0 makes an unconditional prior.
        given_grids: numbers of the coarser grids that it is conditioned on.
        given_layout: these grids (h, w), of any sizes, coarse to fine.
        given_features: channels D of the features (b, D, h, w) or (b, D, 1, 1) that it is conditioned on; 0: none.
        options: the fields of `PixelCNNOptions`.

    Raises `InputError` if an option is unknown or out of range, or the prior cannot learn such grids.

    Examples:
        >>> from codegrid import Grid
        >>> prior = GatedPixelCNN((Grid((7, 7), 512),), num_classes=10, num_layers=2)
        >>> codes, labels = torch.zeros(8, 7, 7, dtype=torch.int64), torch.arange(8)
        >>> (logits,) = prior.logits((codes,), Condition(labels))
        >>> logits.shape
        torch.Size([8, 512, 7, 7])
    """

    options: ClassVar[type] = PixelCNNOptions
    called: ClassVar[str] = "the pixelcnn prior"
    has_graphs: ClassVar[bool] = True
    can_compile: ClassVar[bool] = True
    network_class = PixelCNNNetwork
    network: PixelCNNNetwork

    def check_layout(self) -> None:
        """Raise `InputError` if this prior cannot learn its layout."""
        check_one_shape(self.layout, "pixelcnn")

    def forward(self, codes: Codes, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Losses:
        """Return the loss, the mean nats per code, for codes (b, h, w); a moment hides some codes and labels."""
        conditions, coarser, features = self.condition_inputs(given, len(codes[0]), moment)
        shown = None
        if moment is not None and self.chosen.dropout:
            shown = tuple(torch.rand(grid.shape, device=grid.device) >= self.chosen.dropout for grid in codes)
        return mean_nats(self.network(codes, conditions, shown, coarser, features), codes, given.lengths)

    def logits(self, codes: Codes, given: Condition = NO_CONDITION) -> tuple[Tensor, ...]:
        """Return logits (b, K, h, w) of each grid for codes (b, h, w), each from the codes drawn before it alone."""
        conditions, coarser, features = self.condition_inputs(given, len(codes[0]))
        return self.network(codes, conditions, None, coarser, features)

    @torch.no_grad()
    def conditioning(self, given: Condition, batch_size: int) -> Conditioning:
        """Return what the gates add under a condition, computed once for all sites."""
        return super().conditioning(given, batch_size).at_all_sites(self.layout[0].shape)

    def why_not_native(self) -> str:
        """Return the reason why the native library cannot draw from this prior here; empty if it can."""
        device = self.device.type
        return f"its weights are on {device}" if device != "cpu" else self._why_not_with(PIXELCNN)

    def why_not_same(self) -> str:
        """Return the reason why there are no `same_steps` on the CPU of this machine; empty if there are."""
        return self._why_not_with(PIXELCNN) or self._why_not_with(SAME_BITS)

    def _why_not_with(self, library: Library) -> str:
        for weight in self.network.parameters():
            if weight.dtype != torch.float32:
                return f"its weights are {str(weight.dtype).removeprefix('torch.')}"
        found = library_or_reason(library)
        return found if isinstance(found, str) else ""

    def same_steps(self, given: Condition, batch_size: int) -> Steps:
        """Return native steps, on the CPU, whose logits have the same bits on every processor and in any batch."""
        with SameBits():
            conditioning = self.conditioning(given, batch_size)
        library = library_or_reason(SAME_BITS)
        if isinstance(library, str):
            raise InputError(library)
        site_map = conditioning.site_map
        return NativeSteps(self.network, self.layout, batch_size, conditioning.rows, site_map, library)

    def steps(self, given: Condition, batch_size: int, backend: str = "auto") -> Steps:
        """Return the steps that compute logits code by code: cached, or by `logits` with the backend `plain`."""
        backend = choose_backend(backend, self)
        if backend == "plain":
            return PlainSteps(self, given, batch_size, site_by_site(self.layout))
        conditioning = self.conditioning(given, batch_size)
        if backend == "native":
            return NativeSteps(self.network, self.layout, batch_size, conditioning.rows, conditioning.site_map)
        return PixelCNNSteps(self.network, self.layout, batch_size, conditioning, compiled=backend == "compiled")

    def sample(
        self,
        given: Condition,
        noise: Noise,
        config: SamplingConfig,
        known: Known | None = None,
        backend: str = "auto",
        watch: bool = False,
    ) -> Iterator[Progress]:
        """Draw `noise.count` samples code by code (see `sample_sequential`); with CUDA, a row is one graph."""
        if choose_backend(backend, self) == "graph":
            return sample_by_rows(self, given, noise, config, known, watch)
        return sample_sequential(self, given, noise, config, known, backend, watch)

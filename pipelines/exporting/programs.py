"""A tokenizer as programs without Python: torch.export, and ONNX.

Shapes: b batch, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codegrid.codes import Codes
from codegrid.errors import InputError

MOST = 2**16  # images at once
EXAMPLES = 2  # more than one: programs made for one image would only take one
NAMES = ("encoder", "decoder")


class Encode(nn.Module):
    """Images (b, c, H, W) in [-1, 1] of the trained size → codes (b, *shape) int64 of each grid."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Codes:
        """Encode."""
        latents = self.tokenizer.encode_latents(images)
        pairs = zip(self.tokenizer.levels, latents, strict=True)
        return tuple(of_grid for level, each in pairs for of_grid in level.encode(each))


class Decode(nn.Module):
    """Codes (b, *shape) int64 of each grid → images (b, c, H, W), roughly in [-1, 1]."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, *codes: Tensor) -> Tensor:
        """Decode."""
        pairs = zip(self.tokenizer.levels, self.tokenizer.by_level(codes), strict=True)
        outputs = self.tokenizer.to_outputs(tuple(level.look_up(of_level) for level, of_level in pairs))
        height, width = self.tokenizer.signal.size
        images: Tensor = self.tokenizer.reconstruction.image(outputs)[..., :height, :width]
        return images


@torch.no_grad()
def make_programs(tokenizer: Any) -> tuple[Any, Any]:
    """Return the encoder and the decoder as programs for any number of images."""
    signal = tokenizer.signal
    images = torch.zeros(EXAMPLES, signal.channels, *signal.size)
    codes = tuple(torch.zeros(EXAMPLES, *grid.shape, dtype=torch.int64) for grid in tokenizer.layout)
    any_number = {0: torch.export.Dim("batch", min=1, max=MOST)}
    sizes = ((any_number,), (tuple(any_number for _ in codes),))
    parts = zip((Encode(tokenizer), Decode(tokenizer)), ((images,), codes), sizes, strict=True)
    made = (torch.export.export(part, given, dynamic_shapes=sides) for part, given, sides in parts)
    # plain operations alone: a region without autocast, as quantizers have, could not be saved
    encoder, decoder = (program.run_decompositions({}) for program in made)
    return encoder, decoder


def write_torch(tokenizer: Any, folder: Path) -> None:
    """Write encoder.pt2 and decoder.pt2: `torch.export.load(file).module()(images)`."""
    for name, program in zip(NAMES, make_programs(tokenizer), strict=True):
        torch.export.save(program, folder / f"{name}.pt2")


def write_onnx(tokenizer: Any, folder: Path) -> None:
    """Write encoder.onnx and decoder.onnx. Raises `InputError` if the packages that this needs are missing."""
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise InputError(f'`to` onnx needs the package {missing[0]}: pip install "codegrid[onnx]"')
    for name, program in zip(NAMES, make_programs(tokenizer), strict=True):
        torch.onnx.export(program, (), folder / f"{name}.onnx", dynamo=True, external_data=False, verbose=False)

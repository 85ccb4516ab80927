"""`VQModel` of diffusers: a folder with its config, or a file of its weights alone."""

from __future__ import annotations

from typing import Any

from codegrid.codes import Sides
from codegrid.errors import InputError
from codegrid.limits import short

from .building import Source
from .checkpoint import Checkpoint
from .residual import GROUPS, make_vqgan, rename

SIZE = (32, 32)
# names of attention in older versions
RULES = (
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.proj_attn\.", ".to_out.0."),
)
# what must have this value, if the config tells it
FIXED = {"act_fn": "silu", "norm_type": "group", "_class_name": "VQModel"}


def convert(checkpoint: Checkpoint, size: Sides | None) -> Any:
    """Return the tokenizer. Raises `InputError` if the config asks for what our networks do not have."""
    config = checkpoint.config
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise InputError(f"{checkpoint.path}: its {name} is {short(config[name])}, but {value!r} is needed")
    groups, side = config.get("norm_num_groups", GROUPS), config.get("sample_size", SIZE[0])
    for name, number in (("norm_num_groups", groups), ("sample_size", side)):
        if type(number) is not int or number < 1:
            raise InputError(f"{checkpoint.path}: its {name} is {short(number)}: it must be a whole number above 0")
    tensors = rename(checkpoint.below(""), RULES)
    codes = {"quantizer.codebook": checkpoint.take("quantize.embedding.weight")}
    return make_vqgan(checkpoint, tensors, codes, size or (side, side), groups, quantizer="gradient")


SOURCE = Source(
    "VQModel of diffusers",
    ("encoder.down_blocks.0.resnets.0.norm1.weight", "quant_conv.weight", "quantize.embedding.weight"),
    SIZE,
    convert,
)

"""Pairs of taming-transformers: a VQ-GAN, and a GPT over its codes that is given a class or nothing.

A checkpoint does not tell how many heads the GPT has, nor what it is given: both are in the configuration.

Shapes: V codes that the GPT knows, n positions, d channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codegrid.codes import Sides
from codegrid.errors import InputError
from codegrid.limits import short

from . import taming
from .building import Source, count, make_model, of_shape
from .checkpoint import Checkpoint, read_model_config

TOKENIZER, LAYER = "first_stage_model.", "transformer.blocks.{}."
CONFIGS = ("../configs", "*-project.yaml")  # where training leaves the configuration, seen from the checkpoint
ALONE = "`source` taming for its tokenizer alone"
CANNOT = f"which cannot be imported: give {ALONE}"


def convert(checkpoint: Checkpoint, size: Sides | None) -> tuple[Any, Any]:
    """Return the tokenizer and the prior.

    Raises `InputError` if there is no configuration, or the GPT is given something else than a class.
    """
    if held := next((name for name in checkpoint.tensors if name.startswith("cond_stage_model.")), ""):
        words = f"it holds {held[:40]}, so its transformer is given more than a class"
        raise InputError(f"{checkpoint.path}: {words}, {CANNOT}")
    params = _params(checkpoint)
    tokenizer = taming.convert(Checkpoint(checkpoint.path, checkpoint.below(TOKENIZER)), size or _size(params))
    return tokenizer, _prior(checkpoint, params, tokenizer)


def _prior(checkpoint: Checkpoint, params: Mapping[str, Any], tokenizer: Any) -> Any:
    """Return the prior over a tokenizer's codes."""
    (grid,) = tokenizer.layout
    known, channels = of_shape(checkpoint, "transformer.tok_emb.weight", 2)
    positions = of_shape(checkpoint, "transformer.pos_emb", 3)[1]
    if known != grid.num_embeddings:
        words = f"its transformer knows {known:,} codes, but its tokenizer has {grid.num_embeddings:,}"
        raise InputError(f"{checkpoint.path}: {words}: it is another variant: give {ALONE}")
    if positions < grid.num_sites:
        words = f"images of this size have {grid.num_sites:,} codes, but its transformer learnt {positions:,} positions"
        raise InputError(f"`size`: {words}: give a smaller size")
    classes, start = _given(checkpoint, params, known)
    layers = count(checkpoint.tensors, LAYER + "ln1.weight")
    heads = _whole(checkpoint, _at(params, "transformer_config", "params"), "n_head")
    sizes = {"channels": channels, "num_layers": layers, "num_heads": heads}
    weights = _weights(checkpoint, layers, grid.num_sites)
    embedded = weights["network.embeddings.0.weight"]
    # labels and the start have rows of the table of codes, which is ours alone once we train on
    weights |= {"network.condition.weight": embedded[:classes]} if classes else {"network.start": embedded[start]}
    options = {"layout": [grid], "num_classes": classes, "label_dropout": 0.0, **sizes}
    prior = make_model(checkpoint, "prior", "gpt", weights, **options)
    prior.provenance = {"tokenizer_fingerprint": tokenizer.fingerprint()}
    return prior


def _weights(checkpoint: Checkpoint, layers: int, sites: int) -> dict[str, Tensor]:
    """Return the weights by our names, those of labels or of the start left out."""
    _check_order(checkpoint, layers)
    take = checkpoint.take
    weights = {
        "network.embeddings.0.weight": take("transformer.tok_emb.weight"),
        "network.positions.0.tables.0.weight": take("transformer.pos_emb")[0, :sites],
        "network.heads.0.1.weight": take("transformer.head.weight"),
        "network.heads.0.1.bias": torch.zeros(len(take("transformer.head.weight"))),
    }
    for part in ("weight", "bias"):
        weights[f"network.heads.0.0.{part}"] = take(f"transformer.ln_f.{part}")
        for number in range(layers):
            theirs, ours = LAYER.format(number), f"network.blocks.{number}."
            inward = [take(f"{theirs}attn.{name}.{part}") for name in ("query", "key", "value")]
            weights |= {
                f"{ours}norms.0.{part}": take(f"{theirs}ln1.{part}"),
                f"{ours}attention.inward.{part}": torch.cat(inward),
                f"{ours}attention.outward.{part}": take(f"{theirs}attn.proj.{part}"),
                f"{ours}norms.1.{part}": take(f"{theirs}ln2.{part}"),
                f"{ours}feed_forward.inward.{part}": take(f"{theirs}mlp.0.{part}"),
                f"{ours}feed_forward.outward.{part}": take(f"{theirs}mlp.2.{part}"),
            }
    return weights


def _check_order(checkpoint: Checkpoint, layers: int) -> None:
    """Raise `InputError` if a position sees later ones, or codes are not drawn in raster order."""
    masks = [checkpoint.tensors.get(LAYER.format(number) + "attn.mask") for number in range(layers)]
    if any(mask is not None and mask.triu(1).any() for mask in masks):
        raise InputError(
            f"{checkpoint.path}: codes see later codes (n_unmasked), which cannot be imported: give {ALONE}"
        )
    order = checkpoint.tensors.get("permuter.forward_shuffle_idx")
    if order is not None and not torch.equal(order, torch.arange(len(order))):
        raise InputError(f"{checkpoint.path}: its codes are not drawn row by row, {CANNOT}")


def _params(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the parameters of the model in the configuration, which is looked for where training leaves it."""
    folder, pattern = CONFIGS
    config = checkpoint.config
    if not config:
        found = sorted(Path(checkpoint.path).absolute().parent.joinpath(folder).glob(pattern))
        if not found:
            words = "it does not tell how many heads its transformer has: give its project.yaml as `model_config`"
            raise InputError(f"{checkpoint.path}: {words}, or {ALONE}")
        config = read_model_config(found[-1])
    params = _at(config, "model", "params")
    if not params:
        raise InputError(f"{checkpoint.path}: its configuration has no model.params: give another `model_config`")
    return params


def _given(checkpoint: Checkpoint, params: Mapping[str, Any], known: int) -> tuple[int, int]:
    """Return the number of classes, 0 without any, and the number of the code that stands for the start."""
    stage = params.get("cond_stage_config")
    if params.get("unconditional") is True or stage == "__is_unconditional__":
        return 0, _whole(checkpoint, {"sos_token": 0, **params}, "sos_token", 0, known - 1)
    if str(_at(params, "cond_stage_config").get("target")).endswith(".Labelator"):
        return _whole(checkpoint, _at(params, "cond_stage_config", "params"), "n_classes", 1, known), 0
    key = short(params.get("cond_stage_key", "another image"))
    words = f"its transformer is given {key}, and only one that is given a class or nothing can be imported"
    raise InputError(f"{checkpoint.path}: {words}: give {ALONE}")


def _size(params: Mapping[str, Any]) -> Sides | None:
    """Return the size of the images, if the configuration tells it."""
    side = _at(params, "first_stage_config", "params", "ddconfig").get("resolution")
    return (side, side) if type(side) is int and side > 0 else None


def _at(config: object, *names: str) -> Mapping[str, Any]:
    """Return the part of a configuration behind some names; empty if there is none."""
    for name in names:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config if isinstance(config, Mapping) else {}


def _whole(checkpoint: Checkpoint, config: Mapping[str, Any], name: str, least: int = 1, most: int = 2**16) -> int:
    value = config.get(name)
    if type(value) is not int or not least <= value <= most:
        words = f"its configuration has {name} {short(value)}, but a whole number from {least} to {most} is needed"
        raise InputError(f"{checkpoint.path}: {words}")
    return value


SOURCE = Source(
    "VQ-GAN and transformer of taming-transformers",
    ("transformer.tok_emb.weight", "transformer.pos_emb", f"{TOKENIZER}encoder.down.0.block.0.norm1.weight"),
    taming.SIZE,
    convert,
)

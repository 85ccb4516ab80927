"""Training that starts from the weights of another model: `init_from`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from codegrid.errors import InputError
from codegrid.model_folder import load_model
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.options import list_options, resolve_options
from codegrid.pipelines.running.settings import Training
from codegrid.protocols import Model, Tokenizer
from codegrid.registry import TABLES

Settings = TypeVar("Settings", bound=Training)
SHOWN = 6  # names of tensors in a line


def load_initial(settings: Settings, kind: str, system: str) -> tuple[Settings, Any]:
    """Load the model that `init_from` names, if any, and return it after settings filled in with its options.

    Raises `InputError` if there is no such model, or it is of another kind or system than the one to train.
    """
    if settings.init_from is None:
        return settings, None
    source = load_model(settings.init_from, kind=kind)
    found = TABLES[kind].name_of(type(source))
    if found != system:
        raise InputError(f"`init_from` {settings.init_from} is a {found} {kind}: give `model` {found}")
    return with_options_of(settings, source.config), source


def with_options_of(settings: Settings, config: dict[str, Any]) -> Settings:
    """Return settings in which options that are not given are copied from a model's config, as far as they exist.

    Options that only affect how training begins stay as they are.
    """
    lasting = {name for name, option in list_options(type(settings)).items() if not option.is_of_the_start}
    while True:  # an option may choose a part that has more options
        there = resolve_options(settings)
        taken = {name: config[name] for name in lasting & there.keys() & config.keys() - settings.options.keys()}
        if not taken:
            return settings
        settings = replace(settings, options={**taken, **settings.options})


def start_from(model: Model, source: Model | None, name: str | None) -> None:
    """Copy the weights of another model into a model, as far as they fit, and print what differs."""
    if source is None:
        return
    fresh = model.inherit(source)
    differs = [key for key, value in model.config.items() if source.config.get(key) != value]
    print_once(f"starting from {name}{_list('other settings', differs)}{_list('new weights', fresh)}")
    model.provenance["init_from"] = source.fingerprint()


def check_codebook(tokenizer: Tokenizer, source: Tokenizer | None) -> None:
    """Raise `InputError` if a codebook would start from a larger one of its kind."""
    if source is None or _kinds(source.quantizer) != _kinds(tokenizer.quantizer):
        return
    for ours, theirs in zip(tokenizer.layout, source.layout, strict=False):
        if ours.num_embeddings < theirs.num_embeddings:
            raise InputError(
                f"`init_from`: its codebook has {theirs.num_embeddings:,} codes, more than {ours.num_embeddings:,}: a "
                "codebook can only grow"
            )


def _kinds(quantizer: Any) -> list[type]:
    """Return the classes of a quantizer and of its parts, such as those of several levels."""
    return [type(part) for part in (quantizer, *quantizer.children())]


def _list(title: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"; {title}: {', '.join(names[:SHOWN])}{more}" if names else ""

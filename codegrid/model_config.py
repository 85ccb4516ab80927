"""The `config.json` of a model folder, checked: it may come from anyone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import InputError
from .hub import HUB_PREFIX
from .limits import is_list_of, short
from .registry import TABLES
from .tensors import digest_of, read_json
from .usable import CONFIG, WEIGHTS

FORMAT = "codegrid model 2"
OLD_FORMAT = "codegrid model 1"
KINDS = ("tokenizer", "prior", "classifier")
FIELDS = {"kind": str, "model": str, "config": dict, "provenance": dict, "fingerprint": str, "sha256": dict}


def read_model_config(folder: Path, kind: str = "", model: str = "") -> dict[str, Any]:
    """Return the checked content of `config.json` in a model folder.

    Args:
        kind: `tokenizer`, `prior` or `classifier`, if it must be that.
        model: the model's name in the table, if it must be that.
    """
    wanted = f"{model} {kind}".strip() or "model"
    if folder.is_file():
        words = f"give the folder of a trained {wanted}; `codegrid import-model` makes one of another project's file"
        raise InputError(f"{folder} is a file: {words}")
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder of a trained {wanted}, or {HUB_PREFIX}owner/name")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            if (folder / "model_index.json").is_file():
                raise InputError(f"{folder} is a pipeline of diffusers: give the folder of a {wanted} of codegrid")
            if inner := [f"/{part}" for part in KINDS if kind in ("", part) and (folder / part / name).is_file()]:
                # not the whole path: it may have been given as a name, such as codegrid:digits
                raise InputError(f"{folder} is the folder of a whole run: append {' or '.join(inner)}")
            unfinished = "its training has not validated yet: wait, or run the same command again"
            runs = any((folder / trace).exists() for trace in ("state", "metrics.jsonl"))
            remedy = unfinished if runs else "train or copy it again"
            raise InputError(f"{folder} is incomplete: it holds no {name}; {remedy}")
    path = folder / CONFIG
    fields = read_json(path)
    checksums = fields.pop("sha256", None)
    if not isinstance(checksums, dict) or checksums.get(CONFIG) != digest_of(fields):
        raise InputError(f"{path} is damaged (its SHA-256 is not the recorded one): copy or make it again")
    if fields.get("format") == OLD_FORMAT:
        raise InputError(f"{folder} was made by codegrid 0.1, whose models this version does not read: train it again")
    if fields.get("format") != FORMAT:
        raise InputError(f"{folder} has the format {short(fields.get('format'))}, but this version reads {FORMAT!r}")
    # the digests match, but anyone can compute them
    fields["sha256"] = checksums
    for name, type_ in FIELDS.items():
        if not isinstance(fields.get(name), type_):
            raise InputError(f"{path}: {name} is {short(fields.get(name))}: copy or make it again")
    if not isinstance(checksums.get(WEIGHTS), str):
        raise InputError(f"{path} has no SHA-256 of {WEIGHTS}: copy or make it again")
    _check_model(folder, fields, kind, model)
    return fields


def _check_model(folder: Path, fields: dict[str, Any], kind: str, model: str) -> None:
    """Refuse a folder that holds a different model than wanted, or one that is not registered."""
    found = f"a {fields['kind'][:40]} ({fields['model'][:40]})"
    if fields["kind"] not in KINDS:
        raise InputError(f"{folder}: its kind {short(fields['kind'])} is neither {' nor '.join(KINDS)}: make it again")
    if kind not in ("", fields["kind"]) or model not in ("", fields["model"]):
        wanted = f"a {kind} ({model})" if model else f"a {kind}"
        raise InputError(f"{folder} holds {found}, but {wanted} is needed here")
    if fields["model"] not in TABLES[fields["kind"]]:
        remedy = "name the module that registers it (`plugin`), or call codegrid.register first"
        raise InputError(f"{folder} holds {found}, which is not registered: {remedy}")


def check_classes(folder: Path, fields: dict[str, Any]) -> None:
    """Refuse class names that are not strings, or whose number is not that of the model's classes."""
    classes, needed = fields["provenance"].get("classes", []), fields["config"].get("num_classes")
    as_many = "classes" not in fields["provenance"] or needed is None
    if not is_list_of(classes, str) or not (as_many or needed == len(classes)):
        words = "names" if needed is None else f"the names of {needed} classes"
        raise InputError(f"{folder}: the classes in its provenance must be {words}: copy or make it again")

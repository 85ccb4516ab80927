"""Model folders: `config.json` + `model.safetensors`, checked on load, rebuilt with no further argument.

A `README.md` beside them, the model's card, is for people: it is neither checked nor needed.
"""

from pathlib import Path
from typing import ClassVar

import torch
from typing_extensions import Self

from .errors import InputError, reason_of
from .files import write_folder, write_json
from .limits import is_list_of, short
from .model_card import Card, read_picture, render_card, write_card
from .tensors import digest_of, read_json, read_tensors, sha256, write_tensors

FORMAT = "codegrid model 1"
HUB_PREFIX = "hf:"
FIELDS = {"model": str, "config": dict, "provenance": dict, "fingerprint": str, "sha256": dict}


class ModelFolder:
    """Gives a module `save_pretrained`, `from_pretrained`, `push_to_hub` and `fingerprint`.

    The module sets `self.config` in its `__init__`: the keyword arguments that rebuild it, as JSON values.
    `provenance` is free for facts about the training; it is saved and loaded with the model. `picture`, the bytes of a
    PNG file, is shown on the card.
    """

    card: ClassVar[Card]
    config: dict
    provenance: dict
    picture: bytes = b""

    def fingerprint(self) -> str:
        """SHA-256 over the architecture and the sorted tensors, by name, shape and bytes.

        Buffers named `running_...` are left out: they steer further training, and change no output.
        """
        return fingerprint_of(type(self).__name__, self.config, self.state_dict())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder, with its card; a README.md there that is no such card stays."""
        with write_folder(folder, index="config.json") as staging:
            checksum = write_tensors(staging / "model.safetensors", self.state_dict())
            fields = {
                "format": FORMAT,
                "model": type(self).__name__,
                "config": self.config,
                "provenance": self.provenance,
                "fingerprint": self.fingerprint(),
            }
            checksums = {"model.safetensors": checksum, "config.json": digest_of(fields)}
            write_json(staging / "config.json", {**fields, "sha256": checksums})
            card = render_card(self.card, self.config, self.provenance, fields["fingerprint"], bool(self.picture))
            write_card(staging, Path(folder), card, self.picture)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load a model, in eval mode, from a folder, or from the hub as `hf:owner/name`.

        Raises `InputError` where the folder does not exist, is incomplete, damaged or holds another kind of model.
        """
        folder = _download(str(source)) if str(source).startswith(HUB_PREFIX) else Path(source)
        fields = read_model_config(folder, cls.__name__)
        try:
            with torch.device("meta"):  # takes no memory, whatever sizes the config claims
                outline = cls(**fields["config"])
        except Exception as error:  # a stranger's values can break a constructor in any way
            reason = (reason_of(error) or type(error).__name__)[:300]
            raise InputError(f"{folder}: this version of codegrid cannot rebuild the model: {reason}") from error
        _check_classes(folder, fields["provenance"], outline)
        weights = folder / "model.safetensors"
        tensors = read_tensors(weights, fields["sha256"]["model.safetensors"], like=outline.state_dict())
        if fingerprint_of(cls.__name__, fields["config"], tensors) != fields["fingerprint"]:
            raise InputError(f"{folder}: its fingerprint is not the recorded one: copy or make it again")
        model = cls(**fields["config"])
        model.load_state_dict(tensors)
        model.provenance = fields["provenance"]
        model.picture = read_picture(folder)
        return model.to(device).eval()

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Upload the model folder, card included, to the Hugging Face hub as `owner/name` and return its address."""
        import tempfile

        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            HfApi().create_repo(repo_id, private=private, exist_ok=True)
            return str(HfApi().upload_folder(repo_id=repo_id, folder_path=folder))


def read_model_config(folder: Path, model: str) -> dict:
    """The checked content of `config.json` in the folder of a `model` (a class name)."""
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder of a trained {model}, or {HUB_PREFIX}owner/name")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            unfinished = (folder / "state").is_dir()
            remedy = (
                "its training has not finished: run the same command again" if unfinished else "train or copy it again"
            )
            raise InputError(f"{folder} is incomplete: it holds no {name}; {remedy}")
    path = folder / "config.json"
    fields = read_json(path)
    checksums = fields.pop("sha256", None)
    if not isinstance(checksums, dict) or checksums.get("config.json") != digest_of(fields):
        raise InputError(f"{path} is damaged (its SHA-256 is not the recorded one): copy or make it again")
    if fields.get("format") != FORMAT:
        raise InputError(f"{folder} has the format {short(fields.get('format'))}, but this version reads {FORMAT!r}")
    # the digests are sound, but anyone can compute them
    fields["sha256"] = checksums
    for name, kind in FIELDS.items():
        if not isinstance(fields.get(name), kind):
            raise InputError(f"{path}: {name} is {short(fields.get(name))}: copy or make it again")
    if not isinstance(checksums.get("model.safetensors"), str):
        raise InputError(f"{path} tells no SHA-256 of model.safetensors: copy or make it again")
    if fields["model"] != model:
        raise InputError(f"{folder} holds a {fields['model'][:40]}, but a {model} is needed here")
    return fields


def _check_classes(folder: Path, provenance: dict, model: torch.nn.Module) -> None:
    """Refuse names of classes that are none, or not as many as the model has classes."""
    classes, needed = provenance.get("classes", []), getattr(model, "num_classes", None)
    if not is_list_of(classes, str) or ("classes" in provenance and needed not in (None, len(classes))):
        words = "names" if needed is None else f"the names of {needed} classes"
        raise InputError(f"{folder}: the classes in its provenance must be {words}: copy or make it again")


def fingerprint_of(model: str, config: dict, tensors: dict[str, torch.Tensor]) -> str:
    """The fingerprint of a model (a class name) of these weights."""
    described = {
        name: [list(tensor.shape), sha256(tensor.detach().cpu().contiguous().numpy().tobytes())]
        for name, tensor in tensors.items()
        if not name.rpartition(".")[2].startswith("running_")
    }
    return digest_of([model, config, described])


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(source.removeprefix(HUB_PREFIX), allow_patterns=["config.json", "model.safetensors"])
        )
    except Exception as error:  # the hub's errors have many types, and each means: no model
        reason = reason_of(error)
        raise InputError(f"cannot download {source}: {reason}") from error

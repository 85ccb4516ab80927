"""Models on the Hugging Face hub: `hf:owner/name` holds one stage or, in folders, both."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from .errors import InputError, reason_of
from .pretrained import PREFIX, find_pretrained
from .usable import MODEL_FILES

HUB_PREFIX = "hf:"
PIPELINE_FOLDERS = (
    "tokenizer",
    "tokenizer-[0-9]",
    "prior",
    "prior-[0-9]",
    "prior-[0-9][0-9]",
)  # patterns: both stages in one folder


def fetch(source: str | Path, below: Sequence[str] = ("",)) -> Path:
    """Return the folder that a source names; for `hf:owner/name`, download the models in it first.

    Args:
        source: a folder; `hf:owner/name`, or `hf:owner/name/folder` for a folder in a repository; or `codegrid:name`,
            models that come with the package.
        below: patterns of the folders in it that may hold models; an empty one for the folder itself.

    Raises `InputError` if the download fails, or no such models come with the package.
    """
    if str(source).startswith(PREFIX):
        return find_pretrained(str(source))
    if not str(source).startswith(HUB_PREFIX):
        return Path(source)
    from huggingface_hub import snapshot_download

    parts = str(source).removeprefix(HUB_PREFIX).split("/")
    inner = PurePosixPath(*parts[2:])
    patterns = [str(inner / folder / file) for folder in below for file in MODEL_FILES]
    try:
        return Path(snapshot_download("/".join(parts[:2]), allow_patterns=patterns), inner)
    except Exception as error:  # the hub raises many types of errors, and each means: no model
        raise InputError(f"cannot download {source}: {reason_of(error)}") from error


def push_folder(save: Callable[[Path], object], repo_id: str, private: bool = False) -> str:
    """Upload the files that `save` writes into a folder to the Hugging Face hub as `owner/name`; return the address."""
    from huggingface_hub import HfApi  # here, so that tests can replace it

    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        HfApi().create_repo(repo_id, private=private, exist_ok=True)
        return str(HfApi().upload_folder(repo_id=repo_id, folder_path=folder))

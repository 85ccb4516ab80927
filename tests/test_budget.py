"""A few bytes that claim much: refused by what they claim, before memory or hours are spent."""

import numpy as np
import pytest
import torch
from test_model_folder import build_prior, build_tokenizer
from written_codes import export

from codegrid import load, sample
from codegrid.budget import check_memory, machine_memory
from codegrid.data.codes import CodeDataset
from codegrid.data.folder import FolderImages
from codegrid.data.images import to_float
from codegrid.data.npz import read_npz
from codegrid.data.sources import load_images
from codegrid.errors import InputError
from codegrid.tensors import digest_of_file


def read_part(tmp_path):
    pictures = FolderImages(tmp_path, [], None, [], (100, 100), 3)
    pictures.paths = ["a.png", "b.png"]
    pictures.batch([0, 1])


def load_part(tmp_path):
    build_prior().save_pretrained(tmp_path)
    load(tmp_path)


CLAIMS = {
    "the weights of .*: load it": load_part,
    "54 images .*`image_size`": lambda tmp_path: load_images("npz", tmp_path / "bars.npz", "train", (100,)),
    "20,000 images .*`batch_size`": lambda tmp_path: to_float(torch.zeros(20_000, 1, dtype=torch.uint8)),
    "2 pictures .*`batch_size`": read_part,
    "the codes of 900 samples .*`batch_size`": lambda tmp_path: sample(build_prior().eval(), 900, batch_size=900),
    "50 decoded images .*`batch_size`": lambda tmp_path: build_tokenizer().decode(
        (torch.zeros(50, 2, 3, dtype=torch.int64),)
    ),
}


@pytest.mark.parametrize("words", CLAIMS)
def test_a_claim_above_the_memory_of_the_machine_is_refused(words, tmp_path, bars_file, monkeypatch):
    (tmp_path / "bars.npz").write_bytes(bars_file.read_bytes())
    monkeypatch.setattr("codegrid.budget.machine_memory", lambda: 45_000)
    with pytest.raises(InputError, match=words):
        CLAIMS[words](tmp_path)


def test_the_memory_of_a_container_counts(tmp_path, monkeypatch):
    first, second = tmp_path / "memory.max", tmp_path / "limit"
    memory = machine_memory.__wrapped__  # what is asked once
    monkeypatch.setattr("codegrid.budget.CONTAINER_LIMITS", (first, second))
    whole = memory()
    first.write_text("max\n")
    assert memory() == whole > 10**8
    second.write_text("1000\n")
    assert memory() == 1000
    monkeypatch.setattr("codegrid.budget.machine_memory", memory)
    check_memory("grids", 1000, "")
    with pytest.raises(InputError, match="grids would take 1,001 bytes, but this machine has 1,000: draw fewer"):
        check_memory("grids", 1001, "draw fewer")


def blow_up(path):
    """Make a file a terabyte large, of which the disk holds nothing."""
    with path.open("r+b") as file:
        file.truncate(2**40)


def hollow_model(tmp_path):
    build_prior().save_pretrained(tmp_path)
    blow_up(tmp_path / "model.safetensors")
    load(tmp_path)


def hollow_codes(tmp_path):
    export(tmp_path)
    blow_up(tmp_path / "codes-00000.safetensors")
    CodeDataset(tmp_path).batch([0])


def hollow_npz(tmp_path):
    np.savez(tmp_path / "a.npz", np.zeros(3))
    blow_up(tmp_path / "a.npz")
    read_npz(tmp_path / "a.npz")


def hollow_file(tmp_path):
    (tmp_path / "file").write_bytes(b"{}")
    blow_up(tmp_path / "file")
    digest_of_file(tmp_path / "file")


@pytest.mark.parametrize(
    "read,words",
    [(hollow_model, "too large"), (hollow_codes, "of which"), (hollow_npz, "of which"), (hollow_file, "of which")],
)
def test_a_file_of_holes_is_not_read_to_its_end(read, words, tmp_path):
    with pytest.raises(InputError, match=words):
        read(tmp_path)

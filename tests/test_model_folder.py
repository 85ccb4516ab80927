"""Model folders: rebuilt from what they hold, refused when something is wrong with them."""

import json

import pytest
import torch

from stage1_vqvae import VQVAE
from stage1_vqvae.quantizers import QUANTIZERS
from stage2_prior import GatedPixelCNN
from storage.errors import InputError

TOKENIZER = {"in_channels": 1, "image_size": (8, 12), "hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 4}


def build_tokenizer(seed=0, **options):
    torch.manual_seed(seed)
    return VQVAE(**{**TOKENIZER, **options})


def build_prior(seed=0):
    torch.manual_seed(seed)
    return GatedPixelCNN(16, 8, 2, num_classes=3)


@pytest.mark.parametrize("build", [build_tokenizer, build_prior])
def test_a_saved_model_is_rebuilt_with_no_further_argument(tmp_path, build):
    model = build()
    model.provenance = {"classes": ["a", "b"]}
    model.save_pretrained(tmp_path / "m")
    loaded = type(model).from_pretrained(tmp_path / "m")
    assert loaded.config == model.config and loaded.provenance == model.provenance and not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_fingerprint_survives_save_and_load(tmp_path, quantizer):
    tokenizer = build_tokenizer(quantizer=quantizer)
    tokenizer.save_pretrained(tmp_path)
    assert VQVAE.from_pretrained(tmp_path).fingerprint() == tokenizer.fingerprint()


def test_the_fingerprint_follows_weights_and_architecture_and_not_running_counts():
    fingerprint = build_tokenizer().fingerprint()
    assert build_tokenizer().fingerprint() == fingerprint
    assert build_tokenizer(seed=1).fingerprint() != fingerprint
    assert build_tokenizer(image_size=(12, 8)).fingerprint() != fingerprint
    counted = build_tokenizer()
    counted.quantizer.running_hits += 1
    assert counted.fingerprint() == fingerprint
    counted.quantizer.codebook[0, 0] += 1e-6
    assert counted.fingerprint() != fingerprint


@pytest.fixture
def folder(tmp_path):
    build_tokenizer().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("at", [0, 8, 100, 5000, -1])
def test_one_flipped_bit_of_the_weights_is_found(folder, at):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[at] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        VQVAE.from_pretrained(folder)


@pytest.mark.parametrize("field", ["config", "model", "format", "fingerprint", "provenance"])
def test_a_changed_field_of_the_config_is_found(folder, field):
    config = json.loads((folder / "config.json").read_text())
    config[field] = {"hidden_channels": 9}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        VQVAE.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\x80", b'{"sha256": 3}'])
def test_a_config_that_is_none_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        VQVAE.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_named_with_what_it_lacks(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"incomplete: it holds no {name}; train or copy it again"):
        VQVAE.from_pretrained(folder)


def test_a_folder_whose_training_was_stopped_says_so(folder):
    (folder / "config.json").unlink()
    (folder / "state").mkdir()
    with pytest.raises(InputError, match="run the same command again"):
        VQVAE.from_pretrained(folder)


def test_a_model_of_a_newer_version_is_refused(folder, monkeypatch):
    monkeypatch.delitem(QUANTIZERS, "ema")
    with pytest.raises(InputError, match="cannot rebuild the model"):
        VQVAE.from_pretrained(folder)


def test_a_folder_of_another_kind_is_refused_by_name(folder):
    with pytest.raises(InputError, match="holds a VQVAE, but a GatedPixelCNN is needed"):
        GatedPixelCNN.from_pretrained(folder)


@pytest.mark.parametrize("name", ["runs/mistyped", "owner/name"])
def test_a_path_that_does_not_exist_is_never_looked_for_on_the_hub(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match="no folder"):
        VQVAE.from_pretrained(name)


def test_a_hub_name_is_downloaded(monkeypatch, folder):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: (asked.append(name), folder)[1])
    assert VQVAE.from_pretrained("hf:owner/name").fingerprint() == VQVAE.from_pretrained(folder).fingerprint()
    assert asked == ["owner/name"]


def test_a_failed_download_is_one_line(monkeypatch):
    def fail(*args, **options):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match="cannot download hf:owner/name: no route"):
        VQVAE.from_pretrained("hf:owner/name")


def test_a_model_is_pushed_as_a_model_folder(monkeypatch):
    pushed = {}

    class Hub:
        def create_repo(self, repo_id, private, exist_ok):
            pushed["repo"] = repo_id

        def upload_folder(self, repo_id, folder_path):
            pushed["fingerprint"] = VQVAE.from_pretrained(folder_path).fingerprint()
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    tokenizer = build_tokenizer()
    assert tokenizer.push_to_hub("owner/name") == "https://hub/owner/name"
    assert pushed == {"repo": "owner/name", "fingerprint": tokenizer.fingerprint()}


def test_replacing_a_model_that_fails_leaves_the_old_one(folder, monkeypatch):
    before = VQVAE.from_pretrained(folder).fingerprint()

    def fill_the_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.model_folder.write_json", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        build_tokenizer(seed=1).save_pretrained(folder)
    assert VQVAE.from_pretrained(folder).fingerprint() == before

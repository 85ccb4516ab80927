"""Tokenizers in the forms of other libraries: these give the same codes and pictures."""

import json

import pytest
import torch

from codegrid import VQVAE, HierarchicalVQVAE, InputError, Signal, export_model, load
from codegrid.pipelines.export_model import ExportModel
from codegrid.pipelines.exporting.run import FORMS, export_into

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def make(size=(16, 16), **options):
    torch.manual_seed(0)
    sizes = {"num_embeddings": 20, "embedding_dim": 6, "hidden_channels": 32, "num_residual_blocks": 1}
    kind = HierarchicalVQVAE if "levels" in options else VQVAE
    return kind(Signal(channels=3, size=size), **{**sizes, **options}).eval()


def draw(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


OF_DIFFUSERS = [
    {"network": "resnet", "downsampling": 4},
    {"network": "resnet", "downsampling": 1, "quantizer": "sim"},
    {"network": "vqgan", "channel_multipliers": [1, 2, 3], "attention_sizes": [0, 2], "latent_channels": 5},
    {"network": "vqgan", "middle_attention": False, "attention_sizes": [], "downsampling": 2},
]


@pytest.mark.parametrize("options", OF_DIFFUSERS, ids=str)
def test_a_folder_for_diffusers_comes_back_as_the_same_tokenizer(options, tmp_path):
    tokenizer, images = make(**options), draw(2, 3, 16, 16)
    export_model(tokenizer, "diffusers", tmp_path)
    again = load(tmp_path)
    torch.testing.assert_close(again.encode_latents(images), tokenizer.encode_latents(images), **CLOSE)
    torch.testing.assert_close(again.reconstruct(images), tokenizer.reconstruct(images), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("options", OF_DIFFUSERS, ids=str)
@torch.no_grad()
def test_diffusers_gives_the_same_codes_and_pictures(options, tmp_path):
    models = pytest.importorskip("diffusers.models.autoencoders.vq_model")
    tokenizer, images = make(**options), draw(2, 3, 16, 16)
    export_model(tokenizer, "diffusers", tmp_path)
    theirs = models.VQModel.from_pretrained(tmp_path)
    latents = theirs.encode(images).latents
    torch.testing.assert_close(tokenizer.encode_latents(images)[0], latents, **CLOSE)
    assert torch.equal(theirs.quantize(latents)[2][2], tokenizer.encode(images)[0].flatten())
    torch.testing.assert_close(tokenizer.reconstruct(images), theirs.decode(latents).sample, **CLOSE)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"network": "paper"}, "must be resnet or vqgan"),
        ({"network": "resnet", "quantizer": "residual"}, "must have one codebook"),
        ({"network": "resnet", "distance": "cosine"}, "the euclidean `distance`"),
        ({"network": "resnet", "reconstruction": "logistic"}, "its decoder must make images"),
        ({"network": "vqgan", "latent_kernel": 3}, "beside the codes must be 1×1"),
        ({"network": "resnet", "size": (18, 21)}, "images of 18×21 are not whole sites"),
    ],
)
def test_what_diffusers_cannot_hold_is_refused(options, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        export_model(make(**options), "diffusers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


PROGRAMS = [{}, {"levels": [2, 2], "size": (10, 12), "quantizer": "residual"}]


@pytest.mark.slow
@pytest.mark.parametrize("options", PROGRAMS, ids=str)
@torch.no_grad()
def test_programs_of_torch_give_the_same_for_any_number_of_images(options, tmp_path):
    tokenizer = make(**options)
    export_model(tokenizer, "torch", tmp_path)
    encoder, decoder = (torch.export.load(tmp_path / f"{name}.pt2").module() for name in ("encoder", "decoder"))
    for count in (1, 3):
        images = draw(count, 3, *tokenizer.signal.size)
        codes = tokenizer.encode(images)
        assert all(map(torch.equal, encoder(images), codes))
        torch.testing.assert_close(decoder(*codes), tokenizer.decode(codes), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("options", PROGRAMS, ids=str)
@torch.no_grad()
def test_onnxruntime_gives_the_same_for_any_number_of_images(options, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tokenizer = make(**options)
    export_model(tokenizer, "onnx", tmp_path)
    encoder, decoder = (runtime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("encoder", "decoder"))
    for count in (1, 3):
        images = draw(count, 3, *tokenizer.signal.size)
        codes = tokenizer.encode(images)
        found = encoder.run(None, {encoder.get_inputs()[0].name: images.numpy()})
        assert all(torch.equal(torch.from_numpy(ours), theirs) for ours, theirs in zip(found, codes, strict=True))
        given = {each.name: of_grid.numpy() for each, of_grid in zip(decoder.get_inputs(), codes, strict=True)}
        pictures = torch.from_numpy(decoder.run(None, given)[0])
        torch.testing.assert_close(pictures, tokenizer.decode(codes), **CLOSE)


def test_the_command_writes_a_folder_that_says_what_it_holds(tmp_path):
    tokenizer = make(network="resnet")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = ExportModel(run=str(tmp_path), to="diffusers", output=str(tmp_path / "out"))
    assert "model.json" in export_into(settings)["files"] and export_into(settings) == {}
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["codes"] == [{"shape": [4, 4], "num_embeddings": 20}]
    assert about["fingerprint"] == tokenizer.fingerprint()
    with pytest.raises(InputError, match="`to` 'keras': choose one of diffusers, onnx, torch"):
        export_model(tokenizer, "keras", tmp_path / "other")
    paper = tmp_path / "paper"
    make().save_pretrained(paper)
    with pytest.raises(InputError, match="must be resnet or vqgan"):
        export_into(ExportModel(tokenizer=str(paper), to="diffusers", output=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


def test_without_onnx_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("codegrid.pipelines.exporting.programs.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'needs the package onnx: pip install "codegrid\[onnx\]"'):
        export_model(make(), "onnx", tmp_path)
    assert set(FORMS) == {"diffusers", "onnx", "torch"}

"""Checkpoints of other projects: each gives what its project gives.

Shapes: b batch, c channels, H W image.
"""

import numpy
import pytest
import torch
from foreign_checkpoints import draw, make, saved
from foreign_sonnet import Sonnet
from foreign_vqgans import VAR, LlamaGen, Taming, TamingGumbel
from foreign_vqvaes import DallE, MishaLaskin, Rosinality, Zalando
from safetensors.torch import load_file, save_file

from codegrid import VQVAE, InputError, Signal, export_model, import_model, load
from codegrid.pipelines.import_model import ImportModel
from codegrid.pipelines.importing.names import SOURCES
from codegrid.pipelines.importing.run import import_into
from codegrid.pipelines.importing.sources import find_source

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def blind(model):
    for part in (model.encoder, model.decoder):
        part.mid.attn_1 = torch.nn.Identity()
    return model


# project → a model of its kind, how its checkpoint wraps the weights, and the sides of images
MODELS = {
    "taming": (lambda: make(Taming), lambda weights: {"state_dict": weights, "global_step": 3}, (16, 24)),
    "taming-without-attention": (
        lambda: make(Taming, attends=(), mult=(1, 3), channels=1),
        lambda weights: {f"first_stage_model.{name}": each for name, each in weights.items()},
        (16, 24),
    ),
    "taming-without-any-attention": (lambda: blind(make(Taming, attends=())), dict, (16, 24)),
    "taming-with-gumbel": (lambda: make(TamingGumbel), lambda weights: {"state_dict": weights}, (16, 24)),
    "llamagen": (lambda: make(LlamaGen), lambda weights: {"model": weights}, (16, 24)),
    "var": (lambda: make(VAR), dict, (32, 32)),
    "var-with-one-phi": (lambda: make(VAR, phi=1), dict, (32, 32)),
    "var-with-larger-images": (lambda: make(VAR, scales=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)), dict, (64, 64)),
    "rosinality": (
        lambda: make(Rosinality),
        lambda weights: {f"module.{name}": each for name, each in weights.items()},
        (24, 16),
    ),
    "rosinality-without-blocks": (lambda: make(Rosinality, blocks=0), dict, (24, 16)),
    "mishalaskin-with-as-many-channels": (lambda: make(MishaLaskin, entries=200, dim=16), dict, (24, 16)),
    "mishalaskin-with-first-decoder": (lambda: make(MishaLaskin, first=True), dict, (24, 16)),
    "mishalaskin": (lambda: make(MishaLaskin), lambda weights: {"model": weights, "results": {"n": 1}}, (24, 16)),
    "zalando": (lambda: make(Zalando, entries=200), dict, (24, 16)),
    "zalando-without-averages": (lambda: make(Zalando, entries=200, blocks=1, moves=False), dict, (24, 16)),
}


@pytest.mark.parametrize("case", MODELS)
@torch.no_grad()
def test_latents_codes_and_pictures_are_those_of_the_original(case, tmp_path):
    build, wrap, size = MODELS[case]
    original = build()
    ours = import_model(saved(tmp_path, wrap(original.state_dict())), size=size).double()
    images = draw(2, ours.signal.channels, *size).double()
    original.double()  # in which it does not show in which order a PyTorch adds up
    theirs = original.both_latents(images) if hasattr(original, "both_latents") else (original.latents(images),)
    torch.testing.assert_close(ours.encode_latents(images), theirs, **CLOSE)
    codes = original.codes(images)
    assert all(map(torch.equal, ours.encode(images), codes)) and len(codes) == len(ours.layout)
    assert len({int(code) for of_grid in codes for code in of_grid.flatten()}) > 4  # a test of many codes
    torch.testing.assert_close(ours.decode(codes), original.pictures(codes), **CLOSE)
    assert ours.provenance["imported_from"].endswith(f"({case.partition('-w')[0]})")


@pytest.mark.parametrize("blocks", [0, 2])
def test_parameters_of_sonnet_give_what_its_example_gives(blocks, tmp_path):
    original = Sonnet(blocks=blocks)
    numpy.savez(tmp_path / "sonnet.npz", **original.variables())
    ours, images = import_model(tmp_path / "sonnet.npz", size=(24, 16)), draw(2, 3, 24, 16)
    torch.testing.assert_close(ours.encode_latents(images)[0], original.latents(images), **CLOSE)
    codes = original.codes(images)
    assert all(map(torch.equal, ours.encode(images), codes))
    torch.testing.assert_close(ours.decode(codes), original.pictures(codes), **CLOSE)


@torch.no_grad()
def test_the_two_files_of_dalle_give_what_its_modules_give(tmp_path, monkeypatch):
    original, images = make(DallE), draw(2, 3, 16, 24)
    original.encoder.blocks.output.conv.b -= original.logits(images).mean((0, 2, 3))  # so that there are many codes
    for part in ("encoder", "decoder"):
        torch.save(getattr(original, part), tmp_path / f"{part}.pkl")
    monkeypatch.delattr("foreign_vqvaes.DallEPart")  # whoever loads it has no such class
    ours = load(tmp_path)
    logits = ours.quantizer.to_logits(ours.encode_latents(images)[0].movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(logits, original.logits(images), **CLOSE)
    codes = original.codes(images)
    assert all(map(torch.equal, ours.encode(images), codes)) and len(codes[0].unique()) > 4
    torch.testing.assert_close(ours.decode(codes), original.pictures(codes), **CLOSE)


def test_moving_averages_of_a_codebook_come_along(tmp_path):
    original = make(Zalando)
    original._vq_vae._ema_cluster_size.copy_(torch.arange(20.0))
    ours = import_model(saved(tmp_path, original.state_dict()))
    assert torch.equal(ours.quantizer.running_hits, torch.arange(20.0)) and ours.config["quantizer"] == "ema"


@pytest.fixture(scope="module")
def vq_model():
    """A `VQModel` of diffusers with attention at some sizes."""
    models = pytest.importorskip("diffusers.models.autoencoders.vq_model")

    def build(**options):
        sizes = {"block_out_channels": (32, 64, 96), "layers_per_block": 1, "norm_num_groups": 16, "sample_size": 24}
        kinds = {
            "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
            "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        }
        return make(models.VQModel, **{**sizes, **kinds, "latent_channels": 5, "num_vq_embeddings": 20, **options})

    return build


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"mid_block_add_attention": False, "vq_embed_dim": 7, "in_channels": 1,
                                          "out_channels": 1}], ids=str)  # fmt: skip
@torch.no_grad()
def test_a_folder_of_diffusers_gives_what_diffusers_gives(options, vq_model, tmp_path):
    original = vq_model(**options)
    original.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert ours.signal.size == (24, 24) and ours.provenance["imported_from"].endswith("(diffusers)")
    images = draw(2, options.get("in_channels", 3), 24, 24)
    latents = original.encode(images).latents
    torch.testing.assert_close(ours.encode_latents(images)[0], latents, **CLOSE)
    numbers = original.quantize(latents)[2][2].view(2, 6, 6)
    assert torch.equal(ours.encode(images)[0], numbers)
    torch.testing.assert_close(ours.reconstruct(images), original.decode(latents).sample, **CLOSE)


def test_the_source_and_the_size_can_be_told(tmp_path):
    path = saved(tmp_path, make(Taming).state_dict())
    assert import_model(path).signal.size == (256, 256)
    assert import_model(path, source="taming", size=(8, 12)).signal.size == (8, 12)
    with pytest.raises(InputError, match=r"is not a checkpoint of a known project: .* not encoder\.conv_blocks"):
        import_model(path, source="llamagen")
    with pytest.raises(InputError, match="`source` 'vqgan': choose one of net2net, var, taming, "):
        import_model(path, source="vqgan")
    with pytest.raises(InputError, match="`size` 1 2 3: give one side"):
        import_model(path, size=(1, 2, 3))
    with pytest.raises(InputError, match="side 1, but scales are known for 16 and 32"):
        import_model(saved(tmp_path, make(VAR).state_dict()), size=2)


def test_averaged_weights_come_before_the_others(tmp_path):
    last, averaged = make(LlamaGen, 1), make(LlamaGen, 2)
    path = saved(tmp_path, {"model": last.state_dict(), "ema": averaged.state_dict()})
    images = draw(1, 3, 16, 16)
    torch.testing.assert_close(import_model(path).encode_latents(images)[0], averaged.latents(images), **CLOSE)


WRAPPED = {
    "an empty average": lambda weights: {"ema": {}, "state_dict": weights},
    "an average that only counts": lambda weights: {"ema": {"steps": torch.tensor(3)}, "state_dict": weights},
    "names of two wrappers": lambda weights: {f"module._orig_mod.{name}": each for name, each in weights.items()},
    "a wrapper of an average": lambda weights: {f"ema_model.{name}": each for name, each in weights.items()},
    "a key of its own": lambda weights: {"trainer": {"vae_local": weights}, "steps": 3},
    "a loss that is not finite": lambda weights: {**weights, "loss.logvar": torch.tensor(torch.nan)},
    "eight bits": lambda weights: {"state_dict": weights, "scales": torch.zeros(2).to(torch.float8_e4m3fn)},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_weights_are_found_however_a_trainer_wrapped_them(case, tmp_path):
    weights = make(Taming).state_dict()
    ours = import_model(saved(tmp_path, WRAPPED[case](weights)), size=16)
    assert torch.equal(ours.quantizer.codebook, weights["quantize.embedding.weight"])


def test_the_config_beside_a_file_of_diffusers_is_read_in_every_form(tmp_path):
    tokenizer = VQVAE(
        Signal(channels=3, size=(12, 12)), network="vqgan", hidden_channels=32, num_embeddings=20, norm_groups=16
    )
    export_model(tokenizer, "diffusers", tmp_path / "theirs")
    weights = tmp_path / "theirs" / "diffusion_pytorch_model.safetensors"
    expected = tokenizer.encode_latents(images := draw(1, 3, 12, 12))
    torch.save(load_file(weights), tmp_path / "theirs" / "diffusion_pytorch_model.bin")
    save_file(load_file(weights), tmp_path / "theirs" / "diffusion_pytorch_model.fp16.safetensors")
    for name in (weights.name, "diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"):
        for place in (tmp_path / "theirs" / name, tmp_path / "theirs"):
            again = import_model(place)
            assert again.signal.size == (12, 12)
            torch.testing.assert_close(again.encode_latents(images), expected, **CLOSE)
        (tmp_path / "theirs" / name).unlink()


def test_a_checkpoint_that_is_refused_costs_no_finished_model(tmp_path):
    path = saved(tmp_path, make(Taming).state_dict())
    import_into(ImportModel(from_=str(path), output=str(tmp_path / "t"), size=(16, 16)))
    held = {each.name for each in (tmp_path / "t").iterdir()}
    (tmp_path / "bad.ckpt").write_bytes(path.read_bytes()[:1000])
    inside = tmp_path / "t" / "theirs.safetensors"
    save_file(make(Taming).state_dict(), inside)
    for source, words in ((tmp_path / "bad.ckpt", "is damaged"), (inside, r"`overwrite` would empty .*`from_` is")):
        with pytest.raises(InputError, match=words):
            import_into(ImportModel(from_=str(source), output=str(tmp_path / "t"), overwrite=True))
    assert held <= {each.name for each in (tmp_path / "t").iterdir()} and load(tmp_path / "t")


def test_an_imported_folder_is_a_model_like_any_other(tmp_path):
    weights = make(Taming).state_dict()
    save_file(weights, tmp_path / "a.safetensors")
    settings = ImportModel(from_=str(tmp_path / "a.safetensors"), output=str(tmp_path / "t"), size=(16, 16))
    found = import_into(settings)
    assert found["tokenizer"]["imported_from"].endswith("(taming)") and import_into(settings) == {}  # finished
    again, direct = load(tmp_path / "t"), import_model(tmp_path / "a.safetensors", size=16)
    assert again.fingerprint() == direct.fingerprint() and again.provenance["sha256"].keys() == {"a.safetensors"}
    assert "taming" in (tmp_path / "t" / "README.md").read_text()
    (tmp_path / "bad.ckpt").write_bytes(b"PK")
    with pytest.raises(InputError, match="is damaged"):
        import_into(ImportModel(from_=str(tmp_path / "bad.ckpt"), output=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


def test_every_source_says_what_it_is():
    for name in SOURCES:
        source = find_source(name)
        assert source.keys and source.about and len(source.size) == 2

"""A tokenizer and a diffusion prior as a folder that diffusers loads and draws with.

Shapes: b batch, D embedding_dim.
"""

from dataclasses import replace

import pytest
import torch

from codegrid import VQVAE, export_model, load
from codegrid.codes import Signal
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.pipelines.export_model import ExportModel
from codegrid.pipelines.exporting.run import export_into
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.registry import TABLES

diffusers = pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
STEPS, SAMPLES = 4, 3
NETWORKS = {"resnet": {}, "vqgan": {"network": "vqgan", "channel_multipliers": [1, 2], "latent_channels": 3}}
SMALL_NETWORK = {"network": "resnet", "hidden_channels": 16, "num_residual_blocks": 1}


def make_tokenizer(size=(16, 16), channels=3, **options):
    torch.manual_seed(0)
    small = {"num_embeddings": 32, "embedding_dim": 4, **SMALL_NETWORK, **options}
    tokenizer = VQVAE(Signal(channels=channels, size=size), **small).eval()
    if hasattr(tokenizer.quantizer, "codebook"):  # far from mean 0, and each channel of another spread
        tokenizer.quantizer.codebook.mul_(torch.tensor([1.0, 2, 3, 4])).add_(torch.tensor([1.0, 0, 0, -2]))
    return tokenizer


def make_prior(tokenizer, kind="diffusion", **options):
    torch.manual_seed(1)
    if kind == "diffusion":
        tables = {f"entries.{number}": tokenizer.quantizer.entries(number) for number in range(len(tokenizer.layout))}
        options = {"one_scale": True, "channels": 16, "num_heads": 2, "tables": tables, **options}
    prior = TABLES["prior"][kind](tokenizer.layout, **options).eval()
    if kind == "diffusion":
        with torch.no_grad():  # a new one predicts 0
            for parameter in prior.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        prior.prepare([tuple(torch.randint(grid.num_embeddings, (8, *grid.shape)) for grid in tokenizer.layout)])
    prior.provenance["tokenizer_fingerprint"] = tokenizer.fingerprint()
    return prior


def pair_of(tokenizer, **options):
    return TwoStagePipeline(tokenizer, make_prior(tokenizer, **options))


def export(pipeline, folder):
    export_model(pipeline.tokenizer, "diffusers", folder, pipeline.priors[0])


@pytest.fixture(scope="module", params=["resnet", "vqgan"])
def exported(request, tmp_path_factory):
    """A pipeline, and the folder of it that diffusers reads."""
    pipeline, folder = pair_of(make_tokenizer(**NETWORKS[request.param])), tmp_path_factory.mktemp("exported")
    export(pipeline, folder)
    return pipeline, folder


def draw_with_diffusers(folder, start, **call):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).__name__ == "LDMPipeline"
    generators = [torch.Generator().manual_seed(number) for number in range(len(start))]
    return torch.from_numpy(pipe(len(start), generators, num_inference_steps=STEPS, output_type="np").images)


def test_diffusers_draws_the_images_that_our_sampler_draws_from_the_same_noise(exported, monkeypatch):
    pipeline, folder = exported
    shape = (pipeline.priors[0].vectors.embedding_dim, *pipeline.layout[0].shape)
    start = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(SAMPLES)])
    monkeypatch.setattr(Noise, "normals", lambda noise, name, *shape: start)
    ours = pipeline.sample(SAMPLES, num_inference_steps=STEPS, solver="ddim", output_type="np", progress=False)
    assert len(ours.codes[0].unique()) > 4
    theirs = draw_with_diffusers(folder, start)
    torch.testing.assert_close(theirs, torch.as_tensor(ours.images), atol=1e-4, rtol=0)


@torch.no_grad()
def test_its_autoencoder_reconstructs_as_the_tokenizer_and_knows_its_scale(exported):
    pipeline, folder = exported
    theirs = diffusers.VQModel.from_pretrained(folder, subfolder="vqvae").eval()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(theirs(x).sample, pipeline.tokenizer.reconstruct(x), atol=1e-4, rtol=0)
    codes = (torch.arange(32).view(2, 4, 4),)
    expected = pipeline.priors[0].latents(codes)
    entries = theirs.quantize.embedding.weight[codes[0]].permute(0, 3, 1, 2)
    torch.testing.assert_close(entries * theirs.config.scaling_factor, expected, atol=1e-5, rtol=1e-5)


def test_all_channels_have_one_scale_and_mean_0_if_that_is_asked_for():
    prior = make_prior(make_tokenizer())
    torch.manual_seed(1)
    vectors = prior.latents((torch.randint(32, (64, 4, 4)),)).transpose(0, 1).flatten(1)
    assert prior.vectors.spread.unique().numel() == 1
    assert abs(float(vectors.var(dim=1).mean()) - 1) < 0.2 and vectors.std(dim=1).max() > 1.3


def test_the_folder_can_be_written_again_and_grey_images_too(tmp_path):
    pipeline = pair_of(make_tokenizer(channels=1))
    for _ in range(2):
        export(pipeline, tmp_path)
    assert draw_with_diffusers(tmp_path, torch.zeros(1)).shape == (1, 16, 16, 1)


TOKENIZER = make_tokenizer()
REFUSED = {
    "labels": (TOKENIZER, {"num_classes": 3}, "learnt labels, .*: train one `unconditional`"),
    "texts": (TOKENIZER, {"num_words": 300, "text_length": 4}, "learnt texts, .*: train one `unconditional`"),
    "another prior": (TOKENIZER, {"kind": "maskgit"}, "`prior`: a MaskGIT.*: train one with `model` diffusion"),
    "own scales": (TOKENIZER, {"one_scale": False}, "`prior`: its channels have scales of their own.*`one_scale`"),
    "paper network": (
        make_tokenizer(network="paper", residual_channels=4), {}, "network must be resnet or vqgan",
    ),
    "an oblong grid": (make_tokenizer((16, 24)), {}, "`tokenizer`: 4×6 .*needs one grid, and a square one"),
    "an odd grid": (make_tokenizer((12, 12)), {}, "`prior`: grids 3 wide: LDMPipeline needs a multiple of 2"),
    "several codes": (
        make_tokenizer(quantizer="residual", num_quantizers=2), {}, "`tokenizer`: .*needs one grid, and a square one",
    ),
    "a wide convolution": (make_tokenizer(network="vqgan", latent_kernel=3), {}, "beside the codes must be 1×1"),
    "half sites": (make_tokenizer((14, 14)), {}, "`tokenizer`: images of 14×14 are not whole sites"),
    "a likelihood": (make_tokenizer(reconstruction="logistic"), {}, "its decoder must make images"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_diffusers_has_no_pipeline_for_is_refused_in_one_line(name, tmp_path):
    tokenizer, options, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as caught:
        export(pair_of(tokenizer, **options), tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_the_command_takes_a_prior_for_diffusers_alone_and_one_of_this_tokenizer(tmp_path):
    pair_of(make_tokenizer()).save_pretrained(tmp_path / "run")
    settings = ExportModel(run=str(tmp_path / "run"), to="diffusers", prior=str(tmp_path / "run" / "prior"))
    assert "unet/config.json" in export_into(settings)["files"]
    place = tmp_path / "run" / "exported"
    assert draw_with_diffusers(place, torch.zeros(1)).shape == (1, 16, 16, 3) and (place / "model.json").is_file()
    assert export_into(replace(settings, output=str(place))) == {}  # finished
    assert export_into(replace(settings, output=str(place), overwrite=True))
    assert (place / "model_index.json").is_file()
    make_tokenizer(num_embeddings=16).save_pretrained(tmp_path / "other")
    for changed, reason in (
        ({"to": "torch"}, "`prior`: the form torch is of a tokenizer alone"),
        ({"tokenizer": (str(tmp_path / "other"),)}, "another tokenizer"),
    ):
        with pytest.raises(InputError, match=reason):
            export_into(replace(settings, output=str(tmp_path / "none"), **changed))
        assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="is a pipeline of diffusers: give the folder of a model of codegrid"):
        load(place)

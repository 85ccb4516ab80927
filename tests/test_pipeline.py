"""Both stages from Python: which tokenizers and priors belong together, labels, images in and out, what a run left."""

import shutil
import sys
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from typing_extensions import Unpack

from codegrid import VQVAE, GatedPixelCNN, Grid, InputError, SamplingConfig, TwoStagePipeline, load, sample
from codegrid.codes import Signal
from codegrid.data.splits import warn_of_few
from codegrid.pipelines.generation.artifacts import find_artifacts, load_artifacts
from codegrid.pipelines.generation.request import make_request
from codegrid.pipelines.running.drawing import DRAWING
from codegrid.sampling_config import DrawingSettings


@pytest.fixture
def pipeline(small_run):
    return TwoStagePipeline.from_pretrained(small_run)


@pytest.fixture
def tokenizer():
    """A tokenizer of two codes a site."""
    torch.manual_seed(0)
    options = {"num_quantizers": 2, "hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 4}
    return VQVAE(signal=Signal("image", 1, (12, 20)), quantizer="residual", **options).eval()


def make_prior(tokenizer, *grids, num_classes=0, layout=None):
    layout = layout or tuple(tokenizer.layout[grid] for grid in grids)
    prior = GatedPixelCNN(layout=layout, grids=grids, num_classes=num_classes, channels=8, num_layers=2).eval()
    prior.provenance |= {"tokenizer_fingerprint": tokenizer.fingerprint()}
    if num_classes:
        prior.provenance["classes"] = [f"class {number}" for number in range(num_classes)]
    return prior


def test_class_names_are_labels_too(pipeline):
    for labels in (["1", "0"], [1, 0], torch.tensor([1, 0])):
        assert pipeline.sample(2, labels=labels).labels.tolist() == [1, 0]
    assert pipeline.sample(3).labels.tolist() == [0, 1, 0]


def test_numbers_are_never_taken_for_names(pipeline):
    (prior,) = pipeline.priors
    prior.provenance["classes"] = ["1", "0"]
    assert pipeline.sample(2, labels=[1, 0]).labels.tolist() == [1, 0]
    assert pipeline.sample(2, labels=[":1", ":0"]).labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="'1' may be class 0"):
        pipeline.sample(2, labels=["1", "0"])


def test_a_prior_for_each_grid_draws_what_one_batch_or_many_give(tokenizer):
    pipeline = TwoStagePipeline(tokenizer, make_prior(tokenizer, 0, num_classes=2), make_prior(tokenizer, 1))
    assert pipeline.classes == ["class 0", "class 1"]
    one, many = (pipeline.sample(5, seed=3, batch_size=size, temperature=[0.5, 1.0]) for size in (5, 2))
    assert one.images.shape == (5, 1, 12, 20) and one.labels.tolist() == [0, 1, 0, 1, 0]
    for grid, again in zip(one.codes, many.codes, strict=True):
        assert grid.shape == (5, 3, 5) and torch.equal(grid, again)
    with pytest.raises(InputError, match="`temperature`: 3 values for 2 priors"):
        pipeline.sample(1, temperature=[1.0, 1.0, 1.0])


def test_priors_that_do_not_draw_each_grid_once_are_refused_by_the_grid(tokenizer):
    coarse, fine = make_prior(tokenizer, 0), make_prior(tokenizer, 1)
    other = make_prior(tokenizer, 0, 1, layout=(Grid((3, 5), 16), Grid((3, 5), 8)))
    for priors, reason in (
        ((), "at least one"),
        ((coarse,), "no prior draws grid 1 .*3×5 codes out of 16.*train-prior` trains with `grid` 1"),
        ((coarse, coarse, fine), "prior 0 and prior 1 draw the same grid 0"),
        ((fine, coarse), r"not in order: .*: prior 1 \(grid 0\), prior 0 \(grid 1\)"),
        ((other,), "draws 3×5 codes out of 8 as grid 1, but the tokenizer has 3×5 codes out of 16"),
        ((coarse, make_prior(tokenizer, 2, layout=(Grid((3, 5), 16),))), "has only 2 grids"),
    ):
        with pytest.raises(InputError, match=reason):
            TwoStagePipeline(tokenizer, *priors)


def test_priors_of_other_codes_or_classes_are_refused(tokenizer):
    stranger = make_prior(tokenizer, 0, 1)
    stranger.provenance["tokenizer_fingerprint"] = "another"
    with pytest.raises(InputError, match="another tokenizer"):
        TwoStagePipeline(tokenizer, stranger)
    with pytest.raises(InputError, match="different classes"):
        TwoStagePipeline(tokenizer, make_prior(tokenizer, 0, num_classes=2), make_prior(tokenizer, 1, num_classes=3))


def test_settings_that_a_prior_cannot_follow_are_refused(tokenizer, pipeline):
    unconditional = TwoStagePipeline(tokenizer, make_prior(tokenizer, 0, 1))
    assert unconditional.sample(1).labels is None
    for one, settings, reason in (
        (unconditional, {"labels": [0]}, "`labels`: this prior is unconditional"),
        (unconditional, {"guidance_scale": 2.0}, "`guidance_scale` 2.0: this prior is unconditional"),
        (pipeline, {"num_inference_steps": 4}, "`num_inference_steps` has no effect"),
        (pipeline, {"num_samples": 0}, "`num_samples` 0"),
        (pipeline, {"seed": -1}, "`seed` -1"),
        (pipeline, {"seed": np.int64(3)}, r"a whole number from 0 .*; write \.item\(\) behind a number of NumPy"),
        (pipeline, {"batch_size": 0}, "`batch_size` 0"),
        (pipeline, {"backend": "fast"}, "`backend` 'fast'"),
        (pipeline, {"labels": ["2"]}, "there are classes 0 to 1"),
    ):
        with pytest.raises(InputError, match=reason):
            one.sample(**settings)


def test_every_call_draws_new_images_that_its_seed_gives_again(pipeline):
    one, other = pipeline(3), pipeline(3)
    assert one.seed != other.seed and not torch.equal(one.images, other.images)
    again = pipeline.sample(3, seed=one.seed)
    assert torch.equal(again.images, one.images) and again.seed == one.seed
    completed = pipeline.complete(one.images, 1)
    assert torch.equal(pipeline.complete(one.images, 1, seed=completed.seed).images, completed.images)
    assert pipeline.complete(one.images, 1).seed != completed.seed


@pytest.mark.parametrize(
    "draws", [TwoStagePipeline.__call__, TwoStagePipeline.sample, TwoStagePipeline.complete, sample]
)
def test_whatever_draws_takes_every_setting_of_drawing(draws, pipeline):
    assert get_type_hints(draws)["settings"] == Unpack[DrawingSettings]
    assert list(get_type_hints(DrawingSettings)) == list(vars(SamplingConfig())) == list(DRAWING)
    with pytest.raises(InputError, match=r"`temprature`: there is no such setting; there are .*temperature"):
        pipeline.sample(1, temprature=1.0)


def test_a_bar_shows_how_far_drawing_is_unless_told_not_to(pipeline, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with_bar = pipeline.sample(5, seed=1, batch_size=2)
    assert "drawing 5: 100%" in capsys.readouterr().err
    assert torch.equal(pipeline.sample(5, seed=1, batch_size=2, progress=False).images, with_bar.images)
    assert not capsys.readouterr().err


def test_images_come_as_tensors_arrays_or_pictures(pipeline, tmp_path):
    tensors, arrays, pictures = (pipeline.sample(3, seed=1, output_type=kind) for kind in ("pt", "np", "pil"))
    assert tensors.images.shape == (3, 1, 12, 20) and tensors.images.min() < -0.5
    assert arrays.images.shape == (3, 12, 20, 1) and 0 <= arrays.images.min() < 0.25 and arrays.images.max() <= 1
    assert [(picture.size, picture.mode) for picture in pictures.images] == [((20, 12), "L")] * 3
    saved = [samples.save(tmp_path / str(number)) for number, samples in enumerate((tensors, arrays, pictures))]
    assert [path.name for path in saved[0]] == ["00000-0.png", "00001-1.png", "00002-0.png"]
    for number, picture in enumerate(pictures.images):
        pixels = np.array(picture)
        assert np.array_equal(pixels, np.round(arrays.images[number, ..., 0] * 255))
        assert all(np.array_equal(np.array(Image.open(paths[number])), pixels) for paths in saved)
    with pytest.raises(InputError, match="`output_type` 'latent': choose one of pt, np, pil"):
        pipeline.sample(1, output_type="latent")


def test_pictures_and_arrays_are_taken_as_tensors_are(pipeline):
    tensors, arrays, pictures = (pipeline.sample(2, seed=1, output_type=kind).images for kind in ("pt", "np", "pil"))
    (expected,) = pipeline.encode(tensors)
    colour = [picture.convert("RGB") for picture in pictures]
    for images in (arrays, pictures, colour, [np.array(picture) for picture in pictures]):
        assert (pipeline.encode(images)[0] == expected).float().mean() > 0.9  # but for rounding to 8 bits
    one = pictures[0].resize((40, 24))
    assert pipeline.reconstruct(one, "pil")[0].size == pipeline.complete(one, 1, output_type="pil").images[0].size
    assert abs(pipeline.reconstruct(pictures) - pipeline.reconstruct(tensors)).mean() < 0.1
    assert pipeline.reconstruct(torch.zeros(1, 1, 16, 24)).shape == (1, 1, 16, 24)


def test_a_pipeline_says_what_it_is_and_moves_as_one(tokenizer):
    pipeline = TwoStagePipeline(tokenizer, make_prior(tokenizer, 0, num_classes=2), make_prior(tokenizer, 1))
    assert repr(pipeline).splitlines() == [
        "TwoStagePipeline(",
        "  tokenizer: VQVAE, 1×12×20 images as 2 grids of 3×5 codes out of 16",
        "  prior-0: GatedPixelCNN, 3×5 codes out of 16",
        "  prior-1: GatedPixelCNN, 3×5 codes out of 16",
        "  classes: 2",
        "  device: cpu",
        ")",
    ]
    assert pipeline.to("meta") is pipeline and pipeline.device.type == "meta"
    assert {prior.device.type for prior in pipeline.priors} == {"meta"}


def test_a_saved_pipeline_is_loaded_again_and_mixes_with_no_other(tokenizer, pipeline, tmp_path):
    two = TwoStagePipeline(tokenizer, make_prior(tokenizer, 0, num_classes=2), make_prior(tokenizer, 1))
    two.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "prior-0", "prior-1", "tokenizer"]
    for again in (load(tmp_path), TwoStagePipeline.from_pretrained(tmp_path)):
        assert torch.equal(again.sample(2, seed=1).images, two.sample(2, seed=1).images)
    with pytest.raises(InputError, match=r"holds other priors \(prior-0, prior-1\)"):
        pipeline.save_pretrained(tmp_path)


def test_a_folder_of_several_priors_is_loaded_as_a_pipeline(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for number in (0, 1):
        make_prior(tokenizer, number).save_pretrained(tmp_path / f"prior-{number}")
    pipeline = load(tmp_path)
    assert [prior.grids for prior in pipeline.priors] == [(0,), (1,)]
    found = find_artifacts("cpu", run=str(tmp_path))
    assert found.prior_names == ["prior-0", "prior-1"] and set(found.folders) == {"tokenizer", "prior-0", "prior-1"}
    assert found.pipeline.sample(2, seed=1).images.equal(pipeline.sample(2, seed=1).images)


def test_artifacts_of_a_run_are_found_and_what_is_missing_is_told(small_run, tmp_path):
    whole = find_artifacts("cpu", run=str(small_run))
    assert whole.facts()["priors"] == [prior.fingerprint() for prior in whole.priors]
    assert len(set(whole.tokenizer_fingerprints().values())) == 1
    assert len(whole.codes) == 54 and len(whole.validation) == 6
    assert len(whole.images) == 6 and whole.left_out == warn_of_few(6, "images")
    shutil.copytree(small_run / "codes", tmp_path / "codes")
    alone = find_artifacts("cpu", run=str(tmp_path))
    assert [line.partition(" (")[0] for line in alone.left_out] == ["no tokenizer/", "no prior/"]
    with pytest.raises(InputError, match="both stages are needed"):
        _ = alone.pipeline
    with pytest.raises(InputError, match="nothing to check"):
        find_artifacts("cpu", run=str(tmp_path / "codes"))


def test_codes_that_are_plain_arrays_are_left_out_and_said_once(small_run, tmp_path):
    (tmp_path / "codes").mkdir()
    np.savez(tmp_path / "codes" / "codes.npz", np.zeros((3, 3, 5), np.uint8))
    found = find_artifacts("cpu", str(tmp_path), prior=(str(small_run / "prior"),))
    assert found.codes is None and "codes" not in found.folders
    assert [line for line in found.left_out if "codes.npz" in line] == [
        f"{tmp_path}/codes/codes.npz: arrays do not say enough to be checked; a code dataset does"
    ]


def test_artifacts_that_must_belong_together_are_refused_where_they_do_not(small_run, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for parts in ({"prior": [str(small_run / "prior")]}, {"codes": str(small_run / "codes")}):
        with pytest.raises(InputError, match="another tokenizer"):
            load_artifacts("cpu", tokenizer=str(tmp_path / "tokenizer"), **parts)
    with pytest.raises(InputError, match="a tokenizer is needed here"):
        load_artifacts("cpu", tokenizer=str(small_run / "prior"))


def test_a_request_gives_each_batch_its_conditions(pipeline):
    request = make_request(pipeline.priors, 5, [0, 1, 1, 0, 1])
    assert request.given(range(1, 4)).labels.tolist() == [1, 1, 0] and request.known_of(range(5)) is None

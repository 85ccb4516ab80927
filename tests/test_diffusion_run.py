"""A latent diffusion through the commands: trained, stopped and continued, drawn from, completed, watched, judged.

Its codes are 3×5.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from codegrid import InputError, TwoStagePipeline, load
from codegrid.data.codes import CodeDataset
from codegrid.pipelines.diagnosis.run import examine
from codegrid.pipelines.drawing.curves import plot_curves
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.generation.artifacts import find_artifacts
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.training.prior import PriorObjective, train_prior
from codegrid.pipelines.viewer import actions

diffusers = pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
OPTIONS = {"channels": 8, "num_levels": 2, "num_layers": 1, "num_heads": 2, "num_inference_steps": 4}


def settings_of(folder, **changes):
    shared = {"steps": 12, "batch_size": 16, "lr": 0.01, "precision": "fp32", "validate_every": 4}
    return TrainPrior(run=str(folder), model="diffusion", options=OPTIONS, **{**shared, **changes})


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    """A folder with tokenizer/, codes/ and a diffusion in prior/."""
    folder = tmp_path_factory.mktemp("denoised")
    for name in ("tokenizer", "codes", "codes_test"):
        (folder / name).symlink_to(small_run / name)
    train_prior(settings_of(folder))
    return folder


def test_the_best_by_its_own_measure_is_kept_with_vectors_of_the_tokenizer_and_scales_of_the_training_codes(run):
    prior, tokenizer = load(run / "prior"), load(run / "tokenizer")
    rows = prior.provenance["history"]
    assert [row["step"] for row in rows] == [4, 8, 12] and all("denoising_error" in row for row in rows)
    assert prior.provenance["step"] == min(rows, key=lambda row: row["denoising_error"])["step"]
    assert torch.equal(prior.vectors.entries[0], tokenizer.quantizer.entries(0))
    codes = CodeDataset(run / "codes")
    spread, mean = torch.std_mean(prior.latents(codes.batch(range(len(codes))).codes), (0, 2, 3), correction=0)
    assert mean.abs().max() < 0.3 and (spread[spread > 0] - 1).abs().max() < 0.3  # without those validated on
    assert not (run / "prior" / "last").exists() and not (run / "prior" / "best").exists()
    unet = diffusers.UNet2DConditionModel.from_pretrained(run / "prior", subfolder="unet")
    assert torch.equal(unet.conv_in.weight, prior.network.unet.conv_in.weight)
    assert diffusers.DDPMScheduler.from_pretrained(run / "prior", subfolder="scheduler").config.clip_sample is False


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(run, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stopping(self, player, wrapped, batch, moment):
        if moment.step == 6:
            raise Stop
        return losses(self, player, wrapped, batch, moment)

    losses, settings = PriorObjective.losses, settings_of(run, output=str(tmp_path / "again"), save_every=3)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(PriorObjective, "losses", stopping)
        train_prior(settings)
    train_prior(settings)
    assert load(tmp_path / "again").fingerprint() == load(run / "prior").fingerprint()
    train_prior(replace(settings, overwrite=True, steps=1))  # its folders for diffusers are emptied with the others


def test_evaluate_and_the_doctor_judge_it_by_its_error_and_its_samples(run, capsys):
    metrics = evaluate(Evaluate(run=str(run), output=str(run / "figures")))
    words = capsys.readouterr().out
    assert 0 < metrics["denoising_error"] < 2 and "bits_per_code" not in metrics
    assert metrics["measured_on"]["denoising_error"]["given_labels"]
    assert "no bits_per_code, bits_per_image, bound_bits_per_dim: the prior has no likelihood" in words
    report = examine(find_artifacts("cpu", run=str(run)), num_samples=8)
    (prior,) = report.priors
    assert {"training_error", "held_out_error", "sample_shift", "sample_distance"} <= prior["metrics"].keys()
    assert "sample_bits" not in prior["metrics"] and any("has no likelihood" in line for line in report.left_out)
    assert not any("--temperature" in finding.remedy or "--top" in finding.remedy for finding in report.findings)


def test_pictures_are_completed_from_any_part_and_watched_as_a_whole(run):
    pipeline = TwoStagePipeline.from_pretrained(run)
    images, keep = torch.rand(2, 1, 12, 20) * 2 - 1, torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
    (codes,), (known,) = pipeline.complete(images, keep, 2, seed=0).codes, pipeline.encode(images)
    assert torch.equal(codes[:, keep.bool()], known.repeat_interleave(2, 0)[:, keep.bool()])
    pictures = list(actions.sample(pipeline, 2, seed=1, solver="dpm-solver"))
    assert len(pictures) == 3 and pictures[-1].finished and all(bool((each.images != 0).any()) for each in pictures)
    (expected,) = pipeline.sample(2, seed=1, solver="dpm-solver").codes
    assert torch.equal(*pictures[-1].codes, expected)
    with pytest.raises(InputError, match="`temperature` has no effect on this prior, a DiffusionPrior"):
        pipeline.sample(2, temperature=0.5)


def test_its_card_and_its_curves_speak_of_what_it_has(run):
    card = (run / "prior" / "README.md").read_text()
    assert "It has no likelihood" in card and "--guidance-scale" in card and "temperature" not in card
    found = find_artifacts("cpu", run=str(run))
    figure = plot_curves(SimpleNamespace(artifacts=found, tokenizer=found.tokenizer), None)
    assert "Denoising" in {axes.get_title() for axes in figure.axes}


def test_a_plan_shows_it_no_codes_and_writes_nothing(run, tmp_path, capsys):
    train_prior(settings_of(run, output=str(tmp_path / "planned"), dry_run=True))
    assert not Path(tmp_path / "planned").exists() and "grids of codes" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.xdist_group("two")
@pytest.mark.parametrize("shard", [[], ["--shard"]])
def test_two_processes_learn_what_one_does(shard, two, run, tmp_path):
    flags = ["--run", run, "--model", "diffusion", "--steps", 12, "--batch-size", 16, "--lr", 0.01]
    flags += ["--precision", "fp32", "--validate-every", 4, "--output", tmp_path / "prior", *shard]
    flags += [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", value)]
    two.run("train_prior", *flags)
    one, other = (load(folder).provenance["history"] for folder in (run / "prior", tmp_path / "prior"))
    for ours, theirs in zip(one, other, strict=True):
        assert ours["denoising_error"] == pytest.approx(theirs["denoising_error"], rel=1e-3)

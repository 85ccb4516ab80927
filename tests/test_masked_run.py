"""A MaskGIT through the commands: trained, drawn from, completed, watched, measured, examined.

Its codes are 3×5.
"""

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

from codegrid import MaskGIT, TwoStagePipeline
from codegrid.errors import InputError
from codegrid.pipelines.diagnosis.run import examine
from codegrid.pipelines.drawing.curves import plot_curves
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.generation.artifacts import find_artifacts
from codegrid.pipelines.generation.request import make_request
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.training.prior import train_prior
from codegrid.pipelines.viewer import actions
from codegrid.sampling_config import SamplingConfig


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    """A folder with tokenizer/, codes/ and a MaskGIT in prior/."""
    folder = tmp_path_factory.mktemp("masked")
    for name in ("tokenizer", "codes", "codes_test"):
        (folder / name).symlink_to(small_run / name)
    options = {"channels": 16, "num_layers": 1, "num_heads": 2}
    settings = {"steps": 30, "batch_size": 16, "lr": 0.01, "precision": "fp32", "validate_every": 10}
    train_prior(TrainPrior(run=str(folder), model="maskgit", options=options, **settings))
    return folder


def test_evaluate_reports_the_bound_of_the_steps_that_are_drawn_and_the_lowest(run, capsys):
    metrics = evaluate(Evaluate(run=str(run), output=str(run / "figures")))
    again = evaluate(Evaluate(run=str(run), output=str(run / "again"), num_inference_steps=(15,)))
    words = capsys.readouterr().out
    assert metrics["bits_per_image"] != metrics["bits_per_image_bound"] == again["bits_per_image_bound"]
    assert again["bits_per_image"] == again["bits_per_image_bound"] == pytest.approx(15 * again["bits_per_code_bound"])
    told = metrics["measured_on"]
    assert [told[name]["num_inference_steps"] for name in ("bits_per_code", "bits_per_code_bound")] == [[8], [15]]
    assert {told[name]["likelihood"] for name in ("bits_per_code", "bits_per_image_bound")} == {"bound"}
    assert told["bound_bits_per_dim"]["num_inference_steps"] == [8]
    assert (
        "bits_per_image, bound_bits_per_dim: an upper bound" in words
        and "in a random order in 8 steps: do not compare" in words
    )
    with pytest.raises(InputError, match="`num_inference_steps` 16: this prior can take at most 15 steps"):
        evaluate(Evaluate(run=str(run), output=str(run / "refused"), num_inference_steps=(16,)))
    assert not (run / "refused").exists()


def test_every_setting_of_a_drawing_is_told_with_its_samples(run):
    pipeline = TwoStagePipeline.from_pretrained(run)
    request = make_request(pipeline.priors, 2, configs=[SamplingConfig(unmask_order="halton", guidance_scale=2.0)])
    assert vars(request.configs[0]) == {
        "temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 2.0, "guidance_schedule": "growing",
        "num_inference_steps": 8, "choice_temperature": 4.5, "unmask_order": "halton", "mask_schedule": "cosine",
        "solver": None,
    }  # fmt: skip
    others = [
        {}, {"num_inference_steps": 3}, {"choice_temperature": 0.0}, {"unmask_order": "random"},
        {"mask_schedule": "root"},
    ]  # fmt: skip
    drawn = [pipeline.sample(6, seed=0, **settings).codes[0] for settings in others]
    assert not any(torch.equal(one, other) for one, other in combinations(drawn, 2))


def test_pictures_are_completed_from_any_part_and_watched_while_their_sites_appear(run):
    pipeline = TwoStagePipeline.from_pretrained(run)
    images, keep = torch.rand(2, 1, 12, 20) * 2 - 1, torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
    (codes,), (known,) = pipeline.complete(images, keep, 2, seed=0).codes, pipeline.encode(images)
    assert torch.equal(codes[:, keep.bool()], known.repeat_interleave(2, 0)[:, keep.bool()])
    pictures = list(actions.sample(pipeline, 2, num_inference_steps=4, seed=1))
    grey = [float((picture.images == 0).double().mean()) for picture in pictures]
    assert len(pictures) == 3 and pictures[-1].finished and grey[0] > grey[1] > grey[2]


def test_the_doctor_compares_training_and_held_out_grids_by_bounds_of_equal_noise(run, monkeypatch):
    found = find_artifacts("cpu", run=str(run))
    report = examine(found, num_samples=8)
    (prior,) = report.priors
    assert prior["likelihood"] == "bound" and {"training_bits", "held_out_bits", "sample_bits"} <= set(prior["metrics"])
    assert any("its likelihood is a bound" in words for words in report.left_out)
    seen = []
    monkeypatch.setattr(MaskGIT, "nll", lambda self, codes, given, noise, steps: seen.append(noise) or uniform(codes))
    examine(found, num_samples=8)
    assert len(seen) == 3 and len({(each.seed, each.first_index, each.purpose) for each in seen}) == 1


def uniform(codes):
    return tuple(torch.ones(grid.shape) for grid in codes)


def test_its_card_and_its_curves_say_that_its_bits_are_a_bound(run):
    card = (run / "prior" / "README.md").read_text()
    assert "bits per code are an upper bound" in card and "--complete PICTURES" in card
    found = find_artifacts("cpu", run=str(run))
    figure = plot_curves(SimpleNamespace(artifacts=found, tokenizer=found.tokenizer), None)
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles[-1] == "Prior (its bits are an upper bound): 30 steps"


def test_the_page_has_a_control_for_each_setting_and_empty_ones_leave_it_to_the_prior(run):
    gradio = pytest.importorskip("gradio")
    from codegrid.pipelines.viewer.answers import Answers
    from codegrid.pipelines.viewer.sections import add_sampling

    pipeline = TwoStagePipeline.from_pretrained(run)
    answers = Answers(pipeline.tokenizer, pipeline, None)
    with gradio.Blocks():
        controls, _ = add_sampling(answers)
    assert answers.controls == [name for name in vars(SamplingConfig()) if name != "solver"]
    *_, (_, drawn, _) = answers.sample([], 2, *(control.value for control in controls))
    assert torch.equal(drawn.codes[0], pipeline.sample(2, seed=0).codes[0])
    chosen = dict(zip(answers.controls, (control.value for control in controls), strict=False))
    chosen |= {"unmask_order": "random", "num_inference_steps": 3}
    *_, (_, drawn, _) = answers.sample([], 2, *chosen.values(), 5)
    expected = pipeline.sample(2, seed=5, unmask_order="random", num_inference_steps=3)
    assert torch.equal(drawn.codes[0], expected.codes[0])

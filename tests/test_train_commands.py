"""What the commands that train make of their settings: models by name, what they remember, what they refuse."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_bars
from PIL import Image
from safetensors.torch import load_file
from small_priors import ALL, build_prior
from toy_priors import UniformPrior
from written_codes import HEADER, LAYOUTS, draw_codes, export, shard_of

from codegrid import CodeDataset, TwoStagePipeline, load, register
from codegrid.codes import Grid, Losses, Moment, make_layout
from codegrid.data.images import ImageBatch
from codegrid.data.sources import load_images
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training import prior as training_prior
from codegrid.pipelines.training.chosen_prior import choose_grids, make_prior
from codegrid.pipelines.training.missing_codes import missing_codes
from codegrid.pipelines.training.prior import PriorObjective, train_prior
from codegrid.pipelines.training.prior import build_prior as build_prior_to_train
from codegrid.pipelines.training.tokenizer import TokenizerObjective, build_tokenizer, train_tokenizer
from codegrid.pipelines.training.trainer import fused_adam
from codegrid.protocols import AdamSettings
from codegrid.registry import BUILT_IN
from codegrid.stage1_vqvae.quantizers import QUANTIZERS

NARROW = {"hidden_channels": 16}


@pytest.fixture
def settings(bars_file, tmp_path):
    return TrainTokenizer(
        output=str(tmp_path / "tokenizer"), dataset="npz", data_root=str(bars_file), steps=3, batch_size=8,
        precision="fp32", options=NARROW,
    )  # fmt: skip


class GivenPrior(UniformPrior):
    """Learns one number, and wants the coarser grids in the batches that it is given."""

    def __init__(self, layout, grids=None, num_classes=0, given_layout=(), given_grids=()):
        super().__init__(layout, grids, num_classes, given_grids)
        self.number = torch.nn.Parameter(torch.ones(()))
        self.config["given_layout"] = [grid.as_json() for grid in make_layout(given_layout)]

    def forward(self, codes, given=None, moment=None):
        assert [grid.shape[1:] for grid in codes] == [grid.shape for grid in self.layout]
        assert [grid.shape[0] for grid in given.codes] == [len(codes[0])] * len(self.given_grids)
        return Losses({"nll": self.number.square()}, {})


class MutePrior(GivenPrior):
    likelihood = "none"


class FlatPrior(GivenPrior):
    """Has no place for coarser grids."""

    def __init__(self, layout, grids=None, num_classes=0):
        super().__init__(layout, grids, num_classes)


register("prior", "given", GivenPrior)
register("prior", "flat", FlatPrior)
register("prior", "mute", MutePrior)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    """Codes of two grids of different shapes."""
    layout = LAYOUTS["pyramid"]
    folder, codes = tmp_path_factory.mktemp("pyramid") / "codes", draw_codes(layout)
    header = replace(HEADER, grids=[grid.as_json() for grid in layout])
    export(folder, header, lambda rows: shard_of(rows, codes))
    return folder


@pytest.fixture
def prior_settings(pyramid, tmp_path):
    return TrainPrior(
        output=str(tmp_path / "prior"), codes=str(pyramid), model="given", steps=10, batch_size=4, precision="fp32",
        validate_every=5,
    )  # fmt: skip


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_can_be_trained_and_the_model_remembers_how(quantizer, settings, capsys):
    train_tokenizer(replace(settings, quantizer=quantizer, accumulate=2))
    said = capsys.readouterr().out
    assert "54 images of 1×12×20; fp32" in said and "never used" in said
    tokenizer = load(settings.output)
    assert type(tokenizer.quantizer) is QUANTIZERS[quantizer] and not tokenizer.training
    told = tokenizer.provenance
    assert told["dataset"] == "npz" and told["classes"] == ["0", "1"] and told["steps"] == 3
    assert told["metrics"]["images"] == 6 and len(told["metrics"]["grids"]) == len(tokenizer.layout)
    assert [row["step"] for row in told["history"]] == [1, 2, 3]
    assert "reconstruction_loss" in told["history"][0] and "psnr" in told["history"][0]
    assert "batch_perplexity" not in told["history"][0], "that of a piece would say nothing"


def test_options_reach_the_model_and_its_quantizer(settings):
    given = {"num_embeddings": 16, "kmeans_steps": 2, "distance": "cosine", "anchors": "random"}
    train_tokenizer(replace(settings, quantizer="clustered", options={**NARROW, **given}))
    config = load(settings.output).config
    assert {name: config[name] for name in given} == given and config["hidden_channels"] == 16


def test_an_option_that_the_quantizer_does_not_have_is_refused_by_name(settings, tmp_path):
    with pytest.raises(InputError, match=r"`fsq_levels`.*ema"):
        train_tokenizer(replace(settings, options={"fsq_levels": [4, 4]}))
    assert not (tmp_path / "tokenizer").exists()


def test_the_perplexity_of_a_batch_is_told_for_each_grid_where_there_are_several(settings):
    train_tokenizer(replace(settings, quantizer="residual", options={**NARROW, "num_quantizers": 3}))
    row = load(settings.output).provenance["history"][-1]
    each = [row[f"batch_perplexity_{grid}"] for grid in range(3)]
    assert row["batch_perplexity"] == pytest.approx(sum(each) / 3)


def test_a_shift_that_leaves_nothing_of_the_image_is_refused(settings):
    with pytest.raises(InputError, match="`shift` 12: the images are only 12 wide"):
        train_tokenizer(replace(settings, shift=12))


def test_images_of_one_colour_are_refused(settings, tmp_path):
    np.savez(tmp_path / "grey.npz", np.full((20, 8, 8, 1), 7, dtype=np.uint8), np.zeros(20, dtype=np.int64))
    with pytest.raises(InputError, match="are of a single colour"):
        train_tokenizer(replace(settings, data_root=str(tmp_path / "grey.npz")))


def test_images_are_changed_by_the_step_and_their_place_in_it_alone(settings, bars_file):
    settings = replace(settings, flip=True, shift=3, crop=0.8)
    images = load_images("npz", bars_file, "train")
    tokenizer = build_tokenizer(settings, images)
    objective = TokenizerObjective(tokenizer, images, images, settings)
    batch = ImageBatch(torch.from_numpy(draw_bars(4)[0]).permute(0, 3, 1, 2), None)
    seen = []

    def look(x, moment):
        seen.append(x)
        return tokenizer(x)

    for step, first in ((5, 0), (5, 0), (6, 0), (5, 4)):
        objective.losses("tokenizer", look, batch, Moment(step, 10, Noise(0, first, 4, purpose=("step", step))))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[3])


def test_weights_follow_from_the_seed(settings, bars_file):
    images = load_images("npz", bars_file, "train")
    one, same, other = (build_tokenizer(replace(settings, seed=seed), images).fingerprint() for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    "wanted,available,chosen", [((), 2, (0, 1)), ((1,), 2, (1,)), ((2, 1), 4, (1, 2)), ((0,), 1, (0,))]
)
def test_a_prior_learns_the_grids_that_are_named_or_all(wanted, available, chosen):
    assert choose_grids(wanted, available) == chosen


@pytest.mark.parametrize(
    "wanted,words", [((2,), "`grid` 2: these codes have the grids 0 to 1"), ((0, 0), "each once"), ((0, 2), "0 to 1")]
)
def test_grids_that_are_not_there_or_do_not_follow_on_each_other_are_refused(wanted, words):
    with pytest.raises(InputError, match=words):
        choose_grids(wanted, 2)


@pytest.mark.parametrize(
    "model,options,kept",
    [
        ("given", {}, {5}),  # the first of equally good ones
        ("pixelcnn", {"channels": 4, "num_layers": 1, "condition_blocks": 0}, {5, 10}),
    ],
)
def test_a_prior_of_a_fine_grid_is_given_the_coarser_ones(prior_settings, model, options, kept):
    train_prior(replace(prior_settings, grid=(1,), model=model, options=options))
    prior = load(prior_settings.output)
    coarse, fine = LAYOUTS["pyramid"]
    assert prior.layout == (fine,) and prior.grids == (1,) and prior.given_grids == (0,)
    assert prior.config["given_layout"] == [coarse.as_json()]
    assert prior.provenance["layout"] == [grid.as_json() for grid in LAYOUTS["pyramid"]]
    assert prior.provenance["tokenizer_fingerprint"] == HEADER.tokenizer_fingerprint
    assert prior.provenance["classes"] == ["ant", "bee"] and prior.conditions.num_classes == 2
    assert prior.provenance["step"] in kept


def test_a_prior_that_cannot_be_given_coarser_grids_is_refused_for_a_fine_one(prior_settings, tmp_path):
    with pytest.raises(InputError, match="`grid` 1: a flat prior cannot be conditioned on the coarser grids"):
        train_prior(replace(prior_settings, grid=(1,), model="flat"))
    assert not (tmp_path / "prior").exists()


def test_of_a_prior_without_a_likelihood_the_last_is_kept(prior_settings, capsys):
    train_prior(replace(prior_settings, model="mute", unconditional=True))
    said = capsys.readouterr().out
    assert "no likelihood" in said and "last after 10 of 10 steps" in said and "unconditional" in said
    prior = load(prior_settings.output)
    assert prior.provenance["step"] == 10 and prior.provenance["classes"] == []
    assert not any("bits" in name for name in prior.provenance["history"][-1])


def test_a_prior_keeps_its_averages_and_the_weights_stay_in_the_state(prior_settings, tmp_path):
    train_prior(replace(prior_settings, keep="last"))
    kept = load(prior_settings.output).number
    (state,) = (tmp_path / "prior" / "state").glob("step-*/state.safetensors")
    tensors = load_file(state)
    assert torch.equal(tensors["prior.average.module.number"], kept) and tensors["prior.model.number"] < kept


def test_a_prior_learns_arrays_of_other_programs_and_of_a_tokenizer_that_is_named(small_run, tmp_path, capsys):
    codes = CodeDataset(small_run / "codes")
    np.savez(tmp_path / "codes.npz", codes=codes.batch(range(54)).codes[0], labels=codes.labels)
    settings = TrainPrior(
        output=str(tmp_path / "a"), codes=str(tmp_path / "codes.npz"), steps=1, batch_size=4, precision="fp32",
        options={"channels": 8, "num_layers": 2},
    )  # fmt: skip
    train_prior(settings)
    said = capsys.readouterr().out
    assert "codes.npz does not name its tokenizer: read as 3×5 codes out of" in said and "only 5 held-out" in said
    assert load(settings.output).provenance["tokenizer_fingerprint"] == ""
    train_prior(replace(settings, output=str(tmp_path / "b"), tokenizer=str(small_run / "tokenizer")))
    assert load(small_run / "tokenizer").layout == load(tmp_path / "b").layout
    TwoStagePipeline.from_parts(small_run / "tokenizer", tmp_path / "b")  # raises where they do not go together


def test_a_prior_remembers_which_part_it_learnt(prior_settings, pyramid):
    train_prior(prior_settings)
    assert load(prior_settings.output).provenance["split"] == CodeDataset(pyramid).header.split == "train"


GROWING = tuple(Grid((side, side), 9) for side in (1, 2, 4))
TABLES_OF_SCALES = {f"entries.{number}": torch.zeros(9, 2) for number in range(3)} | {
    "phi.weight": torch.zeros(1, 2, 2, 3, 3), "phi.bias": torch.zeros(1, 2)
}  # fmt: skip
EACH = "train one for each grid: with `grid` 0, then with `grid` 1, and so on to 2, or choose a `model` that"


@pytest.mark.parametrize("model,grid,tables,words,able", [
    ("pixelcnn", (), {}, f"{EACH} learns them together: ", {"transformer", "gpt", "wavenet", "maskgit"}),
    ("pixelsnail", (), TABLES_OF_SCALES, EACH, {"transformer", "gpt", "wavenet", "maskgit", "next-scale"}),
    ("next-scale", (), {}, "have no scales: .*; choose a `model` that learns",
     {"transformer", "gpt", "wavenet", "maskgit"}),
    ("next-scale", (1,), {}, "`grid` 1: a next-scale prior cannot be conditioned on the coarser grids; choose a "
     "`model` that learns them: ", {"pixelcnn", "pixelsnail", "transformer", "gpt", "wavenet", "maskgit"}),
])  # fmt: skip
def test_a_prior_that_cannot_learn_some_grids_names_all_that_can(model, grid, tables, words, able):
    settings = TrainPrior(codes="codes", output="prior", model=model, grid=grid)
    with pytest.raises(InputError, match=words) as told:
        make_prior(settings, GROWING, lambda: tables)
    assert set(str(told.value).rpartition(": ")[2].split(", ")) & set(BUILT_IN["prior"]) == able


def test_a_prior_with_impossible_options_is_not_told_to_learn_other_grids():
    settings = TrainPrior(codes="codes", output="prior", model="transformer", options={"channels": 12, "num_heads": 5})
    with pytest.raises(InputError, match="heads") as told:
        make_prior(settings, GROWING, dict)
    assert "`model`" not in str(told.value) and EACH not in str(told.value)


def test_grids_that_a_prior_cannot_learn_are_refused_before_they_are_made(run_without_codes):
    with pytest.raises(InputError, match=r"have no scales: .*; choose a `model` that learns them: pixelcnn, "):
        train_prior(replace(run_without_codes, model="next-scale", options={}))
    assert [path.name for path in Path(run_without_codes.run).iterdir()] == ["tokenizer"]


@pytest.mark.parametrize("name", ALL)
def test_weights_that_multiply_features_decay_and_norms_biases_and_embeddings_do_not(name):
    prior = build_prior(name, num_classes=2)
    optimizer = fused_adam(prior.parameters(), AdamSettings(weight_decay=0.5), prior)
    before = {key: value.clone() for key, value in prior.named_parameters()}
    for parameter in prior.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    embeddings = [key for key, module in prior.named_modules() if isinstance(module, torch.nn.Embedding)]
    expected = {key for key, value in before.items() if value.ndim > 1} - {f"{key}.weight" for key in embeddings}
    assert {key for key, value in prior.named_parameters() if not torch.equal(value, before[key])} == expected


def test_a_prior_is_trained_by_the_adam_that_it_wants_or_with_the_decay_that_is_given(prior_settings, pyramid):
    codes = CodeDataset(pyramid)

    def groups(model, **given):
        settings = replace(prior_settings, model=model, grid=(0,), **given)
        prior = build_prior_to_train(settings, codes)
        (player,) = PriorObjective(prior, codes, codes, settings).players.values()
        found = player.make_optimizer(prior.parameters()).param_groups
        return {group["betas"] for group in found}, [group["weight_decay"] for group in found]

    assert groups("pixelcnn") == groups("given") == ({(0.9, 0.999)}, [0])
    assert groups("transformer") == groups("maskgit") == ({(0.9, 0.95)}, [0.05, 0])
    assert groups("pixelcnn", weight_decay=0.1) == ({(0.9, 0.999)}, [0.1, 0])
    assert groups("maskgit", weight_decay=0.0) == ({(0.9, 0.95)}, [0])
    with pytest.raises(InputError, match="`weight_decay` -1: it must be a number of at least 0"):
        replace(prior_settings, weight_decay=-1)


@pytest.fixture
def run_without_codes(small_run, tmp_path):
    """Settings that train a prior in a run that holds a tokenizer alone."""
    shutil.copytree(small_run / "tokenizer", tmp_path / "run" / "tokenizer")
    return TrainPrior(
        run=str(tmp_path / "run"), steps=1, batch_size=4, precision="fp32", options={"channels": 8, "num_layers": 2}
    )


def test_a_prior_of_a_run_without_codes_exports_those_of_its_tokenizer_first(small_run, run_without_codes, monkeypatch):
    run, made = Path(run_without_codes.run), []
    monkeypatch.setattr(training_prior, "make_prior", lambda *facts: made.append(make_prior(*facts)) or made[-1])
    train_prior(replace(run_without_codes, dry_run=True))
    assert [path.name for path in run.iterdir()] == ["tokenizer"]
    made.clear()
    train_prior(run_without_codes)
    assert [prior.device.type for prior in made] == ["meta", "cpu"], "its weights are made once"
    for name in ("codes", "codes_test"):
        assert CodeDataset(run / name).header == CodeDataset(small_run / name).header
    assert load(run / "prior").provenance["classes"] == ["0", "1"]
    # so that its card can show samples, a row for each class
    assert "A row for each of its first classes" in (run / "prior" / "README.md").read_text()
    assert Image.open(run / "prior" / "samples.png").size == (5 * (8 * 22 + 2), 5 * (2 * 14 + 2))


def test_codes_whose_export_was_stopped_are_made_whole_and_whole_ones_are_left_alone(small_run, run_without_codes):
    run = Path(run_without_codes.run)
    (run / "codes_test").mkdir()
    assert list(missing_codes(run_without_codes)) == ["test", "train"]
    assert list(missing_codes(replace(run_without_codes, validation_codes="others"))) == ["train"]
    (run / "codes").symlink_to(small_run / "codes")
    assert not missing_codes(run_without_codes)


def test_codes_of_images_that_are_gone_name_the_command_that_takes_others(run_without_codes):
    note = Path(run_without_codes.run, "tokenizer", "run.json")
    note.write_text(note.read_text().replace("bars.npz", "gone.npz"))
    with pytest.raises(
        InputError,
        match=r"gone.npz, which is no longer there: give `dataset`.*`codegrid export-codes` can also encode other",
    ):
        train_prior(run_without_codes)

"""`--config`: settings out of a file, in each format; flags override them; every run leaves such a file."""

import json
from dataclasses import fields

import pytest
import yaml

from codegrid import InputError
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.running.config import describe_settings
from codegrid.pipelines.running.flags import name_of, parse
from codegrid.pipelines.running.options import resolve_options
from codegrid.pipelines.running.settings import Training
from codegrid.pipelines.sample import Sample
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.recipes.run import RECIPES


@pytest.fixture
def write(tmp_path):
    """Write a file of settings, and return the flags that name it."""

    def call(text, ending="yaml"):
        (tmp_path / f"mine.{ending}").write_text(text)
        return ["--config", str(tmp_path / f"mine.{ending}")]

    return call


@pytest.mark.parametrize(
    "ending,text",
    [
        ("yaml", "output: o\nquantizer: fsq\nfsq-levels: [8, 5]\nflip: true\nlr: 1e-3\n"),
        ("yml", "{output: o, quantizer: fsq, fsq_levels: [8, 5], flip: yes, lr: 0.001}"),
        ("toml", 'output = "o"\nquantizer = "fsq"\nfsq_levels = [8, 5]\nflip = true\nlr = 1e-3\n'),
        ("json", '{"output": "o", "quantizer": "fsq", "fsq_levels": [8, 5], "flip": true, "lr": 0.001}'),
    ],
)
def test_a_file_gives_settings_and_options(ending, text, write):
    flags = ["--output", "o", "--quantizer", "fsq", "--fsq-levels", "8", "5", "--flip", "--lr", "1e-3"]
    assert parse(TrainTokenizer, write(text, ending)) == parse(TrainTokenizer, flags)


def test_flags_override_a_file_switches_too(write):
    file = write("tokenizer: t\nprior: p\noutput: o\nlabels: 7\nseed: 3\ncompile: true\n")
    settings = parse(Sample, [*file, "--labels", "cat", "1", "--no-compile", "--output", "other"])
    assert (settings.prior, settings.labels, settings.seed) == (("p",), ("cat", "1"), 3)
    assert (settings.output, settings.compile, settings.backend) == ("other", False, "auto")


@pytest.mark.parametrize(
    "text,reason",
    [
        ("stepz: 3", "mine.yaml: there is no setting 'stepz': did you mean steps?"),
        ("xyzzy: 3", "mine.yaml: there is no setting 'xyzzy': the settings are named as the flags"),
        ("steps: 0", "mine.yaml: `steps` 0: it must be a whole number from 1"),
        ("flip: maybe", "mine.yaml: `flip` 'maybe': it must be true or false"),
        ("num_embeddings: many", "mine.yaml: `num_embeddings` 'many': it must be a whole number"),
        ("- 3", "mine.yaml: it must map names of settings to values"),
        ("{", "mine.yaml: it cannot be read"),
        ("plugin: not_to_be_found", "`plugin` not_to_be_found: it cannot be imported"),
    ],
)
def test_what_a_file_may_not_hold_is_named(text, reason, write):
    with pytest.raises(InputError) as caught:
        parse(TrainTokenizer, write(text))
    assert reason in str(caught.value)


@pytest.mark.parametrize("name,reason", [("mine.txt", "give a file that ends in .yaml"), ("none.yaml", "No such file")])
def test_a_file_that_is_none_is_named(name, reason, tmp_path):
    (tmp_path / "mine.txt").write_text("steps: 3")
    with pytest.raises(InputError, match=reason):
        parse(TrainTokenizer, ["--config", str(tmp_path / name)])


RUNS = [step for name in ("digits", "imagenet128") for step in RECIPES[name]("some where").steps()]


@pytest.mark.parametrize("settings", RUNS, ids=lambda settings: name_of(type(settings)))
def test_the_settings_that_a_run_leaves_make_the_same_run(settings, write):
    again = parse(type(settings), write(describe_settings(settings, name_of(type(settings)), settings.output)))
    for field in fields(settings):
        if field.name != "options":
            assert getattr(again, field.name) == getattr(settings, field.name)
    if isinstance(settings, Training):
        assert resolve_options(again) == resolve_options(settings)


def test_every_run_leaves_its_settings(small_run, run_script, tmp_path):
    models = ("--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior")
    done = run_script("sample", *models, "--num-samples", 2, "--format", "codegrid", "--output", tmp_path / "codes")
    assert done.code == 0
    for folder, name, value in (
        (small_run / "tokenizer", "num_embeddings", 16), (small_run / "prior", "channels", 8),
        (small_run / "codes", "tokenizer", [str(small_run / "tokenizer")]), (tmp_path / "codes", "num_samples", 2),
    ):  # fmt: skip
        assert yaml.safe_load((folder / "settings.yaml").read_text())[name] == value


def test_a_run_is_finished_for_the_settings_that_it_left(small_run, run_script):
    for name, command in (("tokenizer", "train_tokenizer"), ("prior", "train_prior"), ("codes", "export_codes")):
        done = run_script(command, "--config", small_run / name / "settings.yaml")
        assert done.code == 0 and "nothing to do" in done.out


def test_settings_of_one_call_are_not_left():
    settings = Evaluate(tokenizer="t", output="o", overwrite=True, dry_run=True, quiet=True, verbose=True, json=True)
    left = yaml.safe_load(describe_settings(settings, "evaluate", "o"))
    assert not {"overwrite", "dry_run", "quiet", "verbose", "json"} & left.keys() and left["tokenizer"] == ["t"]
    assert json.dumps(left) and "options" not in yaml.safe_load(
        describe_settings(TrainPrior(codes="c", output="o"), "train-prior", "o")
    )

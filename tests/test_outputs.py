"""Folders of results: found below `run`, numbered where none is named, emptied where that is asked for."""

import json
from pathlib import Path

import pytest

from codegrid import InputError
from codegrid.locks import releasing
from codegrid.pipelines.compress import Compress
from codegrid.pipelines.decode_codes import DecodeCodes
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.decoding import decode_codes
from codegrid.pipelines.generation.sampling import sample
from codegrid.pipelines.plot import Plot
from codegrid.pipelines.running.flags import parse
from codegrid.pipelines.running.outputs import clear_output, open_output, visible
from codegrid.pipelines.running.run_folder import Run
from codegrid.pipelines.sample import Sample
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer

SETTINGS = Sample(tokenizer="t", prior=("p",), output="o")


@pytest.fixture(autouse=True)
def no_locks_are_left():
    with releasing():
        yield


@pytest.fixture
def run(tmp_path):
    """A run's folder with an empty folder for each part."""
    for name in ("tokenizer", "codes", "codes_test", "prior-0", "prior-1"):
        (tmp_path / "run" / name).mkdir(parents=True)
    return str(tmp_path / "run")


def test_everything_is_found_below_the_folder_of_a_run(run):
    tokenizer, priors = (f"{run}/tokenizer",), (f"{run}/prior-0", f"{run}/prior-1")
    assert TrainTokenizer(run=run).output == f"{run}/tokenizer"
    export, held_out = ExportCodes(run=run), ExportCodes(run=run, split="test")
    assert (export.tokenizer, export.output, held_out.output) == (tokenizer, f"{run}/codes", f"{run}/codes_test")
    prior = TrainPrior(run=run)
    assert (prior.codes, prior.validation_codes, prior.output) == (f"{run}/codes", f"{run}/codes_test", f"{run}/prior")
    assert prior.tokenizer == tokenizer and TrainPrior(run=run, codes="c").tokenizer == ()
    drawn = Sample(run=run)
    assert (drawn.tokenizer, drawn.prior, drawn.output) == (tokenizer, priors, "")
    assert DecodeCodes(run=run).codes == Plot(run=run).codes == f"{run}/codes"
    assert Evaluate(run=run).prior == priors


def test_codes_that_were_exported_as_arrays_are_a_file_in_the_folder_of_codes(run):
    for folder, name in (("codes", "codes.npz"), ("codes_test", "codes.parquet")):
        Path(run, folder, name).touch()
    prior = TrainPrior(run=run)
    assert (prior.codes, prior.validation_codes) == (f"{run}/codes/codes.npz", f"{run}/codes_test/codes.parquet")
    assert Plot(run=run).codes == f"{run}/codes/codes.npz"


def test_a_comparison_of_two_sets_takes_no_models_of_the_run(run):
    assert Evaluate(run=run, images="a", against="b").prior == ()


def test_results_of_models_that_come_with_the_package_have_a_folder_of_their_own():
    export, held_out = (ExportCodes(pretrained="digits", split=split) for split in ("train", "test"))
    assert (export.output, held_out.output) == ("runs/digits/codes", "runs/digits/codes_test")
    assert Compress(pretrained="digits").output == "runs/digits/images.cgz"
    assert Compress(pretrained="digits", output="a.cgz").output == "a.cgz"


def test_a_part_that_is_given_comes_before_that_of_the_run(run):
    settings = Sample(run=run, prior=("p",), output="o")
    assert (settings.tokenizer, settings.prior, settings.output) == ((f"{run}/tokenizer",), ("p",), "o")


@pytest.mark.parametrize(
    "make,reason",
    [
        (lambda run: Sample(tokenizer="t"), "`prior`: give its folder, or `run`"),
        (lambda run: Sample(run=f"{run}/codes"), "codes: it holds no tokenizer/: `codegrid train-tokenizer` makes it"),
        (lambda run: TrainPrior(run=f"{run}/codes"), "codes: it holds no tokenizer/"),
        (lambda run: TrainPrior(), "`codes`: give its folder, or `run`"),
        (lambda run: DecodeCodes(run="nowhere"), "`run` nowhere: there is no such folder"),
        (lambda run: parse(TrainTokenizer, []), "`output`: give a folder for the results, or `run`"),
        (lambda run: Run("", TrainTokenizer()), "`output`: give a folder for the results, or `run`"),
        (lambda run: Evaluate(images="a"), "`images` and `against`: give both"),
        (
            lambda run: Evaluate(images="a", against="b", tokenizer="t"),
            "`images` and `against`: give both, and no models",
        ),
    ],
)
def test_what_is_missing_is_named(make, reason, run):
    with pytest.raises(InputError) as caught:
        make(run)
    assert reason in str(caught.value)


def test_results_without_a_name_get_numbered_folders(small_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    models = {"tokenizer": str(small_run / "tokenizer"), "prior": (str(small_run / "prior"),), "num_samples": 2}
    for seed, kind in ((0, "npz"), (1, "npz"), (0, "npz"), (0, "codegrid"), (0, "codegrid")):
        sample(Sample(**models, seed=seed, format=kind))
    left = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert left == ["samples", "samples-2", "samples-3"]
    said = capsys.readouterr().out
    assert "runs/samples-2: 2 samples" in said and "runs/samples is finished" in said
    assert "runs/samples-3 is finished" in said
    seeds = [json.loads((tmp_path / "runs" / name / "run.json").read_text())["seed"] for name in left[:2]]
    assert seeds == [0, 1]


def test_a_run_takes_over_the_backend_of_the_folder_that_it_continues_and_of_no_other(run):
    def begin(seed, backend):
        return Run("", Sample(run=run, seed=seed), "backend", backend=backend)

    first = begin(1, "native")
    first.start()
    first.finish_with(lambda folder: (folder / "samples.npz").write_bytes(b"drawn"))
    found = [begin(seed, "torch") for seed in (2, 1)]
    assert [(each.folder.name, each.record["settings"]["backend"]) for each in found] == [
        ("samples-2", "torch"), ("samples", "native"),
    ]  # fmt: skip


def test_numbered_folders_of_a_run_lie_in_it(run):
    assert str(open_output(Sample(run=run), lambda folder: folder)) == f"{run}/samples"


def decode(small_run, output, **more):
    parts = {"tokenizer": str(small_run / "tokenizer"), "codes": str(small_run / "codes_test")}
    decode_codes(DecodeCodes(**parts, output=str(output), **more))


def test_another_run_into_a_folder_needs_overwrite(small_run, tmp_path):
    decode(small_run, tmp_path)
    (tmp_path / "images-00007.npz").write_text("of an earlier run")
    with pytest.raises(InputError, match="or `overwrite`"):
        decode(small_run, tmp_path, shard_size=4)
    decode(small_run, tmp_path, shard_size=4, overwrite=True)
    assert visible(tmp_path) == {"run.json", "settings.yaml", "images.png", "images-00000.npz", "images-00001.npz"}


def test_overwriting_a_code_dataset_makes_it_again(small_run, tmp_path, run_script, bars_file):
    flags = ("--dataset", "npz", "--data-root", bars_file, "--tokenizer", small_run / "tokenizer", "--output", tmp_path)
    assert run_script("export_codes", *flags).code == 0
    other = run_script("export_codes", *flags, "--split", "test")
    assert other.code == 2 and "another --output, the earlier settings, or --overwrite" in other.err
    assert run_script("export_codes", *flags, "--split", "test", "--overwrite").code == 0
    assert json.loads((tmp_path / "manifest.json").read_text())["header"]["split"] == "test"


RECORD = json.dumps({"command": "sample", "settings": {}, "finished": True})


@pytest.fixture
def old(tmp_path):
    """The folder of an earlier run."""
    folder = tmp_path / "old"
    (folder / "state" / "step-00000001").mkdir(parents=True)
    (folder / "logs" / "codegrid").mkdir(parents=True)
    (folder / "samples").mkdir()
    for name in ("samples.npz", "README.md", "state/step-00000001/state.json", "logs/codegrid/events.out.3"):
        (folder / name).write_text("old")
    for name in ("samples/00000-3.png", ".lock", ".lock-owner"):
        (folder / name).write_text("process 1 on another machine")
    (folder / "run.json").write_text(RECORD)
    return folder


def test_the_folder_of_a_run_is_emptied(old):
    clear_output(old, SETTINGS)
    assert {path.name for path in old.iterdir()} <= {".lock", ".lock-owner"}


def test_a_run_that_is_made_again_still_knows_its_files(old):
    (old / "mine.onnx").write_text("old")
    (old / "run.json").write_text(json.dumps({**json.loads(RECORD), "finished": False, "files": {"mine.onnx": 3}}))
    clear_output(old, SETTINGS)
    assert {path.name for path in old.iterdir()} <= {".lock", ".lock-owner"}


def test_a_dry_run_empties_nothing(old):
    settings = Sample(tokenizer="t", prior=("p",), output=str(old), overwrite=True)
    object.__setattr__(settings, "dry_run", True)
    Run(settings.output, settings)
    assert (old / "samples.npz").exists() and (old / "run.json").exists()


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "notes.md",
        "my-photo.png",
        "mine/picture.png",
        ".git/config",
        "state/mine.txt",
        "prior/run.json",
        "samples/a.png",
    ],
)
def test_a_folder_that_holds_something_else_too_is_left_as_it_is(name, old):
    (old / name).parent.mkdir(exist_ok=True)
    (old / name).write_text("mine")
    with pytest.raises(InputError, match=f"also holds .*{name.split('/')[0]}.*, which no run leaves there"):
        clear_output(old, SETTINGS)
    assert (old / name).read_text() == "mine" and (old / "samples.npz").exists()


def test_a_folder_that_holds_an_input_is_left_as_it_is(old, tmp_path):
    (tmp_path / "link").symlink_to(old)
    for place in (old, tmp_path / "link", old / "samples.npz"):
        settings = Sample(tokenizer="t", prior=("p", str(place)), output=str(old), overwrite=True)
        with pytest.raises(InputError, match=r"`overwrite` would empty .*, where `prior` is: choose another `output`"):
            Run(settings.output, settings)
    assert (old / "samples.npz").exists() and (old / "run.json").exists()


@pytest.mark.parametrize("place", ["linked", "state/linked"])
def test_no_link_is_followed(place, old, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_text("mine")
    (old / place).symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="also holds"):
        clear_output(old, SETTINGS)
    assert (tmp_path / "mine" / "a.png").exists()


@pytest.mark.parametrize(
    "files",
    [
        {"a.png": ""}, {"run.json": "{}", "a.png": ""}, {"run.json": "not JSON"}, {"manifest.json": '{"format": "a"}'},
        {"settings.yaml": "seed: 3"}, {"config.json": "{}", "model.safetensors": ""},
    ],
)  # fmt: skip
def test_a_folder_that_no_run_has_left_is_not_emptied(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="is not a run's folder, and `overwrite` empties no other"):
        clear_output(tmp_path, SETTINGS)
    assert {path.name for path in tmp_path.iterdir()} == files.keys()

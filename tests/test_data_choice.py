"""The data set of a command: named, given by its path, or the one that the tokenizer was trained on; never another."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY_TOKENIZER
from PIL import Image

from codegrid.data.names import find_data
from codegrid.errors import InputError
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.inputs import load_inputs
from codegrid.pipelines.generation.artifacts import find_artifacts
from codegrid.pipelines.generation.chosen_data import choose_data, data_at_hand, learnt_data
from codegrid.pipelines.train_tokenizer import TrainTokenizer


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a folder and some files; data sets are there by name only."""
    (tmp_path / "pictures").mkdir()
    for name in ("a.npz", "a.npy", "a.parquet", "a.zip", "a.deb", "b.deb"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "given,found",
    [
        (("pictures", None), ("imagefolder", ("pictures",))),
        (("a.npz", None), ("npz", ("a.npz",))),
        (("./a.npy", None), ("npz", ("a.npy",))),
        (("a.parquet", None), ("hf:./a.parquet", ())),
        ((None, "pictures"), ("imagefolder", ("pictures",))),
        ((None, "a.npz"), ("npz", ("a.npz",))),
        (("mnist", "pictures"), ("mnist", ("pictures",))),
        (("hf:owner/name", "pictures"), ("hf:owner/name", ("pictures",))),
        (("mnist5k", None), ("mnist5k", ())),
        (("speech", ["a", "b"]), ("speech", ("a", "b"))),
        ((None, ["a.deb", "b.deb"]), ("speech", ("a.deb", "b.deb"))),
    ],
)
def test_a_path_is_read_by_what_it_is_and_a_name_as_it_stands(here, given, found):
    assert find_data(*given) == found


@pytest.mark.parametrize(
    "given,reason",
    [
        (("mnist5k", "pictures"), "`data_root` pictures: mnist5k reads no files"),
        (("picturse", None), "`dataset` 'picturse': there is no such folder .*hf:NAME, or one of mnist5k"),
        ((None, "picturse"), "`data_root` 'picturse': there is no such folder or file: give a folder of pictures"),
        (("pictures", "a.npz"), "leave `data_root` out"),
        (("imagefolder", ["a", "b"]), "`data_root` a b: imagefolder takes one place: give one, or `dataset` speech"),
        ((None, ["a.deb", "pictures"]), "`data_root` a.deb pictures: imagefolder takes one place"),
        (("speech", ["a", "b", "./a"]), r"`data_root` \./a is given twice"),
        (("mnist5k", ["a", "b"]), "`data_root` a b: mnist5k reads no files"),
        (("a.zip", None), "`dataset` a.zip is not read: give a folder of pictures"),
    ],
)
def test_what_is_not_there_or_not_read_is_refused_with_the_remedy(here, given, reason):
    with pytest.raises(InputError, match=reason):
        find_data(*given)


def test_training_reads_a_folder_that_is_given_in_either_way_and_says_where_digits_are_taken(here, capsys):
    for given in ({"dataset": "pictures"}, {"data_root": "pictures"}):
        settings = choose_data(TrainTokenizer(output="out", **given))
        assert (settings.dataset, settings.data_root) == ("imagefolder", ("pictures",))
    assert not capsys.readouterr().out
    assert choose_data(TrainTokenizer(output="out")).dataset == "mnist5k"
    assert "no data set given: using mnist5k" in capsys.readouterr().out


def tokenizer_from(folder, data=None, **provenance):
    """As much as is asked for of a tokenizer that a training into the folder left, with its note of the data."""
    if data is not None:
        (folder / "run.json").write_text(json.dumps({"command": "train-tokenizer", "data": data}))
    return SimpleNamespace(loaded_from=folder, provenance=provenance)


def test_the_data_of_the_training_are_found_from_elsewhere_and_below_its_folder(here):
    place = str(here / "pictures")
    tokenizer = tokenizer_from(here, ["imagefolder", [place]], dataset="imagefolder")
    assert learnt_data(tokenizer) == ("imagefolder", (place,))
    tokenizer.loaded_from = here / "best"
    assert learnt_data(tokenizer) == ("imagefolder", (place,))


@pytest.mark.parametrize(
    "data", [["imagefolder", ["gone"]], ["npz", ["gone"]], ["hf:/gone", []], ["speech", ["pictures", "gone"]]]
)
def test_data_that_are_gone_are_named_and_may_have_moved(here, data):
    tokenizer = tokenizer_from(here, data)
    with pytest.raises(InputError, match="gone, which is no longer there: give `dataset`"):
        learnt_data(tokenizer)
    assert learnt_data(tokenizer, "pictures") == ("speech" if data[0] == "speech" else "imagefolder", ("pictures",))


def test_a_model_from_elsewhere_names_public_data_and_asks_for_others(here):
    assert learnt_data(tokenizer_from(here, dataset="mnist")) == ("mnist", ())
    assert learnt_data(tokenizer_from(here, dataset="mnist"), "pictures") == ("mnist", ("pictures",))
    assert learnt_data(tokenizer_from(here, dataset="hf:owner/name")) == ("hf:owner/name", ())
    for told in ("imagefolder", "npz", "hf:name", "hf:./pictures", "hf:/etc", 3, None):
        with pytest.raises(InputError, match=r"it is unknown where the images are.*: give `dataset`"):
            learnt_data(tokenizer_from(here, dataset=told))


def refuse(path):
    raise PermissionError(13, "Permission denied", str(path))


def test_data_are_at_hand_where_they_lie_on_this_machine(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    place = str(here / "pictures")
    assert data_at_hand(tokenizer_from(here, dataset="mnist5k")) == ("mnist5k", ())
    for far in ("mnist", "hf:owner/name", "hf:./pictures", "imagefolder", None):
        assert data_at_hand(tokenizer_from(here, dataset=far)) is None
    assert data_at_hand(tokenizer_from(here, ["imagefolder", [place]])) == ("imagefolder", (place,))
    assert data_at_hand(tokenizer_from(here, [f"hf:{place}", []])) == (f"hf:{place}", ())
    assert data_at_hand(tokenizer_from(here, ["imagefolder", [f"{place} moved"]])) is None
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", refuse)
        assert data_at_hand(tokenizer_from(here, ["imagefolder", [place]])) is None
    (here / "run.json").unlink()
    (here / ".cache" / "codegrid" / "MNIST").mkdir(parents=True)
    assert data_at_hand(tokenizer_from(here, dataset="mnist")) == ("mnist", ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "elsewhere"))
    assert data_at_hand(tokenizer_from(here, dataset="mnist")) is None


@pytest.mark.parametrize("note", ["[]", "3", '{"command": "train-tokenizer", "data": [3, 4]}', "not JSON"])
def test_a_note_that_is_none_is_passed_over(here, note):
    (here / "run.json").write_text(note)
    assert learnt_data(tokenizer_from(here, dataset="mnist5k")) == ("mnist5k", ())


def test_scripts_take_the_data_that_the_tokenizer_learnt_and_say_so(small_run, bars_file, tmp_path, run_script):
    tokenizer = ("--tokenizer", small_run / "tokenizer")
    result = run_script("export_codes", *tokenizer, "--output", tmp_path / "codes", "--split", "test")
    assert result.code == 0 and f"data set of the tokenizer: npz {bars_file}" in result.out
    headers = [
        json.loads((folder / "manifest.json").read_text())["header"]
        for folder in (tmp_path / "codes", small_run / "codes_test")
    ]
    assert headers[0] == headers[1]
    assert run_script("plot", *tokenizer, "--output", tmp_path / "plot", "--what", "histogram").code == 0
    inputs = load_inputs(Evaluate(tokenizer=str(small_run / "tokenizer"), output=str(tmp_path / "e")))
    assert (inputs.settings.dataset, inputs.settings.data_root) == ("npz", (str(bars_file),))
    assert inputs.notes() == ["only 6 held-out images: figures that are measured on them are rough"]
    found = find_artifacts("cpu", run=str(small_run))
    assert len(found.images) == 6 and found.folders["images"] == str(bars_file)


def test_unreadable_pictures_that_training_skipped_are_skipped_later_too(tmp_path, run_script, capsys):
    (tmp_path / "pictures").mkdir()
    for i in range(40):
        Image.new("L", (8, 8), 6 * i).save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "pictures" / "7.png").write_bytes(b"no picture")
    tokenizer = tmp_path / "run" / "tokenizer"
    flags = ("--dataset", tmp_path / "pictures", "--output", tokenizer, *TINY_TOKENIZER)
    assert run_script("train_tokenizer", *flags).code == 2
    assert run_script("train_tokenizer", *flags, "--skip-unreadable").code == 0
    of_it = ("--tokenizer", tokenizer, "--output")
    done = run_script("export_codes", *of_it, tmp_path / "run" / "codes")
    assert done.code == 0 and "1 unreadable (7.png)" in done.out
    assert run_script("evaluate", *of_it, tmp_path / "judged", "--split", "train").code == 0
    assert len(find_artifacts("cpu", run=str(tmp_path / "run")).images) > 0
    named = ("--dataset", tmp_path / "pictures")
    assert run_script("export_codes", *named, *of_it, tmp_path / "other").code == 2  # others are not taken for sound

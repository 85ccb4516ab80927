"""`evaluate` with `images` and `against`: the distance of two sets of pictures, of whatever form they are."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import draw_bars
from PIL import Image

from codegrid import InputError
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation import classifier
from codegrid.pipelines.evaluation.frechet import FeatureStatistics, frechet_distance
from codegrid.pipelines.evaluation.run import evaluate


class FlatPixels(torch.nn.Module):
    """Features that one can check: the means of the rows."""

    def forward(self, images):
        return images.double().mean((1, 3))


def flat_pixels():
    return FlatPixels()


@pytest.fixture
def pictures(tmp_path):
    """Folders `a` and `b` of pictures of bars, `b` in class folders; a.npz, the same as `a`; `run` and `pngs`,
    which left it."""
    for name, seed in (("a", 0), ("b", 1)):
        images, labels = draw_bars(12, seed=seed)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = tmp_path / name / (("upright", "lying")[label] if name == "b" else ".")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(folder / f"{number:03}.png")
        np.savez(tmp_path / f"{name}.npz", images, labels)
    (tmp_path / "run").mkdir()
    for name, half in (("samples-00000", slice(6)), ("samples-00001", slice(6, 12))):
        np.savez(tmp_path / "run" / name, draw_bars(12, seed=0)[0][half])
    (tmp_path / "run" / "run.json").write_text('{"finished": true}')
    Image.new("L", (99, 99)).save(tmp_path / "run" / "samples.png")
    (tmp_path / "pngs").mkdir()
    shutil.copytree(tmp_path / "a", tmp_path / "pngs" / "samples")
    for name in ("run.json", "samples.png"):
        shutil.copy(tmp_path / "run" / name, tmp_path / "pngs")
    return tmp_path


@pytest.fixture
def compare(pictures):
    def call(images, against, how=f"{__name__}:flat_pixels"):
        sets = {"images": str(pictures / images), "against": str(pictures / against)}
        return evaluate(Evaluate(**sets, output=str(pictures / "out"), features=how, device="cpu", num_workers=0))

    return call


def statistics_of(images):
    statistics = FeatureStatistics()
    statistics.add(FlatPixels()(torch.from_numpy(images).permute(0, 3, 1, 2)))
    return statistics


@pytest.mark.parametrize("images", ["a", "a.npz", "run", "pngs"])
@pytest.mark.parametrize("against", ["b", "b.npz"])
def test_folders_files_and_what_a_run_left_are_compared_alike(images, against, compare, pictures):
    found = compare(images, against)
    expected = frechet_distance(*(statistics_of(draw_bars(12, seed=seed)[0]) for seed in (0, 1)))
    assert found["frechet_distance"] == pytest.approx(expected, rel=1e-6)
    assert (found["images"], found["against"]) == (12, 12)
    assert found["measured_on"]["frechet_distance"]["rank_deficient"]
    assert json.loads((pictures / "out" / "metrics.json").read_text()) == found
    assert compare(images, against) == found, "it is finished, and told again"


def test_folders_are_brought_to_one_size(compare, pictures):
    for number, picture in enumerate(draw_bars(3, height=25, width=40)[0]):
        (pictures / "large").mkdir(exist_ok=True)
        Image.fromarray(picture[..., 0]).save(pictures / "large" / f"{number}.png")
    assert compare("large", "b")["frechet_distance"] > 0


def test_a_classifier_learns_the_class_folders(compare, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 3)
    found = compare("a", "b", "classifier")
    assert found["measured_on"]["frechet_distance"]["extractor"]["name"] == "classifier"


def test_other_pictures_are_another_run(compare):
    compare("a", "b")
    with pytest.raises(InputError, match="was made with images"):
        compare("b", "b")


@pytest.mark.parametrize(
    "images,against,how,reason",
    [
        ("a", "b", "none", "`features`: name the network that compares the pictures"),
        ("b", "a", "classifier", "needs labels of two classes"),
        ("nowhere", "b", "classifier", "`images` .*nowhere: there are no pictures"),
        ("empty", "b", "classifier", "`images` .*empty: there are no pictures"),
        ("stopped", "b", "classifier", "`images` .*stopped is not finished: run its command again first"),
        ("a", "small.npz", "classifier", "needs labels"),
        ("a.npz", "small.npz", f"{__name__}:flat_pixels", "images of 1×12×20, .*small.npz of 1×8×8"),
        ("floats.npz", "b", "classifier", "arr_0 must be uint8"),
        ("one.npz", "b", "classifier", "fewer than the two pictures"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_nothing_written(images, against, how, reason, compare, pictures):
    (pictures / "empty").mkdir()
    (pictures / "empty" / "run.json").write_text('{"finished": true}')
    shutil.copytree(pictures / "run", pictures / "stopped")
    (pictures / "stopped" / "run.json").write_text('{"finished": false}')
    np.savez(pictures / "small", np.zeros((4, 8, 8, 1), np.uint8))
    np.savez(pictures / "one", np.zeros((1, 12, 20, 1), np.uint8))
    np.savez(pictures / "floats", np.zeros((4, 12, 20, 1)))
    with pytest.raises(InputError, match=reason):
        compare(images, against, how)
    assert not (pictures / "out").exists()

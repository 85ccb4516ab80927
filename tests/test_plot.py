"""`pipelines.plot`: which pictures it leaves, and what is in them."""

import sys
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.data import CodeDataset
from codegrid.data.sources import load_images
from codegrid.pipelines import TwoStagePipeline
from codegrid.pipelines.drawing.codebook import draw_codebook
from codegrid.pipelines.drawing.colours import colours_by_nearness, colours_by_number, paint, principal_components
from codegrid.pipelines.drawing.curves import draw_curves
from codegrid.pipelines.drawing.images import draw_samples
from codegrid.pipelines.drawing.material import Material
from codegrid.pipelines.drawing.places import count_places
from codegrid.pipelines.plot import pictures
from codegrid.pipelines.running import use_configs
from codegrid.stage1_vqvae import VQVAE


@pytest.fixture
def material(small_run, bars_file):
    pipeline = TwoStagePipeline.from_pretrained(small_run)
    return Material(pipeline.tokenizer, pipeline, load_images("npz", bars_file, "test"), None, 4, 0)


def settings_with(**changes):
    return use_configs.Plot(tokenizer="", output="", **changes)


def test_the_flag_offers_every_picture():
    assert list(get_args(use_configs.Picture)) == list(pictures())


def test_everything_that_the_parts_allow_is_drawn(small_run, bars_file, tmp_path, run_script):
    parts = ("--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior", "--codes", small_run / "codes")
    flags = ("--dataset", "npz", "--data-root", bars_file, *parts, "--output", tmp_path)
    assert run_script("plot", *flags).code == 0
    assert {path.stem for path in tmp_path.glob("*.png")} == set(pictures())
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            assert 640 <= image.width <= 1600 and np.asarray(image.convert("L")).std() > 5, path
    assert "nothing to do" in run_script("plot", *flags).out
    assert "choose another --output" in run_script("plot", *flags, "--what", "codes").err


def test_without_a_prior_only_the_tokenizers_pictures_are_drawn(small_run, bars_file, tmp_path, run_script):
    flags = ("--dataset", "npz", "--data-root", bars_file, "--tokenizer", small_run / "tokenizer")
    assert run_script("plot", *flags, "--output", tmp_path, "--what", "histogram", "curves").code == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"curves.png", "histogram.png"}
    assert len(list(tmp_path.glob("*.png"))) == 2


BAD = [
    ("--tokenizer {other} --prior {run}/prior --output {new}", "another tokenizer"),
    ("--tokenizer {other} --codes {run}/codes --output {new}", "another tokenizer"),
    ("--tokenizer {other} --what curves --output {new}", "remember no training"),
    ("--tokenizer {run}/tokenizer --what samples --output {new}", "add --prior"),
    ("--tokenizer {run}/tokenizer --output {run}/tokenizer", "run of TrainTokenizer"),
]


@pytest.mark.parametrize("flags,reason", BAD)
def test_what_cannot_be_drawn_is_refused_in_one_line(flags, reason, small_run, bars_file, tmp_path, run_script):
    VQVAE(1, (12, 20), hidden_channels=16, num_embeddings=16, embedding_dim=8).save_pretrained(tmp_path / "other")
    places = {"other": tmp_path / "other", "run": small_run, "new": tmp_path / "new"}
    result = run_script("plot", "--dataset", "npz", "--data-root", bars_file, *flags.format(**places).split())
    last = result.err.strip().splitlines()[-1]
    assert result.code == 2 and last.startswith("error: ") and reason in last
    assert not (tmp_path / "new").exists()


def test_near_entries_have_near_colours():
    torch.manual_seed(0)
    line = torch.linspace(0, 1, 32)[torch.randperm(32)]
    codebook = line[:, None] * torch.randn(1, 8)  # all on one line
    colours = colours_by_nearness(codebook)[line.argsort()]
    assert (colours.diff(dim=0).norm(dim=1) < 0.2).all()
    assert (colours[0] - colours[-1]).norm() > 0.5
    assert torch.allclose(principal_components(codebook).shares, torch.tensor([1.0, 0.0]).double(), atol=1e-6)


def test_a_codebook_of_one_dimension_has_two_coordinates():
    assert principal_components(torch.randn(5, 1)).coordinates.shape == (5, 2)


def test_every_code_has_a_colour_of_its_own():
    assert len(colours_by_number(512).unique(dim=0)) == 512


def test_a_code_grid_is_painted_site_by_site():
    colours = torch.rand(4, 3)
    painted = paint(torch.tensor([[[0, 3, 1]]]), colours, scale=2)
    assert painted.shape == (1, 3, 2, 6)
    assert torch.equal(painted[0, :, 1, 3], colours[3])


def test_places_are_counted_where_the_entries_are(material):
    entries = material.counts.argsort(descending=True)[:3]
    expected = torch.stack([(material.codes == entry).sum(0) for entry in entries])
    assert torch.equal(count_places(material, entries), expected)


def test_uses_are_counted_in_exported_codes_where_they_are_given(small_run, material):
    material.exported = CodeDataset(small_run / "codes")
    assert material.counts.sum() == 54 * 3 * 5
    assert material.counted == "54 exported grids"


def test_dead_entries_are_marked(material):
    material.counts = torch.tensor([5, 0, 0, 3] + [1] * 12)
    axes = draw_codebook(material, settings_with()).axes[0]
    assert "used: 14, never used: 2" in axes.get_title()
    assert [len(points.get_offsets()) for points in axes.collections] == [14, 2]


def test_curves_of_both_stages_are_drawn_from_their_histories(material):
    titles = {axes.get_title(): axes for part in draw_curves(material, settings_with()).subfigs for axes in part.axes}
    history = material.pipeline.prior.provenance["history"]
    held_out = titles["Cross-entropy of the codes"].lines[1]
    assert held_out.get_ydata().tolist() == [row["bits_per_code"] for row in history]
    assert "Perplexity of the codes" in titles


def test_a_history_that_is_none_is_passed_over(material):
    material.tokenizer.provenance["history"] = [{"step": "first"}, 3]
    assert len(draw_curves(material, settings_with()).subfigs) == 1


def test_samples_stand_in_rows_with_the_names_of_their_classes(material):
    axes = draw_samples(material, settings_with()).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1"]


def test_umap_is_asked_for_where_it_is_missing(small_run, bars_file, tmp_path, run_script, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    flags = ("--dataset", "npz", "--data-root", bars_file, "--tokenizer", small_run / "tokenizer")
    result = run_script("plot", *flags, "--output", tmp_path / "new", "--projection", "umap")
    assert result.code == 2 and "pip install umap-learn" in result.err
    assert not list((tmp_path / "new").glob("*"))


def test_umap_is_used_where_it_is_there(material, monkeypatch):
    class UMAP:
        def __init__(self, n_neighbors, random_state):
            assert n_neighbors < 16 and random_state == 0

        def fit_transform(self, vectors):
            return vectors[:, :2] * 0 + 7

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    axes = draw_codebook(material, settings_with(projection="umap")).axes[0]
    assert (axes.collections[0].get_offsets() == 7).all() and "UMAP" in axes.get_xlabel()


def test_colour_images_of_an_odd_size_are_drawn_too(tmp_path, run_script):
    torch.manual_seed(0)
    tokenizer = VQVAE(3, (13, 22), hidden_channels=8, num_embeddings=4, embedding_dim=1, downsampling=2)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    images = np.random.default_rng(0).integers(0, 256, (30, 13, 22, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images)
    flags = ("--dataset", "npz", "--data-root", tmp_path / "images.npz", "--tokenizer", tmp_path / "tokenizer")
    assert run_script("plot", *flags, "--output", tmp_path / "pictures").code == 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 5

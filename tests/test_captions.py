"""Captions: read beside pictures, from columns and packages, kept with codes, learnt by priors and asked for."""

import json
import re

import gradio as gr
import numpy as np
import pytest
import torch
from conftest import draw_bars
from PIL import Image
from toy_texts import build_text_prior

from codegrid import CodeDataset, TwoStagePipeline, load, load_images
from codegrid.codes import PAD, Signal
from codegrid.data.captions import choose_captions, read_captions
from codegrid.data.code_files import open_codes
from codegrid.data.codes import CodeBatch
from codegrid.data.splits import split_indices
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.pipelines.drawing.images import plot_samples
from codegrid.pipelines.drawing.material import Material
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.inputs import load_inputs
from codegrid.pipelines.evaluation.reconstruction import prior_inputs
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.artifacts import Artifacts
from codegrid.pipelines.generation.encoding import export_codes
from codegrid.pipelines.generation.request import make_request
from codegrid.pipelines.generation.sampling import sample
from codegrid.pipelines.plot import Plot
from codegrid.pipelines.sample import Sample
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.training.prior import train_prior
from codegrid.pipelines.viewer.answers import Answers
from codegrid.pipelines.viewer.examples import Examples
from codegrid.pipelines.viewer.page import build_page
from codegrid.stage1_vqvae.tokenizer import VQVAE

COUNT = 40
OF_BARS = (("an upright bar", "a bar from top to bottom"), ("a lying bar",))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of bars in two class folders, and a table of their captions beside it."""
    root = tmp_path_factory.mktemp("bars")
    images, labels = draw_bars(COUNT)
    rows = ["file_name,text"]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = f"{('upright', 'lying')[label]}/{number}.png"
        (root / "pictures" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(root / "pictures" / file)
        rows += [f'{file},"{text}"' for text in OF_BARS[label]]
    (root / "captions.csv").write_text("\n".join(rows))
    return root


@pytest.mark.parametrize(("name", "content"), [
    ("a.csv", 'file_name,text\na.png,"one, two"\na.png,three\nb.png, \n'),
    ("a.csv", '\ufeffCaption;Image\r\n"one, two";./a.png\r\nthree;a.png\r\n'),
    ("a.tsv", "id\tpath\tprompt\n1\ta.png\tone,  two\n2\ta.png\tthree\n\n"),
    ("a.jsonl", '{"file_name": "a.png", "text": ["one, two", "three", "three"]}\n\n'),
    ("a.jsonl", '{"image": "a.png", "caption": "one, two"}\n{"image": "a.png", "caption": "three"}'),
    ("a.jsonl", '{"image": "a.png", "caption": ["one,\u2028two", "three"]}\r\n'),  # no end of a line in JSON
])  # fmt: skip
def test_a_table_gives_each_file_its_captions(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert read_captions(tmp_path / name) == {"a.png": ("one, two", "three")}


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.txt", b"", "`captions` .*a.txt': give an existing file .csv .tsv .jsonl"),
    ("a.csv", b"file_name,title\na,b", "has the columns file_name, title, but none of text, caption"),
    ("a.csv", b"file_name,text\na.png\n", "row 2: 1 columns, but there are 2"),
    ("a.csv", b"file_name,text\na.png,\n", "holds no captions"),
    ("a.csv", b"", "has the columns , but none of file_name"),
    ("a.csv", b"file_name,text\na.png,\xff", "is not a table of captions in UTF-8"),
    ("a.jsonl", b'{"file_name": "a.png"', "line 1 is not JSON"),
    ("a.jsonl", b"[1]", r"line 1 \[1\]: it must be an object"),
    ("a.jsonl", b'{"file_name": "a.png", "text": [7]}', "line 1: a file name, and a text"),
])  # fmt: skip
def test_other_tables_are_refused_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        read_captions(tmp_path / name)
    assert "\n" not in str(error.value)


def test_captions_are_those_of_the_pictures_of_a_part(pictures):
    found = {}
    for split in ("train", "test", "all"):
        images = load_images(str(pictures / "pictures"), split=split, captions=pictures / "captions.csv")
        assert images.captions == [OF_BARS[images.classes[label] == "lying"] for label in images.labels]
        assert f"captions: {sum(map(len, images.captions))}, up to 2 an image" in str(images.found)
        found[split] = images.fingerprint()
    assert len({*found.values(), load_images(str(pictures / "pictures")).fingerprint()}) == 4


def test_captions_without_a_picture_are_counted_and_listed_and_pictures_without_one_are_counted(pictures, tmp_path):
    table = tmp_path / "some.csv"
    table.write_text("file,text\n0.png,first\nelsewhere/1.png,second\ngone.png,a\ngone.png,b\nlost\u202e.png,c")
    images = load_images(str(pictures / "pictures"), split="all", captions=table)
    assert images.captions[images.files.index("upright/0.png")] == ("first",)
    found = str(images.found)
    assert "left out: 4 captions that match no picture (elsewhere/1.png, gone.png, lost\\u202e.png)" in found
    assert f"{COUNT - 1} images without a caption" in found


@pytest.mark.parametrize(("rows", "words"), [
    ("gone.png,a", r"none of its 1 names is a picture in .* \(gone.png\): write them like"),
    ("same.png,a", "same.png may be lying/same.png and upright/same.png: write the folder, too"),
    (f"0.png,{'|'.join(map(str, range(101)))}", "0.png has 101 captions: give it at most 100"),
])  # fmt: skip
def test_captions_that_fit_no_picture_or_several_are_refused(pictures, tmp_path, rows, words):
    root = tmp_path / "pictures"
    for folder in ("lying", "upright"):
        (root / folder).mkdir(parents=True)
        Image.new("L", (8, 8)).save(root / folder / "same.png")
    Image.new("L", (8, 8)).save(root / "lying" / "0.png")
    (tmp_path / "a.csv").write_text("file_name,text\n" + rows.replace("|", "\n0.png,"))
    with pytest.raises(InputError, match=words):
        load_images(str(root), captions=tmp_path / "a.csv")


def test_captions_need_pictures_with_names(bars_file, pictures):
    with pytest.raises(InputError, match=r"`captions` .*: they go with a folder of pictures.*leave them out"):
        load_images(str(bars_file), captions=pictures / "captions.csv")


def test_captions_of_pictures_that_are_left_out_go_with_them(pictures, tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(5):
        Image.new("L", (8, 8), number).save(root / f"{number}.png")
    (root / "2.png").write_bytes(b"no picture")
    (tmp_path / "a.csv").write_text(
        "file_name,text\n" + "\n".join(f"{number}.png,text {number}" for number in range(5))
    )
    images = load_images(str(root), split="all", skip_unreadable=True, captions=tmp_path / "a.csv")
    assert images.files == [f"{number}.png" for number in (0, 1, 3, 4)]
    assert images.captions == [(f"text {number}",) for number in (0, 1, 3, 4)]
    assert images.images[:, 0, 0, 0].tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("column", ["text", "captions", "words"])
def test_captions_of_a_data_set_of_the_hub_are_in_a_column(tmp_path, column):
    datasets = pytest.importorskip("datasets")
    images = [Image.new("L", (6, 6), number) for number in range(5)]
    texts = (
        [["one", "two "], [], ["three"], ["one"], list(map(str, range(101)))]
        if column == "captions"
        else ["one", " ", "a\tb", "c", None]
    )
    features = datasets.Features({
        "image": datasets.Image(),
        column: datasets.Sequence(datasets.Value("string")) if column == "captions" else datasets.Value("string"),
    })  # fmt: skip
    datasets.Dataset.from_dict({"image": images, column: texts}, features=features).to_parquet(tmp_path / "a.parquet")
    many = tuple(map(str, range(100)))  # no more: each picture has a place for as many
    expected = {"captions": [("one", "two"), (), ("three",), ("one",), many]}
    expected = expected.get(column, [("one",), (), ("a b",), ("c",), ()])
    source = f"hf:{tmp_path / 'a.parquet'}"
    named = {} if column != "words" else {"captions": "words"}
    assert load_images(source, tmp_path / "cache", "all", **named).captions == expected
    if named:
        assert load_images(source, tmp_path / "cache", "all").captions is None
        with pytest.raises(InputError, match=r"`captions` 'image': .* has no such column of texts; it has words"):
            load_images(source, tmp_path / "cache", captions="image")


@pytest.fixture(scope="module")
def run(pictures):
    """A tokenizer, codes with captions, and a prior that has learnt them for a moment."""
    torch.manual_seed(0)
    options = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 8}
    VQVAE(Signal("image", 1, (12, 20)), quantizer="ema", **options).eval().save_pretrained(pictures / "tokenizer")
    export_codes(
        ExportCodes(
            tokenizer=str(pictures / "tokenizer"), dataset=str(pictures / "pictures"), split="all",
            captions=str(pictures / "captions.csv"), output=str(pictures / "codes"), views=2, shift=1,
        )
    )  # fmt: skip
    train_prior(training(pictures))
    return pictures


@pytest.fixture(scope="module")
def both(run):
    """The same, with a prior that has learnt the captions and the classes."""
    sizes = {"channels": 8, "num_layers": 1, "num_heads": 2, "text_layers": 1}
    train_prior(training(run, output=str(run / "both"), model="transformer", options=sizes))
    return run


def training(run, **changes):
    settings = {
        "codes": str(run / "codes"), "tokenizer": str(run / "tokenizer"), "output": str(run / "prior"),
        "model": "toy-text", "steps": 4, "batch_size": 8, "precision": "fp32", "num_words": 280,
    }  # fmt: skip
    return TrainPrior(**{**settings, **changes})


def sampling(run, output, **changes):
    settings = {"tokenizer": str(run / "tokenizer"), "prior": str(run / "prior"), "output": str(output)}
    return Sample(**{**settings, "num_samples": 3, **changes})


def test_codes_carry_the_captions_of_their_pictures(run):
    codes = CodeDataset(run / "codes")
    column = codes.batch(range(COUNT)).columns["captions"]
    assert codes.header.columns["captions"] == {"kind": "text", "shape": [2]} and codes.views == 2
    expected = [[*OF_BARS[codes.classes[label] == "lying"], ""][:2] for label in codes.labels]
    assert column == expected and codes[3].columns["captions"] == expected[3]


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_captions_come_back_from_files_of_other_formats(run, tmp_path, form):
    pytest.importorskip("pyarrow" if form == "parquet" else "numpy")
    export_codes(
        ExportCodes(
            tokenizer=str(run / "tokenizer"), dataset=str(run / "pictures"), captions=str(run / "captions.csv"),
            output=str(tmp_path), format=form, split="all", views=2, shift=1,
        )
    )  # fmt: skip
    codes = open_codes(tmp_path / f"codes.{form}", load(run / "tokenizer"))
    ours = CodeDataset(run / "codes").batch(range(COUNT), view=1)
    theirs = codes.batch(range(COUNT), view=1)
    assert theirs.columns["captions"] == ours.columns["captions"] and torch.equal(theirs.codes[0], ours.codes[0])
    assert codes.header.columns["captions"] == {"kind": "text", "shape": [2]}
    other = open_codes(tmp_path / f"codes.{form}", load(run / "tokenizer"))
    other.captions = other.captions[::-1]
    assert other.fingerprint() != codes.fingerprint()


def test_each_step_takes_one_of_the_captions_and_validation_the_first():
    column = [["one", "two", "three"], ["four", "", ""], ["", "", ""]]
    batch = CodeBatch((), {"captions": column * 500})
    assert choose_captions(batch) == ["one", "four", ""] * 500
    drawn = [choose_captions(batch, Noise(0, 0, 1500, purpose=("step", step))) for step in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and set(drawn[0][1::3]) == {"four"} and set(drawn[0][2::3]) == {""}
    shares = [drawn[0][::3].count(text) / 500 for text in column[0]]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.07)
    assert choose_captions(CodeBatch((), {})) is None


def test_a_prior_learns_the_captions_of_its_codes_and_their_words_alone(run, capsys):
    prior = load(run / "prior")
    assert (prior.num_words, prior.text_length, prior.num_classes) == (prior.text_tokenizer.num_words, 32, 0)
    assert prior.num_words <= 280 and prior.provenance["prompts"] == [OF_BARS[0][0], OF_BARS[1][0]][::-1]
    codes, given = prior_inputs(prior, CodeDataset(run / "codes").batch([0, 1]))
    words = prior.text_tokenizer.encode([OF_BARS[1][0]])[0]
    assert given.text[0, : len(words)].tolist() == words and (given.text[0, len(words) :] == PAD).all()
    assert given.labels is None and len(prior.nll(codes, given)) == 1
    log = [json.loads(line) for line in (run / "prior" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 4


def test_words_are_not_learnt_from_held_out_captions(run, tmp_path):
    captions = np.full(COUNT, "plain words", dtype=object)
    captions[split_indices(None, COUNT, "test")] = "zebra zebra zebra"
    codes = np.random.default_rng(0).integers(0, 16, (COUNT, 3, 5))
    np.savez(tmp_path / "codes.npz", codes=codes, captions=captions.astype(str))
    train_prior(training(run, codes=str(tmp_path / "codes.npz"), tokenizer=(), output=str(tmp_path / "prior")))
    known, unknown = load(tmp_path / "prior").text_tokenizer.encode(["plain", "zebra"])
    assert len(known) == 1 and len(unknown) > 3


def test_long_captions_are_counted_and_cut(run, tmp_path, capsys):
    train_prior(training(run, output=str(tmp_path), text_length=3, dry_run=True))
    told = capsys.readouterr().out
    upright = len([label for label in CodeDataset(run / "codes").labels if label == 1])
    assert re.search(r"captions: \d+ of up to \d words, out of 2\d\d; \d+ of them are cut to 3 \(--text-length\)", told)
    assert upright and "texts of 2" in told


@pytest.mark.parametrize(("changes", "told"), [
    ({"ignore_captions": True}, "2 classes"),
    ({"unconditional": True}, "unconditional"),
    ({"model": "pixelcnn"}, "are not learnt: a pixelcnn prior cannot be asked in words"),
])  # fmt: skip
def test_captions_are_left_out_where_someone_says_so_or_the_prior_cannot_learn_them(
    run, tmp_path, capsys, changes, told
):
    train_prior(training(run, output=str(tmp_path), dry_run=True, **changes))
    assert told in capsys.readouterr().out


def test_captions_that_cannot_be_learnt_are_refused(run, tmp_path):
    table = str(run / "captions.csv")
    with pytest.raises(InputError, match=r"`captions` .*: a pixelcnn prior cannot be asked in words"):
        train_prior(training(run, output=str(tmp_path), model="pixelcnn", captions=table))
    for other in ("gone.csv", str(run / "others.csv")):
        with pytest.raises(InputError, match=r"`captions` .*: .* has others \(.*captions.csv'\): leave `captions` out"):
            train_prior(training(run, output=str(tmp_path), captions=other))
    same = str(run / "pictures" / ".." / "captions.csv")
    train_prior(training(run, output=str(tmp_path), captions=same, dry_run=True))
    export_codes(
        ExportCodes(tokenizer=str(run / "tokenizer"), dataset=str(run / "pictures"), output=str(tmp_path / "codes"))
    )
    with pytest.raises(InputError, match=r"`captions` .* has none: export the codes again with them"):
        train_prior(training(run, output=str(tmp_path / "p"), codes=str(tmp_path / "codes"), captions=table))
    np.savez(tmp_path / "plain.npz", codes=np.zeros((9, 3, 5), int), labels=np.arange(9) % 2)
    plain = {"validation_codes": str(tmp_path / "plain.npz"), "output": str(tmp_path / "p")}
    with pytest.raises(InputError, match=r"has no captions, but .* has: export it with them"):
        train_prior(training(run, **plain))


def test_a_prior_that_starts_from_another_reads_its_words(run, tmp_path):
    train_prior(training(run, output=str(tmp_path), init_from=str(run / "prior"), num_words=300, steps=1))
    assert load(tmp_path).text_tokenizer == load(run / "prior").text_tokenizer


def test_samples_of_prompts_say_what_they_were_asked_for(run, tmp_path):
    prompts = ("an upright bar", "A LYING bar\u202e")
    sample(sampling(run, tmp_path / "a", prompts=prompts, guidance_scale=(2.0,)))
    assert json.loads((tmp_path / "a" / "prompts.json").read_text()) == [prompts[0]] * 3 + [prompts[1]] * 3
    assert json.loads((tmp_path / "a" / "run.json").read_text())["settings"]["prompts"] == list(prompts)
    images = np.load(tmp_path / "a" / "samples.npz")["arr_0"]
    pipeline = TwoStagePipeline.from_parts(run / "tokenizer", run / "prior")
    again = pipeline.sample(6, prompts=[prompts[0]] * 3 + [prompts[1]] * 3, seed=0, guidance_scale=2.0)
    assert len(images) == 6 and again.prompts == (prompts[0],) * 3 + (prompts[1],) * 3
    assert np.array_equal(images, ((again.images + 1) * 127.5).round().permute(0, 2, 3, 1).byte().numpy())
    sample(sampling(run, tmp_path / "b", prompts=prompts, format="codegrid"))
    drawn = CodeDataset(tmp_path / "b")
    assert drawn.batch([0, 5]).columns["captions"] == [[prompts[0]], [prompts[1]]]
    assert drawn.provenance["prompts"] == list(prompts)


def test_completions_follow_a_prompt_for_each_picture(run, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(2):
        Image.new("L", (20, 12), 100 * number).save(pictures / f"{number}.png")
    sample(sampling(run, tmp_path / "a", prompts=("a bar", "an upright bar"), complete=str(pictures), num_samples=2))
    assert json.loads((tmp_path / "a" / "prompts.json").read_text()) == ["a bar"] * 2 + ["an upright bar"] * 2
    with pytest.raises(InputError, match="`prompts`: 3 prompts for 2 pictures"):
        sample(sampling(run, tmp_path / "b", prompts=("a", "b", "c"), complete=str(pictures)))


def test_an_empty_prompt_is_refused_before_a_folder_is_begun(run, tmp_path):
    with pytest.raises(InputError, match="`prompts` '': write some words in each"):
        sample(sampling(run, tmp_path / "a", prompts=("a bar", "")))
    assert not (tmp_path / "a").exists()


def test_the_card_of_a_prior_over_texts_shows_how_to_ask(run):
    card = (run / "prior" / "README.md").read_text()
    assert 'codegrid sample --tokenizer TOKENIZER --prior MODEL --prompts "a lying bar"' in card
    assert 'pipeline(16, prompts="a lying bar", output_type="pil")' in card
    assert "A row for each of: a lying bar; an upright bar" in card and "text-to-image" in card


def test_a_prior_that_can_learns_captions_and_classes_at_once_and_either_alone(both, tmp_path, capsys):
    prior = load(both / "both")
    assert (prior.num_classes, prior.num_words > 0) == (2, True) and prior.conditions.unlabelled
    codes = CodeDataset(both / "codes").batch([0, 1])
    given = prior_inputs(prior, codes)[1]
    assert torch.equal(given.labels, codes.labels) and given.text.any()
    for changes, told in (
        ({}, "2 classes and texts of"), ({"ignore_labels": True}, ", texts of"),
        ({"ignore_captions": True}, ", 2 classes;"),
        ({"ignore_labels": True, "ignore_captions": True}, "unconditional"),
    ):  # fmt: skip
        train_prior(training(both, output=str(tmp_path), model="transformer", dry_run=True, **changes))
        assert told in capsys.readouterr().out
    with pytest.raises(InputError, match=r"`label_dropout` 0.0: a prior of labels and texts .* .`ignore_labels`"):
        train_prior(training(both, output=str(tmp_path), model="transformer", options={"label_dropout": 0.0}))
    card = (both / "both" / "README.md").read_text()
    assert '--prompts "a lying bar" --labels :0 --guidance-scale 2' in card and "`:0` is class number 0" in card


def test_each_prompt_is_drawn_with_each_label(both, tmp_path):
    asked = {"prior": str(both / "both"), "prompts": ("a bar", "no bar"), "labels": ("upright", "none")}
    sample(sampling(both, tmp_path / "a", **asked, num_samples=2, guidance_scale=(2.0,)))
    prompts = ["a bar"] * 4 + ["no bar"] * 4
    assert json.loads((tmp_path / "a" / "prompts.json").read_text()) == prompts
    drawn = np.load(tmp_path / "a" / "samples.npz")
    upright = load(both / "both").provenance["classes"].index("upright")
    assert drawn["arr_1"].tolist() == [upright, upright, -1, -1] * 2
    pipeline = TwoStagePipeline.from_parts(both / "tokenizer", both / "both")
    again = pipeline.sample(8, drawn["arr_1"], 0, prompts=prompts, guidance_scale=2.0)
    assert np.array_equal(drawn["arr_0"], ((again.images + 1) * 127.5).round().permute(0, 2, 3, 1).byte().numpy())
    request = make_request(pipeline.priors, 4, ["upright", "none"] * 2, 0, prompts=["a", "a", "b", "b"])
    numbers, names = request.headings(pipeline.classes)
    assert [names[number] for number in numbers] == ["a, upright", "a", "b, upright", "b"]
    sample(sampling(both, tmp_path / "b", **{**asked, "labels": ("lying", "upright")}, format="codegrid"))
    codes = CodeDataset(tmp_path / "b").batch([0, 3])
    assert codes.labels.tolist() == [1 - upright, upright] and codes.columns["captions"] == [["a bar"]] * 2


def test_the_viewer_has_a_class_for_all_prompts(both):
    pipeline = TwoStagePipeline.from_parts(both / "tokenizer", both / "both")
    examples = Examples(torch.zeros(1, 1, 12, 20), "pictures", torch.tensor([1]))
    answers = Answers(pipeline.tokenizer, pipeline, examples)
    page = build_page(pipeline.tokenizer, pipeline, examples, "both")
    (chosen,) = (part for part in page.blocks.values() if getattr(part, "label", None) == "Class")
    assert chosen.choices == answers.label_choices() and chosen.value == -1
    *_, (html, drawn, _) = answers.sample("a bar", 2, 1, 1.0, 0, 1.0, 2.0, 0)
    again = pipeline.sample(2, labels=[1], prompts="a bar", seed=0, guidance_scale=2.0)
    assert all(map(torch.equal, drawn.codes, again.codes)) and f"a bar, {pipeline.classes[1]}" in html
    encoded = answers.show(examples.images)[0]
    *_, (html, completed, _) = answers.complete(encoded, 1, 2, "", 1, 1.0, 0, 1.0, 2.0, 0)
    assert completed.labels.tolist() == [1, 1] and completed.prompts == () and pipeline.classes[1] in html
    assert answers.pick(0)[-1] == gr.skip()


def test_captions_are_ranked_by_a_prior_that_knows_classes_too(both):
    pipeline = TwoStagePipeline.from_parts(both / "tokenizer", both / "both")
    images = load_images(str(both / "pictures")).batch([0, 1]).images
    assert pipeline.rank_captions(images, ["an upright bar", "a lying bar"]).nats.shape == (2, 2)


@pytest.mark.slow
def test_both_are_given_to_a_prior_that_is_evaluated(both, tmp_path):
    data = {"tokenizer": str(both / "tokenizer"), "prior": str(both / "both"), "dataset": str(both / "pictures")}
    (tmp_path / "flattened.py").write_text("import torch\n\ndef make():\n    return torch.nn.Flatten()\n")
    data |= {"num_samples": 4, "features": f"{tmp_path / 'flattened.py'}:make", "split": "train"}
    told = evaluate(Evaluate(**data, captions=str(both / "captions.csv"), output=str(tmp_path / "a")))
    silent = evaluate(Evaluate(**data, output=str(tmp_path / "b")))
    measured = [one["measured_on"] for one in (told, silent)]
    assert [one["bits_per_code"]["given_texts"] for one in measured] == [True, False]
    assert all(one["bits_per_code"]["given_labels"] for one in measured)
    of_samples = [one["gfid"]["samples"] for one in measured]
    assert [one["labels"] for one in of_samples] == ["of the reference", "all classes in turn"]


@pytest.mark.slow
def test_bits_are_measured_and_samples_drawn_with_the_captions_of_the_images(run, tmp_path):
    data = {"tokenizer": str(run / "tokenizer"), "prior": str(run / "prior"), "dataset": str(run / "pictures")}
    (tmp_path / "network.py").write_text("import torch\n\ndef make():\n    return torch.nn.Flatten()\n")
    features = f"{tmp_path / 'network.py'}:make"
    with_texts = {"captions": str(run / "captions.csv"), "num_samples": 4, "features": features}
    told, silent = (
        evaluate(Evaluate(**data, output=str(tmp_path / name), split="train", **more))
        for name, more in (("a", with_texts), ("b", {}))
    )
    assert told["bits_per_code"] != silent["bits_per_code"]
    assert told["measured_on"]["bits_per_code"]["given_texts"] is True
    assert silent["measured_on"]["bits_per_code"]["given_texts"] is False
    assert told["measured_on"]["gfid"]["samples"]["prompts"] == "captions of the reference"
    assert any("give --captions" in note for note in silent["notes"]) and not told["notes"]


@pytest.mark.parametrize(("dropout", "changes", "words"), [
    (0.0, {}, "`captions`: this prior was only trained with texts: .*, or give one for each image"),
    (0.1, {"guidance_scale": (2.0,)}, "`guidance_scale` 2.0: guidance needs `captions` to guide to"),
    (0.1, {"reject_with": "likelihood"}, "`reject_with` likelihood: without `captions` all draws fit"),
])  # fmt: skip
def test_what_needs_captions_to_be_evaluated_says_so_and_accepts_them(run, tmp_path, dropout, changes, words):
    prior = build_text_prior(load(run / "tokenizer").layout, captions=OF_BARS[0] + OF_BARS[1], caption_dropout=dropout)
    prior.provenance = {"tokenizer_fingerprint": load(run / "tokenizer").fingerprint()}
    prior.save_pretrained(tmp_path)
    data = {"tokenizer": str(run / "tokenizer"), "prior": str(tmp_path), "dataset": str(run / "pictures")}
    settings = {**data, "num_samples": 2, "features": "classifier", "output": str(tmp_path / "e"), **changes}
    with pytest.raises(InputError, match=words):
        load_inputs(Evaluate(**settings))
    assert load_inputs(Evaluate(**settings, captions=str(run / "captions.csv"))).request.prompts


def test_the_viewer_takes_a_prompt_in_each_line(run):
    pipeline = TwoStagePipeline.from_parts(run / "tokenizer", run / "prior")
    examples = Examples(torch.zeros(1, 1, 12, 20), "pictures")
    answers = Answers(pipeline.tokenizer, pipeline, examples)
    assert answers.reads_texts and pipeline.prompts == load(run / "prior").provenance["prompts"]
    controls = [1.0, 0, 1.0, 2.0, 0]
    *_, (html, drawn, _) = answers.sample("a bar\n\n<b>lying\u202e</b>", 3, *controls)
    prompts = ["a bar", "<b>lying\u202e</b>", "a bar"]
    again = pipeline.sample(3, prompts=prompts, seed=0, guidance_scale=2.0)
    assert all(map(torch.equal, drawn.codes, again.codes)) and drawn.prompts == again.prompts
    assert "&lt;b&gt;lying\\u202e&lt;/b&gt;" in html and "<b>" not in html and "\u202e" not in html
    encoded = answers.show(examples.images)[0]
    *_, (html, completed, _) = answers.complete(encoded, 1, 2, "a bar", *controls)
    assert completed.prompts == ("a bar",) * 2
    *_, (_, plain, _) = answers.complete(encoded, 1, 2, "", 1.0, 0, 1.0, 1.0, 0)
    assert plain.prompts == ()
    assert answers.pick(0)[-1] == gr.skip()
    build_page(pipeline.tokenizer, pipeline, examples, "words")


def test_samples_are_plotted_by_prompt(run):
    pipeline = TwoStagePipeline.from_parts(run / "tokenizer", run / "prior")
    images = load_images(str(run / "pictures"))
    material = Material(Artifacts(pipeline.tokenizer, pipeline.priors, images=images), batch_size=40)
    axes = plot_samples(material, Plot(tokenizer="t", output="")).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == pipeline.prompts

"""Several views of an image: codes of changed pictures, never changed codes, which training sees in turn.

Shapes: n images, v views.
"""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from written_codes import COUNT, HEADER, LABELS, LAYOUTS, draw_codes, export, shard_of

from codegrid import load
from codegrid.data.code_files import open_codes, open_to_learn
from codegrid.data.codes import CodeBatch, CodeDataset
from codegrid.data.images import to_float, to_uint8
from codegrid.data.loading import StepSampler
from codegrid.data.sources import load_images
from codegrid.data.splits import Subset, hold_out
from codegrid.data.views import Views, each_view
from codegrid.errors import InputError
from codegrid.pipelines.decode_codes import DecodeCodes
from codegrid.pipelines.diagnosis.parts import all_rows, read_rows
from codegrid.pipelines.evaluation.reconstruction import measure_prior
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.decoding import decode_codes
from codegrid.pipelines.generation.encoding import encode_ranges, export_codes
from codegrid.pipelines.generation.tokenizers import load_tokenizer
from codegrid.pipelines.running.cli import parse
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.prior import train_prior
from codegrid.pipelines.training.tokenizer import train_tokenizer
from codegrid.recipes.run import RECIPES

IMAGES = 54  # the bars' training part
THREE = {"views": 3, "shift": 2, "flip": True}
TINY = {"steps": 2, "batch_size": 8, "precision": "fp32", "options": {"channels": 4, "num_layers": 1}}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("codegrid.data.code_writer.SHARD_SIZE", 50)  # 16 images with three views


def draw_images(count=40, height=6, width=9):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def windows_of(image, shift, flip):
    """All pictures that an image may become."""
    height, width = image.shape[1:]
    padded = torch.nn.functional.pad(image[None].float(), (shift,) * 4, mode="replicate")[0].to(torch.uint8)
    span = range(2 * shift + 1)
    windows = [padded[:, y : y + height, x : x + width] for y in span for x in span]
    return torch.stack(windows + [window.flip(2) for window in windows] * flip)


@pytest.mark.parametrize("shift,flip,number", [(1, False, 9), (1, True, 18), (2, True, 5), (0, True, 2)])
def test_the_views_of_an_image_are_itself_and_different_moves_of_it(shift, flip, number):
    images = draw_images(150)
    views = torch.stack(list(Views(number, shift, flip).of(images, 0)), 1)  # (n, v, c, H, W)
    assert torch.equal(views[:, 0], images)
    met = torch.zeros(len(windows_of(images[0], shift, flip)), dtype=torch.bool)
    for image, seen in zip(images, views, strict=True):
        equal = (windows_of(image, shift, flip)[:, None] == seen).flatten(2).all(2)  # (moves, v)
        assert equal.sum(0).eq(1).all() and equal.sum(1).le(1).all()
        met |= equal.any(1)
    assert met.all()


def test_a_view_follows_from_the_seed_and_the_number_of_the_image_whatever_else_is_made():
    images = draw_images()
    whole = list(Views(4, 2, True).of(images, 0))
    part = list(Views(7, 2, True).of(images[13:20], 13))
    assert all(torch.equal(ours[13:20], theirs) for ours, theirs in zip(whole, part, strict=False))
    assert not any(map(torch.equal, whole[1:], list(Views(4, 2, True, seed=1).of(images, 0))[1:]))


@pytest.fixture
def export_bars(bars_file, small_run, tmp_path):
    """Export views of the bars into a folder of this name, and return it."""

    def call(name, **settings):
        folder = str(tmp_path / name)
        data = {"dataset": "npz", "data_root": str(bars_file), "tokenizer": (str(small_run / "tokenizer"),)}
        export_codes(ExportCodes(output=folder, **{**data, **THREE, **settings}))
        return folder

    return call


@pytest.fixture(scope="module")
def three(small_run, bars_file, tmp_path_factory):
    """Codes of three views of each of the bars."""
    folder = str(tmp_path_factory.mktemp("three") / "codes")
    data = {"dataset": "npz", "data_root": str(bars_file), "tokenizer": (str(small_run / "tokenizer"),)}
    export_codes(ExportCodes(output=folder, **data, **THREE))
    return folder


def test_views_are_codes_of_changed_pictures(export_bars, small_run, bars_file):
    codes, images = CodeDataset(export_bars("codes", batch_size=7)), load_images("npz", bars_file, "train")
    assert len(codes) == IMAGES == len(codes.labels) and codes.views == 3 and len(list(codes.folder.glob("*-0*"))) == 4
    assert np.array_equal(codes.labels, images.labels) and ", 3 views of each," in repr(codes)
    tokenizer, pictures = load(small_run / "tokenizer"), Views(3, 2, True).of(images.images, 0)
    expected = [tokenizer.encode(to_float(view))[0] for view in pictures]
    for view, grids in enumerate(expected):
        assert torch.equal(codes.batch(range(IMAGES), view).codes[0], grids)
    assert torch.equal(codes[:].codes[0], expected[0]) and torch.equal(codes[9].codes[0], expected[0][9])
    mixed = codes.batch([5, 50, 5], view=[2, 0, 1])
    assert torch.equal(mixed.codes[0], torch.stack([expected[2][5], expected[0][50], expected[1][5]]))
    assert torch.equal(mixed.labels, images.labels[[5, 50, 5]])
    for wrong in (3, -1, [0, 1, 3]):
        with pytest.raises(IndexError, match="but there are 3, from 0"):
            codes.batch([0, 1, 2], view=wrong)


@pytest.mark.parametrize("form", ["codegrid", "npz"])
def test_a_stopped_export_of_views_goes_on_and_is_refused_with_other_ones(form, three, export_bars, monkeypatch):
    expected = CodeDataset(three)

    def stop_early(*arguments):
        shards = encode_ranges(*arguments)
        yield next(shards)
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        patch.setattr("codegrid.pipelines.generation.encoding.encode_ranges", stop_early)
        export_bars("codes", format=form)
    for other in ({"shift": 1}, {"views": 4}, {"flip": False}, {"view_seed": 1})[: 4 if form == "codegrid" else 1]:
        with pytest.raises(InputError, match=f"different {next(iter(other))}|with [a-z_]* .*, not "):
            export_bars("codes", format=form, **other)
    folder = export_bars("codes", format=form)
    codes = CodeDataset(folder) if form == "codegrid" else open_to_learn(f"{folder}/codes.npz")
    for view in range(3):
        assert torch.equal(codes.batch(range(IMAGES), view).codes[0], expected.batch(range(IMAGES), view).codes[0])
    with pytest.raises(InputError, match="was made with shift 2, not 1"):
        export_bars("codes", format=form, shift=1)


def written(folder, views=3):
    """A code dataset of the views of 25 images, and its rows."""
    layout = LAYOUTS["pyramid"]
    header, rows = replace(HEADER, grids=layout, views=views), draw_codes(layout, views * COUNT)

    def encode(images):
        part = slice(views * images.start, views * images.stop)
        return CodeBatch(tuple(grid[part] for grid in rows), shard_of(images).columns)

    export(folder, header, encode)
    return CodeDataset(folder), rows


def test_every_view_is_in_a_parquet_file_too(three, export_bars, small_run):
    pytest.importorskip("pyarrow")
    codes, path = CodeDataset(three), f"{export_bars('plain', format='parquet')}/codes.parquet"
    plain = open_to_learn(path)
    assert len(plain) == IMAGES and plain.views == plain.header.views == 3
    assert plain.labels.tolist() == codes.labels.tolist() and plain.header.num_images == IMAGES
    for view in range(3):
        ours, theirs = (each.batch([50, 0, -1], view) for each in (plain, codes))
        assert torch.equal(ours.codes[0], theirs.codes[0]) and torch.equal(ours.labels, theirs.labels)
    with pytest.raises(IndexError, match="view 3, but there are 3"):
        plain.batch([0], 3)
    assert sum(map(len, hold_out(plain, None))) == IMAGES
    opened = open_codes(path, load(small_run / "tokenizer"))
    assert torch.equal(opened.batch([9], 2).codes[0], codes.batch([9], 2).codes[0]) and len(opened) == IMAGES


@pytest.mark.parametrize(
    "arrays,reason",
    [
        ({"views": np.array(5)}, "`views` 5: it must be a whole number from 1 to 1,000 that divides the 12 grids"),
        ({"views": np.array(0)}, "`views` 0"),
        ({"views": np.array(1.0)}, r"`views` 1\.0"),
        ({"views": np.array(3), "labels": np.arange(12)}, "`labels` must be equal for the 3 `views` of an image"),
    ],
)
def test_arrays_whose_views_cannot_be_are_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "a.npz", codes=np.zeros((12, 3, 5), dtype=int), **arrays)
    with pytest.raises(InputError, match=reason):
        open_to_learn(tmp_path / "a.npz")


def test_images_are_held_out_and_not_views(tmp_path):
    codes, rows = written(tmp_path / "codes")
    training_part, validation = hold_out(codes, None)
    assert len(training_part) == 23 and len(validation) == 2 and training_part.views == 3
    trained = each_view(training_part)
    seen = {int(row) // 3 for epoch in range(3) for row in trained.order(0, epoch)}
    assert seen == set(range(23)) and not set(training_part.numbers) & set(validation.numbers)
    assert torch.equal(validation.batch([0, 1]).codes[1], rows[1][3 * validation.numbers])


def test_an_epoch_shows_one_view_of_each_image_and_several_in_a_row_show_each_once(tmp_path):
    codes, rows = written(tmp_path / "codes")
    trained = each_view(Subset(codes, np.arange(5, 25)))
    epochs = np.array([np.sort(trained.order(7, epoch)) for epoch in range(6)])
    assert len(trained) == 20 and (epochs // 3 == np.arange(20)).all()
    assert (np.sort(epochs[:3] % 3, 0) == np.arange(3)[:, None]).all()
    assert all(len(np.unique(epoch % 3)) == 3 for epoch in epochs), "a batch mixes views"
    assert not np.array_equal(epochs[0], np.sort(trained.order(8, 0))), "another seed"
    chosen = trained.order(7, 2)[:4]
    assert torch.equal(trained.batch(chosen).codes[0], rows[0][chosen + 15])
    assert torch.equal(trained.batch(chosen).labels, LABELS[5 + chosen // 3])
    alone = Subset(written(tmp_path / "one", views=1)[0], np.arange(5))
    assert each_view(alone) is alone


def test_after_a_share_of_the_training_only_the_images_themselves_are_seen(tmp_path):
    codes = written(tmp_path / "codes")[0]
    every, until = each_view(codes), each_view(codes, 60)  # 25 images: in the middle of the third epoch
    orders = [(every.order(3, epoch), until.order(3, epoch)) for epoch in range(4)]
    assert all(np.array_equal(*order) for order in orders[:2])
    (as_ever, changed), (_, last) = orders[2:]
    assert np.array_equal(changed[:10], as_ever[:10]) and (as_ever[10:] % 3).any()
    assert np.array_equal(changed // 3, as_ever // 3) and not (changed[10:] % 3).any() and not (last % 3).any()


def test_a_step_sees_the_same_views_when_training_goes_on_and_in_several_processes(tmp_path):
    trained = each_view(written(tmp_path / "codes")[0])

    def steps(start, *share):
        return list(StepSampler(len(trained), 10, 3, start, 8, *share, order=trained.order))

    whole = steps(0)
    assert steps(5) == whole[5:]
    assert [a + b for a, b in zip(steps(0, 0, 2), steps(0, 1, 2), strict=True)] == whole


@pytest.fixture
def asked(monkeypatch):
    """The codes that each training reads."""
    made = []

    def note(*codes):
        made.append(each_view(*codes))
        return made[-1]

    for module in ("prior", "code_tokenizer"):
        monkeypatch.setattr(f"codegrid.pipelines.training.{module}.each_view", note)
    return made


def test_a_prior_learns_all_views_and_is_measured_on_the_images_as_they_are(three, asked, small_run, tmp_path):
    settings = TrainPrior(codes=three, output=str(tmp_path / "prior"), keep="last", **TINY)
    train_prior(settings)
    (trained,), prior = asked, load(tmp_path / "prior")
    assert trained.codes.views == 3 and len(trained) == 49
    _, validation = hold_out(CodeDataset(three), None)
    measured = measure_prior(prior, [validation.batch(range(len(validation)), 0)])["bits_per_code"]
    assert prior.provenance["history"][-1]["bits_per_code"] == pytest.approx(measured)
    assert torch.equal(read_rows(validation, prior, 5).codes[0], validation.batch(range(5), 0).codes[0])
    card = (tmp_path / "prior" / "README.md").read_text()
    assert all(f"| {name} | {value} |" in card for name, value in THREE.items())
    record = json.loads((tmp_path / "prior" / "run.json").read_text())
    assert record["items"] == 49 and {name: record["settings"][name] for name in THREE} == THREE
    train_prior(replace(settings, **THREE))  # it is finished: asking for these views changes nothing
    with pytest.raises(InputError, match=r"`views` 3: .*codes has others \(views 3, shift 2, flip True\): leave"):
        train_prior(replace(settings, **{**THREE, "shift": 1}))
    with pytest.raises(InputError, match=r"`views` 2: .*codes has others \(one of each image\)"):
        train_prior(replace(settings, codes=str(small_run / "codes"), views=2, flip=True))
    with pytest.raises(InputError, match=r"`views_until` 0.5: .*codes has one view of each image: leave it out"):
        train_prior(replace(settings, codes=str(small_run / "codes"), output=str(tmp_path / "p"), views_until=0.5))


def test_samples_are_compared_with_all_views_that_a_prior_has_seen(three, small_run):
    codes, prior = CodeDataset(three), load(small_run / "prior")
    seen = torch.cat([rows.flat for rows in all_rows(codes, prior, 20)])
    assert torch.equal(seen, torch.cat([codes.batch(range(len(codes)), view).codes[0].flatten(1) for view in range(3)]))


def test_a_training_that_leaves_its_views_at_a_share_of_its_steps_is_no_start_of_a_longer_one(three, tmp_path):
    settings = TrainPrior(codes=three, output=str(tmp_path), views_until=0.5, lr_schedule="constant", **TINY)
    train_prior(settings)
    with pytest.raises(InputError, match="made with images_as_views"):
        train_prior(replace(settings, steps=2 * settings.steps))


def test_a_tokenizer_over_codes_learns_and_makes_all_views(three, asked, export_bars, small_run, bars_file, tmp_path):
    small = {"num_embeddings": 4, "embedding_dim": 2, "hidden_channels": 4, "channels": 4, "num_layers": 1}
    upper = str(tmp_path / "upper")
    train_tokenizer(TrainTokenizer(output=upper, over=three, model="codes", **{**TINY, "options": small}))
    assert asked[0].codes.views == 3 and load(upper).provenance["views"] == 3
    tokenizers = (str(small_run / "tokenizer"), upper)
    codes = CodeDataset(export_bars("of_codes", tokenizer=tokenizers))
    pictures = list(Views(3, 2, True).of(load_images("npz", bars_file, "train").images, 0))
    expected = load_tokenizer(tokenizers).encode(to_float(pictures[2]))
    assert all(map(torch.equal, codes.batch(range(IMAGES), 2).codes, expected))


def test_codes_that_a_run_lacks_are_exported_with_the_views_that_are_asked_for(small_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer").symlink_to(small_run / "tokenizer")
    train_prior(TrainPrior(run=str(tmp_path / "run"), **THREE, **TINY))
    codes, held_out = (CodeDataset(tmp_path / "run" / name) for name in ("codes", "codes_test"))
    assert (codes.views, held_out.views) == (3, 1) and (codes.header.shift, codes.header.flip) == (2, True)


def test_a_view_can_be_decoded_and_one_that_is_not_there_cannot(three, small_run, tmp_path):
    tokenizer = load(small_run / "tokenizer")
    settings = DecodeCodes(tokenizer=(str(small_run / "tokenizer"),), codes=three, output=str(tmp_path / "d"), view=2)
    decode_codes(settings)
    images = np.load(tmp_path / "d" / "images.npz")["arr_0"]
    expected = to_uint8(tokenizer.decode(CodeDataset(three).batch(range(IMAGES), 2).codes))
    assert np.abs(images.astype(int) - expected.permute(0, 2, 3, 1).numpy()).max() <= 1
    with pytest.raises(InputError, match=r"`view` 3: of each image .*codes holds 3 views, numbered from 0"):
        decode_codes(replace(settings, view=3))
    with pytest.raises(InputError, match=r"`view` 1: of each image .*codes holds only view 0"):
        decode_codes(replace(settings, codes=str(small_run / "codes"), view=1))


def test_a_recipe_can_ask_for_views():
    recipe = RECIPES["digits"]()
    recipe = replace(recipe, codes=replace(recipe.codes, views=8, shift=2))
    assert parse(ExportCodes, shlex.split(recipe.commands()[1])[2:]) == recipe.codes


def test_a_dry_run_says_how_many_views_and_how_much_they_take(export_bars, tmp_path, capsys):
    export_bars("codes", dry_run=True)
    said = capsys.readouterr().out
    assert "54 images to encode as 3×5 codes out of 16, 3 views of each, shifted by up to 2 pixels or mirrored" in said
    assert "disk: about 0 MB" in said and "memory: about" in said and not (tmp_path / "codes").exists()


@pytest.mark.parametrize("command", [ExportCodes, TrainPrior])
@pytest.mark.parametrize(
    "settings,reason",
    [
        ({"views": 0}, "`views` 0: it must be a whole number from 1 to 1,000"),
        ({"views": 10**6, "shift": 99}, "`views` 1000000: it must be a whole number from 1 to 1,000"),
        ({"views": 2}, "`views` 2: all of an image would be equal: give a larger `shift`"),
        ({"views": 10, "shift": 1}, "`views` 10: `shift` 1 makes only 9 different pictures of an image: give a larger"),
        ({"views": 3, "flip": True}, "`shift` 0 and `flip` make only 2 different pictures of an image"),
        ({"shift": 2}, "`shift` makes further `views` of an image: give 2 or more of them, or leave it out"),
        ({"flip": True}, "`flip` makes further `views`"),
        ({"view_seed": 1}, "`view_seed` makes further `views`"),
        ({"views": 2, "shift": -1}, "`shift` -1"),
    ],
)
def test_views_that_cannot_be_made_are_refused(command, settings, reason):
    places = {"tokenizer": ("t",), "output": "o"} if command is ExportCodes else {"codes": "c", "output": "o"}
    with pytest.raises(InputError) as caught:
        command(**places, **settings)
    assert reason in str(caught.value)


def test_images_are_not_shifted_out_of_sight(export_bars):
    with pytest.raises(InputError, match="`shift` 12: the images are only 12 wide: give less"):
        export_bars("codes", shift=12)

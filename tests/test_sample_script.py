"""Sampling into a folder: controls, completion, shards, several processes, and going on after a stop."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid import GatedPixelCNN, Grid, InputError, TwoStagePipeline, load
from codegrid.data.codes import CodeDataset
from codegrid.data.digests import unwritten
from codegrid.data.images import to_float, to_uint8
from codegrid.data.npz import write_images
from codegrid.pipelines.decode_codes import DecodeCodes
from codegrid.pipelines.generation.decoding import decode_codes
from codegrid.pipelines.generation.sampling import sample
from codegrid.pipelines.sample import Sample

GRID = Grid((3, 5), 16)  # of the small run


@pytest.fixture
def parts(small_run):
    """The flags that name both stages."""
    return "--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior"


@pytest.fixture
def pipeline(small_run):
    return TwoStagePipeline.from_pretrained(small_run)


@pytest.fixture
def draw(small_run, tmp_path):
    """Draw samples into a folder of this name, and return it."""

    def call(name, **settings):
        models = {"tokenizer": str(small_run / "tokenizer"), "prior": (str(small_run / "prior"),)}
        sample(Sample(**models, output=str(tmp_path / name), **settings))
        return tmp_path / name

    return call


@pytest.fixture
def pictures(bars_file, tmp_path):
    """A folder of five of the bars."""
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(np.load(bars_file)["arr_0"][:5]):
        Image.fromarray(image.squeeze()).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture(scope="module")
def strict_prior(small_run, tmp_path_factory):
    """A prior that was only trained with labels."""
    folder = tmp_path_factory.mktemp("strict") / "prior"
    prior = GatedPixelCNN(layout=(GRID,), num_classes=2, channels=8, num_layers=2, label_dropout=0.0)
    prior.provenance = load(small_run / "prior").provenance
    prior.save_pretrained(folder)
    return folder


def read(folder, name="samples"):
    """All shards together, in the order of their names."""
    files = [np.load(path) for path in sorted(folder.glob(f"{name}*.npz"))]
    return [np.concatenate([file[array] for file in files]) for array in files[0].files]


def codes_in(folder):
    codes = CodeDataset(folder)
    return codes.batch(range(len(codes))).codes


def originals(folder):
    images = [torch.tensor(np.array(Image.open(path)))[None] for path in sorted(folder.iterdir())]
    return to_float(torch.stack(images))


@pytest.mark.parametrize(
    "name,value", [("temperature", 0.0), ("top_k", 3), ("top_p", 0.5), ("guidance_scale", 3.0), ("backend", "plain")]
)
def test_every_control_reaches_the_sampler(name, value, draw, pipeline):
    given = value if name == "backend" else (value,)
    (codes,) = codes_in(draw("s", num_samples=6, format="codegrid", **{name: given}))
    (expected,) = pipeline.sample(6, seed=0, **{name: value}).codes
    (plain,) = pipeline.sample(6, seed=0).codes
    assert torch.equal(codes, expected)
    assert torch.equal(codes, plain) == (name == "backend")


def test_none_asks_for_no_particular_class(draw, capsys):
    assert np.load(draw("s", labels=("none", "1")) / "samples.npz")["arr_1"].tolist() == [-1, 1]
    assert CodeDataset(draw("codes", labels=("none",), num_samples=3, format="codegrid")).labels is None
    assert "the labels are left out" not in capsys.readouterr().out
    assert CodeDataset(draw("mixed", labels=("none", "1", "1"), num_samples=3, format="codegrid")).labels is None
    assert "the labels are left out: some samples have none" in capsys.readouterr().out


def test_sampled_codes_are_a_code_dataset_of_what_would_have_been_decoded(draw, small_run, tmp_path):
    codes = draw("codes", num_samples=9, seed=4, format="codegrid")
    assert CodeDataset(codes).labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    decoded = tmp_path / "decoded"
    decode_codes(
        DecodeCodes(tokenizer=str(small_run / "tokenizer"), codes=str(codes), output=str(decoded), shard_size=4)
    )
    (images, labels), (again, _) = read(draw("images", num_samples=9, seed=4)), read(decoded, "images")
    assert abs(images.astype(int) - again).max() <= 1 and labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]


def test_many_samples_are_cut_into_shards_that_hold_what_one_file_would(draw):
    many = draw("many", num_samples=11, batch_size=3, shard_size=4)
    names = sorted(path.name for path in many.iterdir() if not path.name.startswith("."))
    samples = ["samples-00000.npz", "samples-00001.npz", "samples-00002.npz", "samples.png"]
    assert names == ["run.json", *samples, "settings.yaml"]
    for one, cut in zip(read(draw("one", num_samples=11, batch_size=3)), read(many), strict=True):
        assert abs(one.astype(int) - cut).max() <= 1 and len(one) == 11


def stop_at_the_third_batch(monkeypatch):
    """Let drawing end as by Ctrl-C at its third batch; returns the rows of the batches so far."""
    draw_rows, calls = TwoStagePipeline.sample_rows, []

    def stop_at_the_third(self, request, rows, *more):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw_rows(self, request, rows, *more)

    monkeypatch.setattr(TwoStagePipeline, "sample_rows", stop_at_the_third)
    return calls


def test_a_stopped_run_goes_on_with_the_shards_it_lacks(draw, tmp_path, monkeypatch):
    settings = {"num_samples": 11, "shard_size": 4}
    whole = read(draw("whole", **settings))
    calls = stop_at_the_third_batch(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        draw("stopped", **settings)
    damaged = tmp_path / "stopped" / "samples-00000.npz"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(InputError, match="made with seed 0, not 1"):
        draw("stopped", **settings, seed=1)
    stopped = read(draw("stopped", **settings))
    assert calls[3:] == [range(0, 4), range(8, 11)]
    assert all(np.array_equal(*pair) for pair in zip(whole, stopped, strict=True))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_samples_are_left_as_picture_files_too(draw):
    folder = draw("p", num_samples=5, labels=("1",), format="png", batch_size=2)
    assert names_in(folder) == ["run.json", "samples", "samples.png", "settings.yaml"]
    assert names_in(folder / "samples") == [f"0000{i}-1.png" for i in range(5)]
    arrays, _ = read(draw("a", num_samples=5, labels=("1",), batch_size=2))
    assert np.array_equal(
        arrays[..., 0], [np.array(Image.open(path)) for path in sorted((folder / "samples").iterdir())]
    )
    assert (folder / "samples.png").read_bytes() == (folder.parent / "a" / "samples.png").read_bytes()


def test_picture_files_are_named_after_the_pictures_that_they_come_from(draw, pictures, small_run, tmp_path):
    (pictures / "0.png").rename(pictures / "0.. b\nü.png")
    folder = draw("c", complete=str(pictures), num_samples=2, format="png") / "completions"
    assert names_in(folder)[:3] == ["00000-0_b_nü.png", "00001-0_b_nü.png", "00002-1.png"]
    assert len(names_in(folder)) == 10
    models = {"tokenizer": str(small_run / "tokenizer"), "codes": str(small_run / "codes_test")}
    decode_codes(DecodeCodes(**models, output=str(tmp_path / "d"), format="png"))
    assert names_in(tmp_path / "d" / "images")[:2] == ["00000-0.png", "00001-1.png"]


def test_picture_files_go_on_where_they_were_stopped(draw, monkeypatch):
    settings = {"num_samples": 9, "format": "png", "batch_size": 3}
    whole = draw("whole", **settings) / "samples"
    calls = stop_at_the_third_batch(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        draw("stopped", **settings)
    stopped = whole.parent.parent / "stopped" / "samples"
    assert len(names_in(stopped)) == 6
    path = stopped / "00001-1.png"
    path.write_bytes(path.read_bytes()[:-20])
    draw("stopped", **settings)
    assert calls[3:] == [range(1, 2), range(6, 9)] and names_in(stopped) == names_in(whole)
    for name in names_in(whole):
        difference = np.array(Image.open(stopped / name)).astype(int) - np.array(Image.open(whole / name))
        assert abs(difference).max() <= 1


@pytest.mark.xdist_group("two")
def test_two_processes_draw_what_one_draws(parts, draw, two, tmp_path):
    flags = (*parts, "--num-samples", 11, "--batch-size", 3, "--shard-size", 7)
    two.run("sample", *flags, "--output", tmp_path / "two")
    one = draw("one", num_samples=11, batch_size=3, shard_size=7)
    for alone, shared in zip(read(one), read(tmp_path / "two"), strict=True):
        assert abs(alone.astype(int) - shared).max() <= 1
    two.run("sample", *flags, "--output", tmp_path / "two codes", "--format", "codegrid")
    draw("one codes", num_samples=11, batch_size=3, format="codegrid")
    alone, shared = (CodeDataset(tmp_path / name).batch(range(11)) for name in ("one codes", "two codes"))
    assert all(torch.equal(*pair) for pair in zip(alone.codes, shared.codes, strict=True))
    assert torch.equal(alone.labels, shared.labels)


def test_pictures_are_completed_below_the_rows_that_are_kept(draw, pictures, pipeline, capsys):
    settings = {"complete": str(pictures), "keep_rows": 2, "num_samples": 3}
    folder = draw("s", **settings)
    assert f"{pictures}: 5 images" in capsys.readouterr().out
    images, labels = read(folder, "completions")
    assert images.shape == (15, 12, 20, 1) and labels.tolist() == [-1] * 15
    sheet = Image.open(folder / "completions.png")
    assert sheet.width / 5 > sheet.height / 5 * 20 / 12 * 0.9  # five columns and five rows of 12×20
    names = [path.name for path in sorted(pictures.iterdir()) for _ in range(3)]
    assert json.loads((folder / "files.json").read_text()) == names
    folder = draw("codes", **settings, format="codegrid")
    (completed,) = codes_in(folder)
    assert CodeDataset(folder)[:].columns["files"] == names
    (codes,) = pipeline.encode(originals(pictures))
    assert torch.equal(completed[:, :2], codes.repeat_interleave(3, 0)[:, :2])
    assert len(completed[:, 2].unique(dim=0)) > 3  # and the rest differs
    samples = pipeline.complete(originals(pictures), 2, num_completions=3, seed=0)
    assert torch.equal(*samples.codes, completed)
    assert abs(to_uint8(samples.images).permute(0, 2, 3, 1).numpy().astype(int) - images).max() <= 1


def test_another_completion_into_the_same_folder_is_refused_by_what_differs(draw, pictures):
    settings = {"complete": str(pictures), "num_samples": 1, "format": "codegrid", "keep_rows": 2}
    draw("s", **settings)
    for other, reason in (({"keep_rows": 1}, "num_known 10, not 5"), ({"seed": 1}, "seed 0, not 1")):
        with pytest.raises(InputError, match=reason):
            draw("s", **{**settings, **other})
    Image.open(pictures / "0.png").transpose(Image.Transpose.ROTATE_180).save(pictures / "0.png")
    with pytest.raises(InputError, match="made with source"):
        draw("s", **settings)


def test_many_completions_fit_on_a_sheet(draw, pictures):
    assert Image.open(draw("s", complete=str(pictures), num_samples=120) / "completions.png").width < 3000


def test_images_of_another_size_are_not_completed(pipeline):
    with pytest.raises(InputError, match="1, 12, 20"):
        pipeline.complete(torch.zeros(1, 1, 16, 20), 1)


def test_a_run_that_ran_out_of_memory_goes_on_with_smaller_batches(draw):
    folder = draw("s", num_samples=5, batch_size=5)
    (folder / "samples.npz").unlink()
    (folder / "run.json").write_text((folder / "run.json").read_text().replace("true", "false"))
    assert len(read(draw("s", num_samples=5, batch_size=2))[0]) == 5


def test_a_shard_with_any_bit_flipped_is_made_again(tmp_path):
    file = {"samples.npz": range(2)}
    write_images(tmp_path, "samples.npz", (2, 1, 3, 4), [torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)],
                 np.arange(2))  # fmt: skip
    path = tmp_path / "samples.npz"
    assert not unwritten(tmp_path, file)
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 61):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        assert unwritten(tmp_path, file) == file


def test_a_shard_that_was_edited_while_the_run_was_stopped_is_made_again(draw):
    folder = draw("s", num_samples=5, shard_size=2)
    path, run = folder / "samples-00001.npz", folder / "run.json"
    whole = path.read_bytes()
    np.savez(path, *(255 - array for array in np.load(path).values()))  # sound, and of the same shapes
    run.write_text(run.read_text().replace("true", "false"))
    draw("s", num_samples=5, shard_size=2)
    assert path.read_bytes() == whole


def test_a_finished_run_whose_results_are_gone_makes_them_again(draw, capsys):
    folder = draw("s", num_samples=3, shard_size=2)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("samples-00001.npz", "samples.png"):
        (folder / name).unlink()
    draw("s", num_samples=3, shard_size=2)
    assert "was finished, but samples-00001.npz is gone or was changed: making it again" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    draw("s", num_samples=3, shard_size=2)
    assert "finished: nothing to do" in capsys.readouterr().out


def test_completions_may_have_a_label_for_each_picture(pipeline):
    images = torch.zeros(2, 1, 12, 20)
    assert pipeline.complete(images, 1, 2, labels=[1, 0]).labels.tolist() == [1, 1, 0, 0]
    assert pipeline.complete(images, 1, 2, labels=[1]).labels.tolist() == [1, 1, 1, 1]


def test_sites_to_keep_must_be_the_first_ones_in_raster_order(pipeline):
    images, mask = torch.zeros(1, 1, 12, 20), torch.zeros(GRID.shape, dtype=torch.bool)
    mask[0], mask[1, :2] = True, True
    ((kept,), (codes,)) = pipeline.complete(images, mask).codes, pipeline.encode(images)
    assert torch.equal(kept[:, mask], codes[:, mask])
    for wrong, reason in ((mask.flip(1), "not all before it"), (mask[:2], "the mask has the shape")):
        with pytest.raises(InputError, match=reason):
            pipeline.complete(images, wrong)


def test_known_pixels_keep_the_codes_that_see_nothing_else(pipeline):
    images, pixels = torch.zeros(1, 1, 12, 20), torch.zeros(12, 20, dtype=torch.bool)
    pixels[:8] = True
    (sites,) = pipeline.tokenizer.kept_sites(pixels)
    ((kept,), (codes,)) = pipeline.complete(images, pixels).codes, pipeline.encode(images)
    assert sites[0].all() and not sites[2].any() and torch.equal(kept[:, sites], codes[:, sites])


@pytest.mark.parametrize(
    "flags,reason",
    [
        ("--guidance-scale 2", "train it with label_dropout"),
        ("--labels none", "train it with label_dropout"),
        ("--complete {pictures}", "train it with label_dropout"),
    ],
)
def test_a_prior_that_learnt_no_grids_without_labels_says_so(
    flags, reason, strict_prior, pictures, parts, tmp_path, run_script
):
    flags = flags.format(pictures=pictures).split()
    result = run_script("sample", *parts[:2], "--prior", strict_prior, "--output", tmp_path / "s", *flags)
    assert result.code == 2 and reason in result.err.replace("`", "") and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "flags,reason",
    [
        ("--top-k -1", "--top-k -1"),
        ("--top-p 0", "--top-p 0"),
        ("--top-p 1.1", "--top-p 1.1"),
        ("--guidance-scale nan", "--guidance-scale nan"),
        ("--temperature 1 1", "2 values for 1 priors"),
        ("--shard-size 0", "--shard-size 0"),
        ("--keep-rows 2", "--keep-rows needs --complete"),
        ("--complete {pictures} --keep-rows 3", "--keep-rows 3"),
        ("--complete {pictures} --keep-rows 0", "--keep-rows 0"),
        ("--complete {pictures} --guidance-scale 2", "guidance needs --labels"),
        ("--labels none --guidance-scale 2", "guidance needs --labels"),
        ("--complete {pictures} --labels 0 1", "2 labels for 5 pictures"),
        ("--complete {pictures}/0.png", "no folder"),
        ("--complete nowhere", "no folder nowhere"),
        ("--format codegrid --output {pictures}", "other files"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(flags, reason, parts, pictures, tmp_path, run_script):
    flags = flags.format(pictures=pictures).split()
    output = () if "--output" in flags else ("--output", tmp_path / "s")
    result = run_script("sample", *parts, *output, *flags)
    assert result.code == 2 and reason in result.err.splitlines()[-1] and "Traceback" not in result.err
    assert not (tmp_path / "s").exists() and len(list(pictures.iterdir())) == 5

"""Sampling as a user runs it: controls, completion, shards, several processes, and going on after a stop."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_processes import torchrun

from codegrid.data import CodeDataset
from codegrid.data.images import to_float, to_uint8
from codegrid.data.npz import missing_files, write_images
from codegrid.errors import InputError
from codegrid.pipelines import TwoStagePipeline
from codegrid.stage1_vqvae import VQVAE
from codegrid.stage2_prior import GatedPixelCNN


@pytest.fixture
def parts(small_run):
    return "--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior"


@pytest.fixture
def pictures(bars_file, tmp_path):
    """A folder of five of the bars."""
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(np.load(bars_file)["arr_0"][:5]):
        Image.fromarray(image.squeeze()).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture(scope="module")
def strict_prior(small_run, tmp_path_factory):
    """A prior that learnt no grids without a label."""
    folder = tmp_path_factory.mktemp("strict") / "prior"
    prior = GatedPixelCNN(16, 8, 2, num_classes=2)
    prior.provenance = GatedPixelCNN.from_pretrained(small_run / "prior").provenance
    prior.save_pretrained(folder)
    return folder


def read(folder, name="samples"):
    """All shards together, in the order of their names."""
    files = [np.load(path) for path in sorted(folder.glob(f"{name}*.npz"))]
    return [np.concatenate([file[array] for file in files]) for array in files[0].files]


@pytest.mark.parametrize(
    "flags,controls",
    [
        ("--temperature 0", {"temperature": 0.0}),
        ("--top-k 3", {"top_k": 3}),
        ("--top-p 0.5", {"top_p": 0.5}),
        ("--guidance-scale 3", {"guidance_scale": 3.0}),
    ],
)
def test_every_control_reaches_the_sampler(flags, controls, parts, small_run, tmp_path, run_script):
    command = (*parts, "--output", tmp_path / "s", "--num-samples", 6, "--format", "codegrid", *flags.split())
    assert run_script("sample", *command).code == 0
    codes = CodeDataset(tmp_path / "s").__getitems__(range(6)).codes
    pipeline = TwoStagePipeline.from_pretrained(small_run)
    assert torch.equal(pipeline.sample(6, **controls).codes, codes)
    assert not torch.equal(pipeline.sample(6).codes, codes)


def test_none_asks_for_no_particular_class(parts, tmp_path, run_script):
    assert run_script("sample", *parts, "--output", tmp_path / "s", "--labels", "none", 1).code == 0
    assert np.load(tmp_path / "s" / "samples.npz")["arr_1"].tolist() == [-1, 1]
    codes = (*parts, "--labels", "none", "--num-samples", 3, "--format", "codegrid", "--output", tmp_path / "codes")
    assert run_script("sample", *codes).code == 0
    assert CodeDataset(tmp_path / "codes").labels is None


def test_sampled_codes_are_a_code_dataset_of_what_would_have_been_decoded(parts, tmp_path, run_script):
    flags = (*parts, "--num-samples", 9, "--seed", 4)
    assert run_script("sample", *flags, "--output", tmp_path / "images").code == 0
    assert run_script("sample", *flags, "--output", tmp_path / "codes", "--format", "codegrid").code == 0
    assert CodeDataset(tmp_path / "codes").labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    decode = ("--tokenizer", parts[1], "--codes", tmp_path / "codes", "--output", tmp_path / "decoded")
    assert run_script("decode_codes", *decode, "--shard-size", 4).code == 0
    (images, labels), (decoded, _) = read(tmp_path / "images"), read(tmp_path / "decoded", "images")
    assert abs(images.astype(int) - decoded).max() <= 1 and labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]


def test_many_samples_are_cut_into_shards_that_hold_what_one_file_would(parts, tmp_path, run_script):
    flags = (*parts, "--num-samples", 11, "--batch-size", 3)
    assert run_script("sample", *flags, "--output", tmp_path / "one").code == 0
    result = run_script("sample", *flags, "--output", tmp_path / "many", "--shard-size", 4)
    assert result.code == 0 and "samples-00000.npz to samples-00002.npz" in result.out
    names = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert names == ["run.json", "samples-00000.npz", "samples-00001.npz", "samples-00002.npz", "samples.png"]
    for one, many in zip(read(tmp_path / "one"), read(tmp_path / "many"), strict=True):
        assert abs(one.astype(int) - many).max() <= 1 and len(one) == 11


def test_a_stopped_run_goes_on_with_the_shards_it_lacks(parts, tmp_path, run_script, monkeypatch):
    flags = (*parts, "--num-samples", 11, "--shard-size", 4, "--output")
    run_script("sample", *flags, tmp_path / "whole")
    draw, calls = TwoStagePipeline.draw_codes, []

    def stop_at_the_third(self, request, rows):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(self, request, rows)

    monkeypatch.setattr(TwoStagePipeline, "draw_codes", stop_at_the_third)
    assert run_script("sample", *flags, tmp_path / "stopped").code == 130
    damaged = tmp_path / "stopped" / "samples-00000.npz"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    other = run_script("sample", *flags, tmp_path / "stopped", "--seed", 1)
    assert other.code == 2 and "made with seed 0, not 1" in other.err
    assert run_script("sample", *flags, tmp_path / "stopped").code == 0
    assert calls[3:] == [range(0, 4), range(8, 11)]
    for whole, stopped in zip(read(tmp_path / "whole"), read(tmp_path / "stopped"), strict=True):
        assert np.array_equal(whole, stopped)


def test_two_processes_draw_what_one_draws(parts, tmp_path, run_script):
    flags = (*parts, "--num-samples", 11, "--batch-size", 3, "--shard-size", 7)
    run_script("sample", *flags, "--output", tmp_path / "one")
    torchrun("sample", *flags, "--output", tmp_path / "two")
    for one, two in zip(read(tmp_path / "one"), read(tmp_path / "two"), strict=True):
        assert abs(one.astype(int) - two).max() <= 1
    run_script("sample", *flags, "--output", tmp_path / "one codes", "--format", "codegrid")
    torchrun("sample", *flags, "--output", tmp_path / "two codes", "--format", "codegrid")
    one, two = (CodeDataset(tmp_path / name).__getitems__(range(11)) for name in ("one codes", "two codes"))
    assert torch.equal(one.codes, two.codes) and torch.equal(one.labels, two.labels)


def test_pictures_are_completed_below_the_rows_that_are_kept(parts, pictures, small_run, tmp_path, run_script):
    flags = (*parts, "--complete", pictures, "--keep-rows", 2, "--num-samples", 3, "--output")
    assert run_script("sample", *flags, tmp_path / "s").code == 0
    images, labels = read(tmp_path / "s", "completions")
    assert images.shape == (15, 12, 20, 1) and labels.tolist() == [-1] * 15
    page = Image.open(tmp_path / "s" / "completions.png")
    assert page.width / 5 > page.height / 5 * 20 / 12 * 0.9  # five columns and five rows of 12×20
    assert run_script("sample", *flags, tmp_path / "codes", "--format", "codegrid").code == 0
    completed = CodeDataset(tmp_path / "codes").__getitems__(range(15)).codes
    originals = to_float(torch.stack([torch.tensor(np.array(Image.open(p)))[None] for p in sorted(pictures.iterdir())]))
    codes = VQVAE.from_pretrained(small_run / "tokenizer").encode(originals).repeat_interleave(3, 0)
    assert torch.equal(completed[:, :2], codes[:, :2])
    assert len(completed[:, 2].unique(dim=0)) > 3  # and the rest differs
    samples = TwoStagePipeline.from_pretrained(small_run).complete(originals, 2, num_completions=3)
    assert torch.equal(samples.codes, completed)
    assert abs(to_uint8(samples.images).permute(0, 2, 3, 1).numpy().astype(int) - images).max() <= 1


def test_another_completion_into_the_same_folder_is_refused_by_what_differs(parts, pictures, tmp_path, run_script):
    flags = (*parts, "--complete", pictures, "--num-samples", 1, "--format", "codegrid", "--output", tmp_path / "s")
    assert run_script("sample", *flags, "--keep-rows", 2).code == 0
    for other, reason in ((("--keep-rows", 1), "num_known 10, not 5"), (("--seed", 1), "seed 0, not 1")):
        result = run_script("sample", *flags, "--keep-rows", 2, *other)
        assert result.code == 2 and reason in result.err
    colours = Image.open(pictures / "0.png")
    colours.transpose(Image.Transpose.ROTATE_180).save(pictures / "0.png")
    assert "made with source" in run_script("sample", *flags, "--keep-rows", 2).err


def test_many_completions_fit_on_a_page(parts, pictures, tmp_path, run_script):
    flags = (*parts, "--complete", pictures, "--num-samples", 120, "--output", tmp_path / "s")
    assert run_script("sample", *flags).code == 0
    assert Image.open(tmp_path / "s" / "completions.png").width < 3000


def test_pictures_of_another_size_are_refused_by_the_pipeline(small_run):
    with pytest.raises(InputError, match="1, 12, 20"):
        TwoStagePipeline.from_pretrained(small_run).complete(torch.zeros(1, 1, 16, 20), 1)


def test_a_run_that_ran_out_of_memory_goes_on_with_smaller_batches(parts, tmp_path, run_script):
    flags = (*parts, "--num-samples", 5, "--output", tmp_path / "s", "--batch-size")
    assert run_script("sample", *flags, 5).code == 0
    (tmp_path / "s" / "samples.npz").unlink()
    (tmp_path / "s" / "run.json").write_text((tmp_path / "s" / "run.json").read_text().replace("true", "false"))
    assert run_script("sample", *flags, 2).code == 0
    assert len(read(tmp_path / "s")[0]) == 5


def test_a_shard_with_any_bit_flipped_is_made_again(tmp_path):
    file = {"samples.npz": range(2)}
    write_images(tmp_path, "samples.npz", (2, 1, 3, 4), [torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)],
                 np.arange(2))  # fmt: skip
    path = tmp_path / "samples.npz"
    assert not missing_files(tmp_path, file, with_labels=True)
    whole = path.read_bytes()
    expected = {name: array.tolist() for name, array in np.load(path).items()}
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        if not missing_files(tmp_path, file, with_labels=True):  # then the bit means nothing: a date, a system
            assert {name: array.tolist() for name, array in np.load(path).items()} == expected


def test_completions_may_have_a_label_for_each_picture(small_run):
    pipeline = TwoStagePipeline.from_pretrained(small_run)
    images = torch.zeros(2, 1, 12, 20)
    assert pipeline.complete(images, 1, 2, labels=[1, 0]).labels.tolist() == [1, 1, 0, 0]
    assert pipeline.complete(images, 1, 2, labels=[1]).labels.tolist() == [1, 1, 1, 1]


def test_a_mask_must_be_what_comes_first_in_raster_order(small_run):
    pipeline = TwoStagePipeline.from_pretrained(small_run)
    images, mask = torch.zeros(1, 1, 12, 20), torch.zeros(3, 5, dtype=torch.bool)
    mask[0], mask[1, :2] = True, True
    codes = pipeline.tokenizer.encode(images)
    assert torch.equal(pipeline.complete(images, mask).codes.flatten(1)[:, :7], codes.flatten(1)[:, :7])
    for wrong, reason in ((mask.flip(1), "not all before it"), (mask[:2], "shape")):
        with pytest.raises(InputError, match=reason):
            pipeline.complete(images, wrong)


@pytest.mark.parametrize(
    "flags,reason",
    [
        ("--guidance-scale 2", "train it with --label-dropout"),
        ("--labels none", "train it with --label-dropout"),
        ("--complete {pictures}", "--labels is needed"),
    ],
)
def test_what_needs_grids_without_labels_says_so(flags, reason, strict_prior, pictures, parts, tmp_path, run_script):
    flags = flags.format(pictures=pictures).split()
    result = run_script("sample", *parts[:2], "--prior", strict_prior, "--output", tmp_path / "s", *flags)
    assert result.code == 2 and reason in result.err.splitlines()[-1] and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "flags,reason",
    [
        ("--top-k 0", "--top-k 0"),
        ("--top-p 0", "--top-p 0"),
        ("--top-p 1.1", "--top-p 1.1"),
        ("--guidance-scale nan", "--guidance-scale nan"),
        ("--shard-size 0", "--shard-size 0"),
        ("--keep-rows 2", "--keep-rows goes with --complete"),
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

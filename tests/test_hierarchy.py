"""The VQ-VAE-2: grids of several sizes, a quantizer for each, what makes each carry something, the sites to keep."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import draw_bars
from safetensors.torch import load_file
from small_quantizers import SMALL

from codegrid import HierarchicalVQVAE, Moment, Noise, Signal, TrainTokenizer, load, train_tokenizer
from codegrid.data.images import ImageDataset, to_float
from codegrid.errors import InputError
from codegrid.pipelines.diagnosis.codebook import find_idle
from codegrid.pipelines.diagnosis.finding import Subject
from codegrid.pipelines.evaluation.carried import measure_carried
from codegrid.pipelines.generation.encoding import tables_of
from codegrid.pipelines.training.initial import start_from
from codegrid.pipelines.training.tokenizer import TokenizerObjective, check_codebook
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.stage1_vqvae.quantizers.levels import LevelQuantizers

TINY = {"hidden_channels": 8, "residual_channels": 4, "num_residual_blocks": 1}
SMALL_BOOKS = {"num_embeddings": 8, "embedding_dim": 4}


def build(size=(30, 46), levels=(4, 2), **options):
    torch.manual_seed(0)
    if "quantizer" not in options and "level_quantizers" not in options:
        options = SMALL_BOOKS | options
    return HierarchicalVQVAE(Signal(channels=3, size=size), levels=levels, **TINY | options).eval()


def draw_images(size=(30, 46), count=2, seed=1):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def moment_at(step, count=2, first=0):
    return Moment(step, 100, Noise(0, first, count))


def equal(ours, theirs):
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def on_data(tokenizer, images):
    """The tokenizer, its entries spread over the latents of images: untrained, it would give all sites one code."""
    for level in tokenizer.quantizer:
        level.kmeans_steps = 1
    tokenizer(images, moment=moment_at(0, len(images)))
    tokenizer.after_step(0, 0)
    return tokenizer


def pass_of(tokenizer, images, moment=None):
    with torch.no_grad():
        return tokenizer(images, moment=moment)


@pytest.mark.parametrize(
    ("size", "levels", "shapes"),
    [
        ((32, 32), (4,), [(8, 8)]),
        ((28, 28), (4, 2), [(4, 4), (7, 7)]),
        ((30, 46), (2, 2, 2), [(4, 6), (8, 12), (15, 23)]),
        ((13, 50), (2, 4, 2), [(1, 4), (2, 7), (7, 25)]),
    ],
)
def test_grids_go_from_coarse_to_fine_for_images_of_any_size(size, levels, shapes):
    many = range(8, 8 + len(levels))
    tokenizer, images = build(size, levels, level_embeddings=tuple(many)), draw_images(size)
    assert [(grid.shape, grid.num_embeddings) for grid in tokenizer.layout] == list(zip(shapes, many, strict=True))
    result, codes = pass_of(tokenizer, images), tokenizer.encode(images)
    assert equal(codes, result.codes) and [tuple(grid.shape[1:]) for grid in codes] == shapes
    assert torch.equal(tokenizer.decode(codes), result.output) and result.output.shape == images.shape
    assert [len(tokenizer.quantizer.entries(grid)) for grid in range(len(levels))] == list(many)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_works_at_every_level(quantizer):
    tokenizer, images = build(quantizer=quantizer, **SMALL[quantizer]).train(), draw_images()
    result = pass_of(tokenizer, images)
    assert equal(tokenizer.encode(images), result.codes) and torch.equal(tokenizer.decode(result.codes), result.output)
    latents = tokenizer.encode_latents(images)
    assert torch.equal(tokenizer.decode_latents(latents, quantize=True), result.output)
    assert not torch.equal(tokenizer.decode_latents(latents, quantize=False), result.output)
    again = HierarchicalVQVAE(**json.loads(json.dumps(tokenizer.config)))
    again.load_state_dict(tokenizer.state_dict())
    assert again.config == tokenizer.config and again.layout == tokenizer.layout
    assert torch.equal(again.reconstruct(images), result.output)
    tokenizer(images, moment=moment_at(5)).losses.total.backward()
    tokenizer.after_step(5, 0)
    assert not [name for name, weight in tokenizer.named_parameters() if weight.grad is None]  # or DDP would wait


def test_levels_can_have_quantizers_and_sizes_of_their_own(tmp_path):
    options = {"level_quantizers": ("residual", "fsq", "ema"), "num_quantizers": 3, "fsq_levels": (3, 4)}
    tokenizer, images = build(levels=(2, 2, 2), **options, **SMALL_BOOKS), draw_images()
    assert [str(grid) for grid in tokenizer.layout] == [
        *["4×6 codes out of 8"] * 3, "8×12 codes out of 12", "15×23 codes out of 8",
    ]  # fmt: skip
    tables = tables_of(tokenizer)
    assert [tuple(tables[f"entries.{grid}"].shape) for grid in range(5)] == [(8, 4)] * 3 + [(12, 2), (8, 4)]
    tokenizer.save_pretrained(tmp_path / "t")
    again = load(tmp_path / "t")
    assert again.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(again.reconstruct(images), tokenizer.reconstruct(images))


def test_what_a_quantizer_tells_besides_its_entries_is_told_for_each_level():
    tables = tables_of(build(quantizer="multiscale", **SMALL["multiscale"]))
    levels = [name.split(".")[1].split("-") for name in tables if name.endswith("phi.weight")]
    (start, end), (then, last) = (map(int, level) for level in levels)
    assert start == 0 and then == end + 1 and {f"grids.{then}-{last}.phi.bias", f"entries.{last}"} <= tables.keys()
    assert last == len([name for name in tables if name.startswith("entries")]) - 1


def test_codes_of_an_image_do_not_depend_on_its_batch():
    tokenizer, images = build().train(), draw_images(count=5)
    alone = tokenizer.encode(images[3:4])
    assert equal(alone, [grid[3:4] for grid in tokenizer.encode(images)])
    assert equal(alone, [grid[3:4] for grid in tokenizer(images, moment=moment_at(0, 5)).codes])


def test_finer_codes_depend_on_the_coarser_ones_and_all_reach_the_image():
    images = draw_images()
    tokenizer = on_data(build(levels=(2, 2, 2)), images)
    before = tokenizer.encode(images)
    for number in range(3):
        swapped = [(grid + 1) % 8 if number == place else grid for place, grid in enumerate(before)]
        assert not torch.equal(tokenizer.decode(tuple(swapped)), tokenizer.decode(before))
    with torch.no_grad():
        tokenizer.quantizer[0].codebook.mul_(-1)
    assert not torch.equal(tokenizer.encode(images)[1], before[1])


def test_pieces_of_a_step_reach_the_codebooks_of_all_levels():
    whole, pieces = (build(revival_threshold=0.0, decay=0.5).train() for _ in range(2))
    images = draw_images(count=4)
    whole(images, moment=moment_at(20, 4))
    for first in (0, 2):
        pieces(images[first : first + 2], moment=moment_at(20, 2, first))
    for tokenizer in (whole, pieces):
        tokenizer.after_step(20, 0)
    for ours, theirs, grid in zip(whole.quantizer, pieces.quantizer, whole.layout, strict=True):
        assert torch.equal(ours.codebook, theirs.codebook)
        assert ours.running_hits.sum() == theirs.running_hits.sum() == 0.5 * (8 + 4 * grid.num_sites)


def test_two_levels_do_not_share_their_random_numbers():
    levels, latents = LevelQuantizers(["ema"] * 2, SMALL_BOOKS), torch.randn(1, 4, 9, 9)
    for level in levels:
        level.codebook.fill_(1e3)  # so far away that all entries move to random latents
        level(latents, moment_at(0, 1))
    levels.after_step(0, 0)
    assert not torch.equal(levels[0].codebook, levels[1].codebook)
    tokenizer, seen = build((8, 8), (2, 2)), []
    for level in tokenizer.quantizer:
        level.register_forward_pre_hook(lambda _, given: seen.append(given[1].noise.uniforms("u", 9)))
    tokenizer(draw_images((8, 8)), moment=moment_at(0))
    assert not (seen[0] == seen[1]).any()


def test_the_loss_has_a_commitment_term_for_each_level():
    tokenizer, images = build(commitment_cost=0.5), draw_images()
    latents = tokenizer.encode_latents(images)
    gaps = [(own - level(own).vectors).square().mean() for own, level in zip(latents, tokenizer.quantizer, strict=True)]
    terms = tokenizer(images).losses.terms
    assert list(terms) == ["reconstruction_loss", "commitment_loss"]
    torch.testing.assert_close(terms["commitment_loss"], 0.5 * sum(gaps))


def vectors_of(tokenizer, images):
    """Vectors of each level, from the codes."""
    return [level.look_up((grid,)) for level, grid in zip(tokenizer.quantizer, tokenizer.encode(images), strict=True)]


def test_some_images_are_decoded_from_their_coarse_codes_alone():
    tokenizer, images = build((16, 16), (2, 2), finer_dropout=0.5).train(), draw_images((16, 16), 8)
    drawn, seen = pass_of(tokenizer, images, moment_at(9, 8)).output, pass_of(tokenizer, images).output
    vectors = vectors_of(tokenizer, images)
    with torch.no_grad():
        coarse = tokenizer.to_outputs((vectors[0], torch.zeros_like(vectors[1])))
    few, all_of_them = ([torch.equal(*pair) for pair in zip(drawn, other, strict=True)] for other in (coarse, seen))
    assert 0 < sum(few) < 8 and [not one for one in few] == all_of_them
    halves = [pass_of(tokenizer, images[rows : rows + 4], moment_at(9, 4, rows)).output for rows in (0, 4)]
    assert torch.equal(torch.cat(halves), drawn)


def test_sites_of_each_level_are_kept_whose_own_pixels_are_all_known():
    tokenizer = build((61, 90), (2, 2), quantizer="residual", **SMALL["residual"])
    mask = torch.zeros(61, 90, dtype=torch.bool)
    mask[5:50, :] = mask[:, 84:] = True
    for sites, side in zip(tokenizer.kept_sites(mask), (4, 4, 4, 2, 2, 2), strict=True):
        rows, columns = torch.meshgrid(*(torch.arange(count) * side for count in sites.shape), indexing="ij")
        inside = (rows >= 5) & (rows + side <= 50)
        assert torch.equal(sites, inside | (columns >= 84))


def test_sites_of_coarser_scales_of_a_level_are_kept_where_all_below_them_is_known():
    tokenizer = build((64, 64), (2, 2), quantizer="multiscale", **SMALL["multiscale"])
    mask = torch.ones(64, 64, dtype=torch.bool)
    assert all(sites.all() for sites in tokenizer.kept_sites(mask))
    mask[63, 63] = False
    assert [int((~sites).sum()) for sites in tokenizer.kept_sites(mask)] == [1] * len(tokenizer.layout)


def test_a_preview_shows_what_any_grid_has_and_is_grey_elsewhere():
    tokenizer = build((28, 28))
    codes = tokenizer.encode(draw_images((28, 28)))
    drawn = [torch.zeros_like(grid, dtype=torch.bool) for grid in codes]
    drawn[0][0, :2] = True
    drawn[1][1, :3] = True
    unfinished = tuple(grid.masked_fill(~known, -1) for grid, known in zip(codes, drawn, strict=True))
    preview = tokenizer.preview(unfinished, tuple(drawn))
    assert preview[0, :, :16].all() and not preview[0, :, 16:].any()
    assert preview[1, :, :12].all() and not preview[1, :, 12:].any()


def test_a_larger_codebook_of_a_level_keeps_its_entries_and_a_smaller_one_is_refused():
    old, new = build(), build(level_embeddings=(8, 12))
    check_codebook(new, old)
    start_from(new, old, "old")
    assert torch.equal(new.quantizer.entries(1)[:8], old.quantizer.entries(1))
    assert torch.equal(new.quantizer.entries(0), old.quantizer.entries(0))
    with pytest.raises(InputError, match="its codebook has 12 codes, more than 8"):
        check_codebook(old, new)
    check_codebook(build(level_quantizers=("fsq", "ema"), fsq_levels=(2, 2), **SMALL_BOOKS), new)


def test_the_doctor_names_the_options_that_give_a_grid_something_to_carry():
    subject = Subject("Grid 0", "grid 0", build().config)
    (finding,) = find_idle({"error": 0.1, "error_rise": 0.001}, subject, is_finest=False)
    assert "fewer --levels or with a higher --finer-dropout" in finding.remedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (3, 2)}, "`levels` 3: .*power of two"),
        ({"levels": (1, 2)}, "`levels` 1: .*power of two"),
        ({"levels": ()}, "`levels` of none"),
        ({"levels": (4096, 4)}, "`levels` 4096 4: .*product of at most 8,192"),
        ({"levels": (4, 2, 2, 2, 2, 2)}, "`levels` 4 2 2 2 2 2: images of 30×46 .* give fewer"),
        ({"level_quantizers": ("ema",)}, "`level_quantizers` ema: 2 are needed, one for each of the `levels` 4 2"),
        ({"level_quantizers": ("ema", "none")}, "`level_quantizers` 'none'"),
        ({"level_embeddings": (8, 8, 8)}, "`level_embeddings` 8 8 8: 2 are needed"),
        ({"level_embeddings": (8, 0)}, "`level_embeddings` 0"),
        ({"level_quantizers": ("fsq", "ema"), "level_embeddings": (8, 8)}, "level 0, fsq, has no number of entries"),
        ({"level_quantizers": ("fsq", "ema"), "num_quantizers": 2}, "`num_quantizers`: .* fsq or ema"),
        ({"quantizer": "ema", "hidden": 8}, "`hidden`: "),
        ({"finer_dropout": 2.0}, "`finer_dropout` 2.0"),
    ],
)  # fmt: skip
def test_an_option_of_levels_that_cannot_be_is_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


def test_codes_and_latents_of_sizes_that_do_not_belong_together_are_refused():
    tokenizer = build()
    codes = [torch.zeros(1, *shape, dtype=torch.int64) for shape in [(4, 6), (8, 10)]]
    with pytest.raises(InputError, match="`codes` of level 0 are 4×6: below them, 8×10 need 4×5"):
        tokenizer.decode(tuple(codes))
    with pytest.raises(InputError, match="`latents` is one tensor: it must be a tuple of 2"):
        tokenizer.decode_latents(torch.zeros(1, 4, 4, 6), quantize=True)
    assert tokenizer.decode((codes[0][..., :5], codes[1])).shape == (1, 3, 32, 40)


class Stop(BaseException):
    """Something that ends a run at once."""


def test_a_stopped_run_ends_as_one_that_never_stopped_and_says_what_each_grid_carries(
    bars_file, tmp_path, monkeypatch, capsys
):
    options = {**TINY, **SMALL_BOOKS, "levels": (4, 2), "level_quantizers": ("ema", "gradient"), "finer_dropout": 0.3}
    settings = TrainTokenizer(
        output=str(tmp_path / "whole"), dataset="npz", data_root=str(bars_file), model="vqvae2", steps=4, batch_size=8,
        precision="fp32", accumulate=2, save_every=3, validate_every=4, options=options,
    )  # fmt: skip
    whole, stopped = train_tokenizer(settings), replace(settings, output=str(tmp_path / "stopped"))
    assert "higher with another image's codes in one grid" in capsys.readouterr().out
    update = TokenizerObjective.after_step

    def stop_at_the_last(self, step, seed):
        if step == 3:
            raise Stop
        update(self, step, seed)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(TokenizerObjective, "after_step", stop_at_the_last)
        train_tokenizer(stopped)
    again = train_tokenizer(stopped)
    for name in ("config.json", "model.safetensors"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    provenance = load(whole.folder).provenance
    rows = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    for row in (*provenance["history"], *(row for row in rows if "reconstruction_error" in row)):
        assert row.keys() >= {"error_rise_0", "error_rise_1"}
    assert ["error_rise" in grid for grid in provenance["metrics"]["grids"]] == [True, True]


@pytest.mark.slow
def test_two_processes_train_the_hierarchy_that_one_trains(bars_file, tmp_path):
    flags = [
        *f"--dataset npz --data-root {bars_file} --model vqvae2 --steps 4 --batch-size 8 --precision fp32".split(),
        *("--hidden-channels", "8", "--num-embeddings", "8", "--finer-dropout", "0.3"),
    ]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launch in (("one", []), ("two", two)):
        command = [sys.executable, *launch, "-m", "codegrid.pipelines.train_tokenizer", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.run([*command, "--output", str(tmp_path / name)], env=environment, capture_output=True)
        assert run.returncode == 0, run.stderr.decode()[-2000:]
    alone, together = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for key, tensor in alone.items():
        torch.testing.assert_close(together[key], tensor, atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_a_trained_hierarchy_carries_something_in_each_grid():
    images, labels = (torch.as_tensor(part) for part in draw_bars(256, 16, 16))
    images = images.movedim(-1, 1)
    x = to_float(images)
    torch.manual_seed(0)
    tokenizer = HierarchicalVQVAE(
        Signal(channels=1, size=(16, 16)), float(x.var()), levels=(2, 2), hidden_channels=16, residual_channels=8,
        num_residual_blocks=1, num_embeddings=16, embedding_dim=8, finer_dropout=0.3,  # with 0 the top carries nothing
    )  # fmt: skip
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    for step in range(200):
        rows = torch.randperm(256, generator=torch.Generator().manual_seed(step))[:32]
        optimizer.zero_grad()
        tokenizer(x[rows], moment=Moment(step, 200, Noise(0, 32 * step, 32))).losses.total.backward()
        optimizer.step()
        tokenizer.after_step(step, 0)
    carried = measure_carried(tokenizer.eval(), ImageDataset(images, labels, []))
    assert carried.error < 0.2 and min(carried.rises) > 0.1

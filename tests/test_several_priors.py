"""Grids of several shapes, and a prior for each, through the commands: what is trained where, drawn, kept and judged.

Shapes: b batch, *shape the sites of a grid.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_priors import UniformPrior
from toy_pyramid import MARGIN, GivenPrior, make_pyramid
from untrained import make_pipeline

from codegrid import (
    CodeDataset,
    GatedPixelCNN,
    HierarchicalVQVAE,
    InputError,
    SamplingConfig,
    Signal,
    TwoStagePipeline,
)
from codegrid.codes import Grid
from codegrid.data.images import to_float
from codegrid.pipelines.decode_codes import DecodeCodes
from codegrid.pipelines.diagnosis.pairing import find_strangers
from codegrid.pipelines.diagnosis.run import examine
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.artifacts import find_artifacts
from codegrid.pipelines.generation.decoding import decode_codes
from codegrid.pipelines.generation.encoding import export_codes
from codegrid.pipelines.generation.kept_part import choose_part, default_rows, keepable_rows, top_rows
from codegrid.pipelines.generation.request import make_request
from codegrid.pipelines.generation.sampling import sample
from codegrid.pipelines.running.places import find_priors
from codegrid.pipelines.sample import Sample
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.training.chosen_prior import make_prior
from codegrid.pipelines.training.prior import train_prior
from codegrid.pipelines.viewer import actions
from codegrid.stage2_prior.sampling.draw import sample as draw_codes


@pytest.fixture(scope="module")
def pipeline():
    return make_pyramid()


@pytest.fixture(scope="module")
def run(pipeline, bars_file, tmp_path_factory):
    """A folder with tokenizer/, prior-0/, prior-1/ and the codes of the bars."""
    folder = tmp_path_factory.mktemp("pyramid")
    pipeline.save_pretrained(folder)
    for split in ("train", "test"):
        export_codes(ExportCodes(run=str(folder), dataset="npz", data_root=str(bars_file), split=split))
    return folder


def equal(codes, others):
    return len(codes) == len(others) and all(map(torch.equal, codes, others))


def draw_images(count):
    return torch.rand(count, 1, 12, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1


# Training: where each model goes.


def test_a_prior_of_a_grid_goes_where_the_other_commands_look_for_it(run, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("prior-*"))
    for grid in (0, 1):
        settings = {"steps": 20, "batch_size": 54, "lr": 0.3, "precision": "fp32", "validate_every": 20}
        train_prior(TrainPrior(run=str(tmp_path), grid=(grid,), model="toy-given", **settings))
    assert find_priors(tmp_path) == [str(tmp_path / "prior-0"), str(tmp_path / "prior-1")]
    found = find_artifacts("cpu", run=str(tmp_path))
    assert [(prior.grids, prior.given_grids) for prior in found.pipeline.priors] == [((0,), ()), ((1,), (0,))]
    coarse, fine = examine(found, num_samples=8).priors
    assert "shuffled_bits" not in coarse["metrics"]
    assert fine["metrics"]["shuffled_bits"] > 1.1 * fine["metrics"]["held_out_bits"]  # what it is given is of use
    # a picture of what each draws: of the coarse grid alone, and of the fine one given real coarse codes
    cards = [(tmp_path / f"prior-{number}" / "README.md").read_text() for number in (0, 1)]
    assert "without the finer grids" in cards[0] and "given the coarser grids of held-out pictures" in cards[1]
    assert Image.open(tmp_path / "prior-1" / "samples.png").size == (5 * (8 * 22 + 2), 5 * (2 * 14 + 2))
    (tmp_path / "prior").mkdir()
    with pytest.raises(InputError, match=r"holds prior/, prior-0/, prior-1/: name those to use as `prior`"):
        find_priors(tmp_path)


def test_priors_of_several_grids_each_are_found_in_the_order_of_their_grids(tmp_path):
    for name in ("prior-10", "prior-2", "prior-0", "prior-x", "prior-01", "priors"):
        (tmp_path / name).mkdir()
    assert [Path(folder).name for folder in find_priors(tmp_path)] == ["prior-0", "prior-2", "prior-10"]


def test_one_prior_may_learn_draw_and_keep_all_grids(pipeline):
    tokenizer, options = pipeline.tokenizer, {"channels": 16, "num_layers": 1, "num_heads": 2}
    settings = TrainPrior(codes="c", output="o", model="transformer", options=options)
    prior = make_prior(settings, tokenizer.layout, dict).eval()
    assert prior.grids == (0, 1) and prior.given_grids == ()
    prior.provenance["tokenizer_fingerprint"] = tokenizer.fingerprint()
    both = TwoStagePipeline(tokenizer, prior)
    images = both.sample(2).images
    for rows, (coarse, fine) in ((2, (1, 2)), (5, (2, 5))):
        drawn = both.complete(images, rows).codes
        for grid, kept, count in zip(drawn, tokenizer.encode(images), (coarse, fine), strict=True):
            assert torch.equal(grid[:, :count], kept[:, :count])


def test_what_cannot_learn_grids_of_several_shapes_is_refused_before_codes_are_made(run, tmp_path):
    shutil.copytree(run / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(InputError, match=r"pixelcnn prior learns grids .*of one shape.*; train one for each grid"):
        train_prior(TrainPrior(run=str(tmp_path), steps=1))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


# Drawing.


def test_samples_are_drawn_coarse_to_fine_whatever_the_batch_size(run, pipeline, tmp_path):
    settings = {"run": str(run), "num_samples": 9, "temperature": (0.5, 1.5), "top_k": (2,), "format": "codegrid"}
    drawn = []
    for size in (4, 9):
        sample(Sample(**settings, output=str(tmp_path / str(size)), batch_size=size))
        drawn.append(CodeDataset(tmp_path / str(size)).batch(range(9)).codes)
    expected = pipeline.sample(9, seed=0, temperature=[0.5, 1.5], top_k=2)
    assert equal(*drawn) and equal(drawn[0], expected.codes)
    assert [grid.shape for grid in drawn[0]] == [(9, 3, 5), (9, 6, 10)]
    decode_codes(DecodeCodes(run=str(run), codes=str(tmp_path / "9"), output=str(tmp_path / "d")))
    images = to_float(torch.from_numpy(np.load(tmp_path / "d" / "images.npz")["arr_0"]).permute(0, 3, 1, 2))
    torch.testing.assert_close(images, expected.images, atol=0.005, rtol=0)


@pytest.fixture(scope="module")
def hierarchy():
    """Untrained models of the built-in kinds: a VQ-VAE-2 of 3×5 and 6×10 codes, and two gated PixelCNNs."""
    torch.manual_seed(0)
    options = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 4, "num_residual_blocks": 1}
    tokenizer = HierarchicalVQVAE(Signal("image", 1, (12, 20)), levels=(2, 2), **options).eval()
    coarse, fine = ([grid] for grid in tokenizer.layout)
    sizes = {"channels": 8, "num_layers": 2, "condition_channels": 8, "condition_blocks": 0}
    priors = [GatedPixelCNN(coarse, (0,), 2, **sizes), GatedPixelCNN(fine, (1,), 2, (0,), coarse, **sizes)]
    for prior in priors:
        prior.eval().provenance = {"tokenizer_fingerprint": tokenizer.fingerprint(), "classes": ["0", "1"]}
        for head in prior.network.heads:
            head[-1].weight.data *= 40  # as decided as a trained prior
    return TwoStagePipeline(tokenizer, *priors)


def test_a_vqvae2_and_its_pixelcnns_sample_and_complete_the_same_in_any_batches(hierarchy):
    settings = {"seed": 2, "guidance_scale": [3.0, 1.0], "temperature": [0.7, 1.0]}
    one, other = (hierarchy.sample(5, batch_size=size, **settings) for size in (2, 5))
    assert equal(one.codes, other.codes) and not equal(one.codes, hierarchy.sample(5, seed=2).codes)
    images = draw_images(2)
    one, other = (hierarchy.complete(images, 4, 2, labels=[1], batch_size=size, **settings) for size in (1, 4))
    assert equal(one.codes, other.codes)
    for drawn, known, kept in zip(one.codes, hierarchy.encode(images), (2, 4), strict=True):
        assert torch.equal(drawn[:, :kept], known[:, :kept].repeat_interleave(2, 0))


@pytest.mark.slow
@pytest.mark.xdist_group("two")
def test_two_processes_draw_of_a_hierarchy_what_one_draws(hierarchy, two, tmp_path):
    hierarchy.save_pretrained(tmp_path / "run")
    flags = ("--run", tmp_path / "run", "--num-samples", 11, "--batch-size", 3, "--format", "codegrid")
    two.run("sample", *flags, "--output", tmp_path / "two")
    shared = CodeDataset(tmp_path / "two").batch(range(11)).codes
    assert equal(shared, hierarchy.sample(11, seed=0).codes)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p"])
def test_a_control_with_a_value_for_each_grid_changes_that_grid_alone(name, pipeline):
    value, off = {"temperature": (0, 1), "top_k": (1, 0), "top_p": (0.01, 1)}[name]
    plain, only_fine = pipeline.sample(6, seed=1), pipeline.sample(6, seed=1, **{name: [off, value]})
    assert torch.equal(plain.codes[0], only_fine.codes[0]) and not torch.equal(plain.codes[1], only_fine.codes[1])
    only_coarse = pipeline.sample(6, seed=1, **{name: [value, off]})
    assert not torch.equal(plain.codes[0], only_coarse.codes[0])


def test_the_random_numbers_of_two_grids_are_not_alike():
    # of equal shapes, where equal numbers would line up
    codes = draw_codes([UniformPrior([Grid((20, 20), 256)], (grid,)) for grid in (0, 1)], 50, seed=3)
    assert abs(np.corrcoef(*(grid.flatten() for grid in codes))[0, 1]) < 0.03


def test_progress_counts_the_codes_of_all_grids(pipeline):
    request_steps = list(actions.sample(pipeline, 2))
    assert len(request_steps) == 6 and request_steps[-1].done == 1  # as many as rows of the finest grid
    steps = [step.done for step in pipeline.sample_steps(make_request(pipeline.priors, 2), range(2))]
    assert steps[:4] == pytest.approx([5 / 75, 10 / 75, 15 / 75, 25 / 75])


# Completion: which codes of each grid are known.


@pytest.mark.parametrize("rows,coarse", [(2, 1), (3, 1), (4, 2), (5, 2)])
def test_rows_are_counted_in_the_finest_grid_and_coarser_codes_above_them_are_kept(rows, coarse, pipeline):
    images = draw_images(2)
    drawn = pipeline.complete(images, rows, 3, labels=[0], seed=1)
    for grid, known, kept in zip(drawn.codes, pipeline.encode(images), (coarse, rows), strict=True):
        whole = known.repeat_interleave(3, 0)
        assert torch.equal(grid[:, :kept], whole[:, :kept]) and not torch.equal(grid[:, kept], whole[:, kept])
    # pixels of which all codes are kept are as good as a reconstruction's
    upper = pipeline.reconstruct(images).repeat_interleave(3, 0)[:, :, : 4 * coarse]
    assert torch.equal(drawn.images[:, :, : 4 * coarse], upper)


@pytest.mark.parametrize("rows,coarse", [(3, 1), (4, 1), (5, 2)])
def test_known_pixels_keep_only_the_coarse_codes_that_see_nothing_else(rows, coarse, pipeline):
    images, pixels = draw_images(2), torch.zeros(12, 20, dtype=torch.bool)
    pixels[: 2 * rows] = True
    assert coarse == (2 * rows - MARGIN) // 4
    hidden = torch.where(pixels, images, -images)  # what is not known must not matter
    drawn, again = (pipeline.complete(each, pixels, 3, labels=[0], seed=1).codes for each in (images, hidden))
    assert equal(drawn, again)
    assert [int(mask[0, :, 0].sum()) for mask in choose_part(pipeline.tokenizer, pixels, 2).masks] == [coarse, rows]


def test_the_sample_of_a_picture_does_not_depend_on_the_batch_size(pipeline):
    images = draw_images(3)
    one, other = (pipeline.complete(images, 4, 2, labels=[0], seed=1, batch_size=size) for size in (2, 6))
    assert equal(one.codes, other.codes)


def test_rows_that_hold_no_coarse_code_are_refused(pipeline):
    for keep, reason in (
        (1, "`keep` 1: no code of the coarsest grid covers so few of the finest one's 6 rows: keep at least 2"),
        (6, "`keep` 6: it must be a whole number from 2 to 5"),
        (torch.ones(3, 5, dtype=torch.bool), "the mask has the shape"),
    ):
        with pytest.raises(InputError, match=reason):
            pipeline.complete(draw_images(1), keep)


@pytest.mark.parametrize(
    "heights,possible,half", [((7,), range(1, 7), 3), ((4, 7), range(2, 7), 3), ((2, 4, 7), range(4, 7), 4)]
)
def test_of_grids_of_any_heights_each_keeps_a_row_but_coarse_ones_of_a_single_row(heights, possible, half):
    layout = tuple(Grid((height, 5), 4) for height in heights)
    assert keepable_rows(layout) == possible and default_rows(layout) == half
    assert all(0 < int(mask[:, 0].sum()) < len(mask) for rows in possible for mask in top_rows(layout, rows))
    above = (Grid((1, 3), 4), *layout)
    assert keepable_rows(above) == possible and not top_rows(above, half)[0].any()
    with pytest.raises(InputError, match="`keep`: a row of the 1×5 codes out of 4 is as high as the picture"):
        top_rows((Grid((1, 5), 4),) * 2, 1)


# Which priors belong together.


def test_a_pairing_that_cannot_draw_is_refused_in_one_line(pipeline):
    tokenizer, (coarse, fine) = pipeline.tokenizer, pipeline.priors
    stranger = make_pyramid().priors[1]
    stranger.provenance["tokenizer_fingerprint"] = "another"
    swapped = GivenPrior(fine.layout, (0,))
    backwards = UniformPrior(coarse.layout, (0,), given_grids=(1,))
    for other in (swapped, backwards):
        other.provenance = fine.provenance
    for priors, reason in (
        ((fine, coarse), r"not in order: .*: prior 1 \(grid 0\), prior 0 \(grid 1\)"),
        ((coarse, stranger), "prior 1 was trained on the codes of another tokenizer"),
        ((fine,), r"no prior draws grid 0 of the tokenizer \(3×5 .*`codegrid train-prior` trains with `grid` 0"),
        ((coarse, fine, fine), "prior 1 and prior 2 draw the same grid 1 .*give only one of them"),
        ((swapped, fine), "prior 0 draws 6×10 codes out of 4 as grid 0, but the tokenizer has 3×5 codes"),
        ((backwards, fine), "prior 0 must be given grid 1, which no prior before it draws"),
    ):
        with pytest.raises(InputError, match=reason):
            TwoStagePipeline(tokenizer, *priors)


def test_labels_and_guidance_must_suit_every_prior_before_anything_is_drawn():
    priors = make_pipeline(((0,), (1,))).priors
    priors[1].label_dropout = 0.0
    guided = [SamplingConfig(guidance_scale=2.0)] * 2
    for settings, reason in (
        ({"labels": ["none"]}, "`labels` none: this prior was only trained with labels"),
        ({"configs": guided}, "`guidance_scale` 2.0: .*, or give each prior a value .*prior 1"),
        ({"configs": guided, "labels": ["none"]}, "`guidance_scale` 2.0: guidance needs `labels` to guide to$"),
    ):
        with pytest.raises(InputError, match=reason):
            make_request(priors, 2, **settings)
    make_request(priors, 2, configs=[SamplingConfig(guidance_scale=2.0), SamplingConfig()])


# What the doctor says.


@pytest.mark.parametrize("names,words", [
    (("prior-1", "prior-0"), "Wrong pairing: the priors are not in order."),
    (("prior-1",), "Wrong pairing: no prior draws grid 0 of the tokenizer (3×5 codes out of 4)."),
    (("prior-0", "prior-1", "prior-1"), "Wrong pairing: prior 1 and prior 2 draw the same grid 1"),
])  # fmt: skip
def test_the_doctor_names_priors_that_cannot_draw_together(names, words, run):
    found = find_artifacts("cpu", tokenizer=str(run / "tokenizer"), prior=[str(run / name) for name in names])
    assert [finding.words[: len(words)] for finding in find_strangers(found)] == [words]

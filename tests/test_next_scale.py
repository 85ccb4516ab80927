"""The next-scale prior: what each scale sees, the vectors that it keeps of the tokenizer, what it keeps of pictures.

Shapes: b batch, *shape the sites of a scale's grid, D embedding_dim, K num_embeddings.
"""

import numpy as np
import pytest
import torch
from small_priors import SMALL, random_codes

from codegrid import VQVAE, InputError, Signal, TwoStagePipeline, load
from codegrid.codes import Condition, Grid, Known
from codegrid.noise import Noise
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import export_codes
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.training.chosen_prior import make_prior
from codegrid.pipelines.training.prior import train_prior
from codegrid.pipelines.viewer import actions
from codegrid.sampling_config import SamplingConfig
from codegrid.scales import Scales, tables_of_grids
from codegrid.stage1_vqvae.hierarchical import HierarchicalVQVAE
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.stage2_prior import sample
from codegrid.stage2_prior.next_scale.prior import NextScalePrior

SHAPES = {
    "one scale": [(3, 4)],
    "two scales": [(2, 1), (5, 3)],
    "five scales": [(1, 1), (2, 1), (3, 2), (4, 3), (7, 5)],
    "one axis": [(1,), (2,), (5,)],
    "three axes": [(1, 1, 1), (2, 2, 3)],
}
each_shape = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)


def build(shapes, sizes=(6,), num_classes=3, **options):
    """A prior whose logits are as far apart as those of a trained one, in float64."""
    torch.manual_seed(0)
    layout = [Grid(shape, size) for shape, size in zip(shapes, sizes * (len(shapes) // len(sizes)), strict=True)]
    prior = NextScalePrior(layout, num_classes=num_classes, **SMALL["next-scale"], **options).double().eval()
    for parameter in prior.parameters():
        parameter.data.normal_(0, 0.3)
    return prior


def tables_of(quantizer, scales):
    """The tables that an export of the quantizer's codes would have."""
    return {f"entries.{grid}": quantizer.entries(grid) for grid in range(scales)} | quantizer.tables()


@pytest.fixture
def quantizer():
    """Its codes are four scales of 7×4 latents; φ is learnt."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS["multiscale"](num_embeddings=6, embedding_dim=4, num_phi=2)
    for parameter in quantizer.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    quantizer.layout((7, 4))
    return quantizer


def same(codes, others):
    return all(map(torch.equal, codes, others))


@each_shape
@torch.no_grad()
def test_a_code_is_seen_by_every_code_of_finer_scales_and_by_none_of_its_own_or_coarser_ones(shapes):
    prior = build(shapes)
    codes, labels = random_codes(prior, 1), Condition(torch.tensor([1]))
    before = prior.logits(codes, labels)
    for number, grid in enumerate(codes):
        changed = grid.flatten(1).repeat(grid.numel(), 1)
        changed.fill_diagonal_(0).add_(torch.diag((grid.flatten() + 1) % 6))
        batch = tuple(
            changed.view(-1, *each.shape[1:]) if each is grid else each.expand(len(changed), *each.shape[1:])
            for each in codes
        )
        after = prior.logits(batch, Condition(torch.ones(len(changed), dtype=torch.int64)))
        for other, (new, old) in enumerate(zip(after, before, strict=True)):
            moved = (new - old).abs().amax(1) > 1e-9
            assert moved.all() if other > number else not moved.any()


@each_shape
@torch.no_grad()
def test_cached_steps_compute_the_logits_of_the_parallel_pass_and_draw_the_same_codes(shapes):
    prior = build(shapes)
    codes, labels = random_codes(prior, 4), Condition(torch.tensor([0, 1, 2, -1]))
    steps = prior.steps(labels, 4, "torch")
    for (grid, _), expected in zip(steps.order, prior.logits(codes, labels), strict=True):
        torch.testing.assert_close(steps.next_logits(), expected.flatten(2).mT)
        steps.append(codes[grid].flatten(1))
    drawn = [sample(prior, 5, guidance_scale=2.0, backend=backend, seed=1) for backend in ("torch", "plain")]
    assert same(*drawn)


@torch.no_grad()
def test_guidance_grows_from_none_at_the_coarsest_grid_to_its_scale_at_the_finest():
    prior = build(SHAPES["five scales"])
    plain, growing, constant = (
        sample(prior, 50, labels=[1], **options)
        for options in ({}, {"guidance_scale": 9.0}, {"guidance_scale": 9.0, "guidance_schedule": "constant"})
    )
    assert torch.equal(plain[0], growing[0]) and not torch.equal(plain[0], constant[0])
    assert same(growing, sample(prior, 50, labels=[1], guidance_scale=9.0, guidance_schedule="growing"))
    alone = build([(3, 4)])  # one scale: its only step is the last
    by_schedule = [
        sample(alone, 9, guidance_scale=9.0, guidance_schedule=schedule) for schedule in ("growing", "constant")
    ]
    assert same(*by_schedule) and not same(by_schedule[0], sample(alone, 9))


def test_two_draws_on_one_model_do_not_mix():
    prior = build(SHAPES["five scales"])
    given = Condition(torch.tensor([0, 1]))
    noises = [Noise(seed, count=2) for seed in (0, 1)]
    alone = [[*prior.sample(given, noise, SamplingConfig())][-1].codes for noise in noises]
    draws = [prior.sample(given, noise, SamplingConfig(), watch=True) for noise in noises]
    together = list(zip(*draws, strict=True))
    assert len(together) == 5  # each grid is a picture of its own
    assert all(same(progress.codes, codes) for progress, codes in zip(together[-1], alone, strict=True))


@torch.no_grad()
def test_keys_and_values_take_twice_the_layers_times_sites_times_width():
    prior = build(SHAPES["five scales"])
    steps = prior.steps(Condition(), 3, "torch")
    place = steps.cache.tensor.data_ptr()
    for codes in random_codes(prior, 3):
        steps.append(codes.flatten(1))
    assert steps.cache.tensor.numel() == 3 * 2 * 2 * (1 + 2 + 6 + 12 + 35) * 16
    assert steps.cache.tensor.nbytes == 3 * prior.bytes_per_sample
    assert steps.cache.tensor.data_ptr() == place


# The vectors of the tokenizer.


@torch.no_grad()
def test_it_is_shown_bitwise_what_the_quantizer_adds_up(quantizer):
    codes = quantizer.encode(torch.randn(3, 4, 7, 4))
    tables = tables_of(quantizer, 4)
    prior = NextScalePrior(quantizer.layout((7, 4)), tables=tables, **SMALL["next-scale"])
    sums, expected = prior.network.sums_of(codes), Scales.of_tables(tables, prior.layout)
    assert not sums[0].any() and same(sums[1:], [expected.so_far(codes[:number]) for number in (1, 2, 3)])
    assert torch.equal(prior.network.scales.so_far(codes), quantizer.look_up(codes))
    steps = prior.steps(Condition(), 3)
    for grid in codes[:-1]:
        steps.append(grid.flatten(1))
    assert torch.equal(steps.total, prior.network.scales.so_far(codes[:-1]))


def test_its_folder_alone_gives_the_same_logits_and_samples(quantizer, tmp_path):
    prior = NextScalePrior(quantizer.layout((7, 4)), None, 2, tables_of(quantizer, 4), **SMALL["next-scale"]).eval()
    prior.save_pretrained(tmp_path / "prior")
    drawn = sample(prior, 3)
    quantizer.book.codebook.data.zero_()  # what it keeps is a copy
    again = load(tmp_path / "prior")
    assert same(again.logits(drawn, Condition(torch.zeros(3))), prior.logits(drawn, Condition(torch.zeros(3))))
    assert same(sample(again, 3), drawn) and again.fingerprint() == prior.fingerprint()


def test_a_prior_that_starts_from_another_keeps_the_vectors_of_its_own_tokenizer(quantizer):
    layout, small = quantizer.layout((7, 4)), SMALL["next-scale"]
    source = NextScalePrior(layout, embedding_dim=4, num_phi=2, **small)
    prior = NextScalePrior(layout, tables=tables_of(quantizer, 4), **small)
    assert prior.inherit(source) == []
    assert torch.equal(prior.network.scales.entries[2], quantizer.entries(2))
    assert torch.equal(prior.network.inward.weight, source.network.inward.weight)


def test_scales_of_one_codebook_share_a_head_and_others_have_their_own():
    assert len(build([(1, 1), (2, 2)]).network.heads) == 1
    prior = build([(1, 1), (2, 2)], sizes=(6, 9))
    assert [logits.shape[1] for logits in prior.logits(random_codes(prior), Condition())] == [6, 9]


@pytest.mark.parametrize(
    "change,reason",
    [
        (lambda tables: {}, "these codes have no scales"),
        (lambda tables: {"entries.0": tables["entries.0"]}, "these codes have no scales"),
        (lambda tables: tables | {"entries.4": tables["entries.0"]}, "these codes have 5 scales, not 4"),
        (lambda tables: tables | {"entries.2": torch.zeros(6, 3)}, "the tables of these codes do not fit each other"),
        (lambda tables: tables | {"entries.2": torch.zeros(5, 4)}, "the tables of these codes do not fit each other"),
        (lambda tables: tables | {"phi.bias": torch.zeros(3, 4)}, "the tables of these codes do not fit each other"),
    ],
)
def test_tables_that_are_not_those_of_its_scales_are_refused(change, reason, quantizer):
    with pytest.raises(InputError, match=reason):
        NextScalePrior(quantizer.layout((7, 4)), tables=change(tables_of(quantizer, 4)))


@pytest.mark.parametrize("shapes", [[(2, 2), (1, 1)], [(2, 2), (4, 1)], [(2,), (2, 2)]])
def test_grids_that_do_not_grow_are_refused(shapes):
    with pytest.raises(InputError, match="a next-scale prior learns grids that grow"):
        build(shapes)


# Known sites.


def test_whole_coarse_scales_are_kept_code_by_code():
    prior = build(SHAPES["five scales"])
    codes = random_codes(prior, 4)
    masks = tuple(torch.full(grid.shape, number < 3) for number, grid in enumerate(codes))
    drawn = sample(prior, 4, known=Known(codes, masks))
    assert same(drawn[:3], codes[:3]) and not same(drawn[3:], codes[3:])
    masks[3][:, :2] = True  # nothing else was drawn before
    assert torch.equal(sample(prior, 4, known=Known(codes, masks))[3][:, :2], codes[3][:, :2])


@pytest.mark.parametrize("backend", ["torch", "plain"])
def test_kept_sites_show_their_picture_again_though_coarser_codes_are_drawn_anew(backend, quantizer):
    torch.manual_seed(1)
    tables = tables_of(quantizer, 4)
    tables["entries.3"] = 2 * torch.randn(500, 4)  # so many that the finest scale can say anything
    layout = (*quantizer.layout((7, 4))[:3], Grid((7, 4), 500))
    prior = NextScalePrior(layout, tables=tables, **SMALL["next-scale"]).eval()
    codes = random_codes(prior, 3)
    masks = tuple(torch.zeros(grid.shape, dtype=torch.bool) for grid in codes)
    masks[3][:, :4] = True
    seen, known, noise = [], Known(codes, masks), Noise(0, count=3).of("grid", 0)
    for progress in prior.sample(Condition(), noise, SamplingConfig(), known, backend, watch=True):
        seen.append([int(mark.sum()) for mark in progress.drawn])  # no code is shown that changes later
    assert seen == [[3, 0, 0, 0], [3, 6, 0, 0], [3, 6, 24, 0], [3, 6, 24, 84]]
    drawn = progress.codes
    assert not same(drawn[:3], codes[:3])
    shown, wanted = (
        prior.network.scales.so_far(each[:3]) + tables["entries.3"][each[3]].movedim(-1, 1) for each in (drawn, codes)
    )
    as_they_were = shown + (tables["entries.3"][codes[3]] - tables["entries.3"][drawn[3]]).movedim(-1, 1)
    error, error_of_same_codes = ((each - wanted)[:, :, :4].square().mean() for each in (shown, as_they_were))
    assert error < 0.5 * error_of_same_codes
    assert same(drawn, sample(prior, 3, known=known, backend=backend, batch_size=2))


def test_keeping_roughly_needs_the_codes_of_all_sites():
    prior = build(SHAPES["five scales"])
    codes = random_codes(prior, 2)
    masks = tuple(torch.zeros_like(grid, dtype=torch.bool) for grid in codes)
    masks[4][:, :2] = True
    hidden = tuple(grid.masked_fill(~mask, -1) for grid, mask in zip(codes, masks, strict=True))
    with pytest.raises(InputError, match="`known`: code -1, but the codes are 0 to 5"):
        sample(prior, 2, known=Known(hidden, masks))


# Through the commands.


@pytest.fixture(scope="module")
def run(bars_file, tmp_path_factory):
    """A folder with an untrained tokenizer of 1×1, 1×2 and 3×5 codes, codes of the bars, and a prior."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("scales")
    sizes = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 4, "scales": (1, 2, 5)}
    tokenizer = VQVAE(Signal("image", 1, (12, 20)), quantizer="multiscale", **sizes)
    (latents,) = tokenizer.encode_latents(torch.rand(16, 1, 12, 20) * 2 - 1)
    tokenizer.quantizer.book.codebook.data = latents[:, :, 1, 2].detach()  # so that codes differ
    tokenizer.save_pretrained(folder / "tokenizer")
    export_codes(ExportCodes(run=str(folder), dataset="npz", data_root=str(bars_file)))
    train_prior(settings_of(folder))
    return folder


def settings_of(folder, **more):
    options = {"channels": 16, "num_layers": 1, "num_heads": 2}
    settings = {"model": "next-scale", "steps": 20, "batch_size": 54, "lr": 0.01, "precision": "fp32"}
    return TrainPrior(run=folder and str(folder), **{**settings, "validate_every": 20, "options": options, **more})


def test_a_prior_learns_the_codes_of_a_run_and_keeps_the_vectors_that_lie_beside_them(run):
    pipeline = TwoStagePipeline.from_pretrained(run)
    (prior,), quantizer = pipeline.priors, pipeline.tokenizer.quantizer
    codes = pipeline.sample(3, seed=1).codes
    assert torch.equal(prior.network.scales.so_far(codes), quantizer.look_up(codes))


def test_each_scale_is_a_whole_picture_in_the_viewer(run):
    pipeline = TwoStagePipeline.from_pretrained(run)
    steps = list(actions.sample(pipeline, 2))
    assert len(steps) == 3
    assert all((torch.as_tensor(step.images) != 0).all() for step in steps)  # no pixel is grey for want of a code


@pytest.mark.parametrize("keep", [1, "a hole"])
def test_what_is_hidden_of_a_picture_changes_no_completion(keep, run):
    pipeline = TwoStagePipeline.from_pretrained(run)
    images = torch.rand(2, 1, 12, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    known = torch.ones(12, 20, dtype=torch.bool)
    known[4:9, 8:16] = False
    done = pipeline.complete(images, known if keep == "a hole" else keep, 2, seed=1)
    assert done.images.shape == (4, 1, 12, 20)
    if keep == "a hole":
        other = torch.where(known, images, -images)
        assert same(done.codes, pipeline.complete(other, known, 2, seed=1).codes)
    assert not same(done.codes, pipeline.complete(images.flip(0), known, 2, seed=1).codes)


@pytest.mark.parametrize(
    "given,reason",
    [
        ({"grid": (0, 1)}, "these codes have 3 scales, not 2"),
        ({"grid": (1, 2)}, "a next-scale prior cannot be conditioned on the coarser grids"),
        ({"model": "pixelcnn"}, "a pixelcnn prior learns grids .* train one for each grid"),
    ],
)
def test_some_scales_without_the_others_are_refused(given, reason, run, tmp_path):
    options = {} if "model" in given else settings_of(run).options
    with pytest.raises(InputError, match=reason):
        train_prior(settings_of(run, output=str(tmp_path / "prior"), **{"options": options, **given}))


def test_the_scales_of_one_level_of_a_hierarchy_are_learnt_before_the_other_grids():
    torch.manual_seed(0)
    sizes = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 4}
    signal, names = Signal("image", 1, (16, 24)), ("multiscale", "ema")
    tokenizer = HierarchicalVQVAE(signal, levels=(4, 2), level_quantizers=names, **sizes).eval()
    coarse, last = tokenizer.quantizer[0], len(tokenizer.layout) - 1
    coarse.book.codebook.data.normal_()

    def make(model, *grid):
        options = {"channels": 16, "num_layers": 1, "num_heads": 2}
        settings = TrainPrior(codes="codes", output="prior", model=model, grid=grid, options=options)
        prior = make_prior(settings, tokenizer.layout, lambda: tables_of(tokenizer.quantizer, last + 1)).eval()
        prior.provenance = {"tokenizer_fingerprint": tokenizer.fingerprint()}
        return prior

    pipeline = TwoStagePipeline(tokenizer, make("next-scale", *range(last)), make("maskgit", last))
    codes = pipeline.sample(3, seed=0, progress=False).codes[:last]
    assert last > 1 and torch.equal(pipeline.priors[0].network.scales.so_far(codes), coarse.look_up(codes))
    for grids in (range(last + 1), (0,)):
        with pytest.raises(InputError, match=f"not the scales of one level: those are the grids 0 to {last - 1}"):
            make("next-scale", *grids)


def test_the_tables_of_a_level_are_those_of_codes_that_have_no_other_grids():
    names = ("entries.0", "entries.1", "entries.2", "grids.1-2.phi.bias")
    tables = {name: torch.full((), float(number)) for number, name in enumerate(names)}
    own = {name: int(table) for name, table in tables_of_grids(tables, (1, 2)).items()}
    assert own == {"entries.0": 1, "entries.1": 2, "phi.bias": 3}
    assert tables_of_grids(tables, (0, 1)) == tables


def test_codes_without_scales_are_refused_in_one_line(small_run, tmp_path):
    with pytest.raises(InputError, match="these codes have no scales: only the multiscale quantizer makes codes that"):
        train_prior(settings_of(small_run, output=str(tmp_path / "prior")))
    codes = str(tmp_path / "codes.npz")
    np.savez(codes, codes=np.arange(600).reshape(40, 3, 5) % 7)
    with pytest.raises(InputError, match="codes, but not what they stand for: name their tokenizer as `tokenizer`"):
        train_prior(settings_of(None, codes=codes, output=str(tmp_path / "prior")))


def test_it_draws_in_half_precision_too():
    prior = build(SHAPES["five scales"]).bfloat16()
    assert all(grid.min() >= 0 for grid in sample(prior, 2, labels=[1]))

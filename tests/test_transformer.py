"""The causal transformer: several grids, what it is given, its cache, what is kept.

Shapes: b batch, h w code grid.
"""

import math
import shutil
from itertools import pairwise

import pytest
import torch
from small_priors import build_prior, random_codes
from untrained import make_pipeline

from codegrid import CausalTransformer, InputError, Known, SamplingConfig
from codegrid.codes import HIDDEN, Condition, Grid
from codegrid.noise import Noise
from codegrid.pipelines.generation.sampling import sample as sample_command
from codegrid.pipelines.sample import Sample
from codegrid.stage2_prior import sample
from codegrid.stage2_prior.transformer import cache, compiled

PYRAMID = (Grid((2, 1), 8), Grid((3, 4), 6), Grid((3, 4), 5))
COARSER = {"grids": (2, 3, 4), "given_grids": (0, 1), "given_layout": [Grid((1, 2), 6), Grid((2, 2), 4)]}


def build(layout=PYRAMID, **options):
    return build_prior("transformer", layout=layout, **{"decided": 20, "condition_blocks": 1, **options})


def given_to(prior, count, labels=None):
    codes = (torch.randint(HIDDEN, grid.num_embeddings, (count, *grid.shape)) for grid in prior.given_layout)
    return Condition(labels, codes=tuple(codes))


def same(*drawn):
    return all(torch.equal(*grids) for grids in zip(*drawn, strict=True))


@torch.no_grad()
def test_a_new_one_finds_all_codes_equally_likely():
    torch.manual_seed(0)
    prior = CausalTransformer(PYRAMID, num_classes=3)
    nats = prior.nll(random_codes(prior), Condition(torch.tensor([0, 2])))
    for grid, of in zip(nats, PYRAMID, strict=True):
        torch.testing.assert_close(grid, torch.full_like(grid, math.log(of.num_embeddings)))


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[25], [2, 23], [3, 9, 1, 12], [1] * 25])
def test_codes_of_all_grids_are_taken_in_at_once_or_in_pieces(pieces):
    prior = build(num_classes=3, **COARSER)
    given, codes = given_to(prior, 3, torch.tensor([0, 2, 1])), random_codes(prior, 3)
    expected, steps = prior.logits(codes, given), prior.steps(given, 3, "torch")
    listed = [codes[grid].flatten(1)[:, site] for grid, (site,) in steps.order]
    memory = steps.cache.tensor.data_ptr()
    for begin, end in pairwise([0, *torch.tensor(pieces).cumsum(0).tolist()]):
        steps.append(torch.stack(listed[begin:end], 1))
        grid, (site,) = steps.order[end]
        torch.testing.assert_close(steps.next_logits()[:, 0], expected[grid].flatten(2)[:, :, site])
    assert steps.cache.tensor.data_ptr() == memory and steps.cache.length == 26
    held = steps.cache.tensor.numel() * steps.cache.tensor.element_size()
    assert held == 3 * prior.bytes_per_sample == 3 * 2 * 2 * 26 * 16 * 8  # 2 · layers · codes · channels numbers


@pytest.mark.parametrize("sites", [(1, 1), (2, 1)])
def test_features_are_seen_at_their_sites_by_all_grids(sites):
    prior = build(given_features=4)
    codes, features = random_codes(prior, 1), torch.randn(1, 4, *sites, dtype=torch.float64)
    changed = features.repeat(3, 1, 1, 1)
    changed[1:, :, 0, 0] += 1
    given = Condition(features=(changed,))
    with torch.no_grad():
        for logits in prior.logits(tuple(grid.expand(3, -1, -1) for grid in codes), given):
            assert torch.allclose(logits[1], logits[2]) and not torch.allclose(logits[0], logits[1])
    drawn = [draw_with(prior, given, backend) for backend in ("torch", "plain")]
    assert same(*drawn)
    with pytest.raises(InputError, match="`features`"):
        prior.logits(codes, Condition())


def draw_with(prior, given, backend):
    *_, last = prior.sample(given, Noise(0, count=3), SamplingConfig(), None, backend)
    return last.codes


def test_rows_of_every_grid_can_be_kept():
    prior = build()
    codes, masks = random_codes(prior, 3), [torch.zeros(grid.shape, dtype=torch.bool) for grid in PYRAMID]
    for mask, rows in zip(masks, (1, 2, 2), strict=True):
        mask[:rows] = True
    known = Known(codes, tuple(masks))
    drawn = [sample(prior, 3, known=known, backend=backend) for backend in ("torch", "plain")]
    assert same(*drawn)
    for grid, kept, mask in zip(drawn[0], codes, masks, strict=True):
        assert torch.equal(grid[:, mask], kept[:, mask])
    masks[1][2, 2] = True
    with pytest.raises(InputError, match="`known` keeps site 10 of grid 1 in raster order, but not all before it"):
        sample(prior, 3, known=known)


def test_one_position_with_a_masked_cache_is_one_beside_what_is_kept(monkeypatch):
    monkeypatch.setattr(cache, "compiled_position", lambda: compiled.one_position)  # as it is before it is compiled
    prior = build(num_classes=3, label_dropout=0.1)
    options = {"labels": [0, 2, 1], "guidance_scale": 2.0, "known": Known(random_codes(prior, 3), half_of_first())}
    assert same(*(sample(prior, 3, backend=backend, **options) for backend in ("compiled", "plain")))


def half_of_first():
    masks = [torch.zeros(grid.shape, dtype=torch.bool) for grid in PYRAMID]
    masks[0][:1] = True
    return tuple(masks)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_sampling_draws_the_same_codes_and_compiles_once():
    prior = build(num_classes=3, label_dropout=0.1)
    torch._dynamo.utils.counters.clear()
    for seed in (0, 1):
        options = {"labels": [0, 2, 1], "guidance_scale": 2.0, "seed": seed}
        assert same(*(sample(prior, 3, backend=backend, **options) for backend in ("compiled", "plain")))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_dry_run_of_sampling_states_the_memory_of_keys_and_values(tmp_path, capsys):
    pipeline = make_pipeline()
    tokenizer = pipeline.tokenizer
    prior = CausalTransformer(tokenizer.layout, num_classes=2, channels=16, num_layers=3, num_heads=2)
    prior.provenance = {"tokenizer_fingerprint": tokenizer.fingerprint(), "classes": ["0", "1"]}
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    prior.save_pretrained(tmp_path / "prior")
    for scale, times in ((1.0, 1), (2.0, 2)):
        sample_command(Sample(run=str(tmp_path), num_samples=30, guidance_scale=(scale,), dry_run=True, device="cpu"))
        each = times * 2 * 3 * 15 * 16 * 4
        assert f"memory: keys and values of grid 0: 0 MB at once, {each:,} bytes a sample" in capsys.readouterr().out
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    "options,reason",
    [
        ({"num_heads": 3}, "`channels` 16: it must be a multiple of 6, twice `num_heads`"),
        ({"dropout": 0.1}, "`dropout`: the transformer prior has no such option"),
        ({"layout": (Grid((6,), 8), Grid((3, 2), 8))}, "`layout` of 6 codes out of 8, 3×2 .*same number of axes"),
        (
            {"layout": (Grid((6,), 8),), "grids": (1,), "given_grids": (0,), "given_layout": [Grid((2, 2), 8)]},
            r"`given_grids`: only a prior of grids \(h, w\)",
        ),
    ],
)
def test_what_the_network_cannot_be_built_for_is_refused_by_name(options, reason):
    with pytest.raises(InputError, match=reason):
        build(**options)

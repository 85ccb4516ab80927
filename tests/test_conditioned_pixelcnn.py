"""The gated PixelCNN over grids whose codes depend on those of coarser grids.

Shapes: b batch, h w code grid, n codes of all grids in the order in which they are drawn.
"""

import pytest
import torch
from test_rows import each_device
from toy_priors import UniformPrior

from codegrid.codes import HIDDEN, NO_LABEL, Condition, Grid, Known, Moment
from codegrid.errors import InputError
from codegrid.native.build import library_or_reason
from codegrid.noise import Noise
from codegrid.registry import TABLES
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior import GatedPixelCNN, sample
from codegrid.stage2_prior.coarser import enlarge
from codegrid.stage2_prior.native.structures import PIXELCNN
from codegrid.stage2_prior.options import CoarserOptions
from codegrid.stage2_prior.pixelcnn import cache, compiled
from codegrid.stage2_prior.pixelcnn.rows import sample_by_rows
from codegrid.stage2_prior.sampling.checks import with_hidden
from codegrid.stage2_prior.sequential_prior import SequentialPrior

# shapes of the coarser grids, shape and sizes of the own ones
FAMILIES = {
    "7×5 from 4×3": (((4, 3),), (7, 5), (8,)),
    "6×4 from 3×2 and 2×1": (((2, 1), (3, 2)), (6, 4), (8,)),
    "two codes a site from two": (((2, 3), (2, 3)), (4, 5), (8, 5)),
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
needs_compiler = pytest.mark.skipif(
    isinstance(library_or_reason(PIXELCNN), str), reason=f"{library_or_reason(PIXELCNN)}"
)
LABELS = torch.tensor([0, 2, 1, NO_LABEL])


def build(family=FAMILIES["7×5 from 4×3"], num_classes=0, decided=20, **options):
    coarser, shape, sizes = family
    torch.manual_seed(0)
    options = {"channels": 6, "num_layers": 3, "first_kernel": 5, "condition_channels": 7, "condition_blocks": 1,
               **options}  # fmt: skip
    prior = GatedPixelCNN(
        [Grid(shape, size) for size in sizes], range(len(coarser), len(coarser) + len(sizes)), num_classes,
        range(len(coarser)), [Grid(sides, 6 + i) for i, sides in enumerate(coarser)], **options,
    ).double()  # fmt: skip
    with torch.no_grad():  # as decided as a trained prior
        for head in prior.network.heads:
            head[-1].weight *= decided
        for layer in prior.network.layers:
            layer.of_map.weight *= 5
    return prior.eval()


def random_codes(layout, count=4):
    return tuple(torch.randint(0, grid.num_embeddings, (count, *grid.shape)) for grid in layout)


def random_condition(prior, labels=None, count=4):
    """Coarser codes, some of them hidden."""
    codes = [grid.masked_fill(torch.rand(grid.shape) < 0.1, HIDDEN) for grid in random_codes(prior.given_layout, count)]
    return Condition(labels, codes=tuple(codes))


def in_order(grids):
    """(b, n) of all codes of a site and then the next, from (b, h, w) each."""
    return torch.stack([grid.flatten(1) for grid in grids], -1).flatten(1)


def drawn(prior, given, backend="torch", known=None, seed=0, **controls):
    """Codes (b, n) from a backend; `rows` is a plain call of what a GPU records as a graph."""
    noise, config = Noise(seed, count=len(given.codes[0]), device=prior.device), SamplingConfig(**controls)
    progress = (
        sample_by_rows(prior, given, noise, config, known)
        if backend == "rows"
        else prior.sample(given, noise, config, known, backend)
    )
    *_, last = progress
    return in_order(last.codes)


def changes(prior, codes, given):
    """Whether the logits of each code are other ones than in the first row of a batch, (b, n)."""
    return in_order([(grid - grid[:1]).abs().amax(1) > 1e-12 for grid in prior.logits(codes, given)])


@torch.no_grad()
@each_family
def test_a_code_depends_on_every_coarser_one_and_on_no_later_one(family):
    prior = build(family, decided=1, channels=24, condition_blocks=3)
    given, codes = random_condition(prior, count=1), random_codes(prior.layout, 1)
    for number, grid in enumerate(given.codes):
        changed = grid.expand(1 + grid[0].numel(), *grid.shape[1:]).clone()
        changed[1:].flatten(1).diagonal().add_(1).remainder_(prior.given_layout[number].num_embeddings)
        rows = [other.expand(len(changed), -1, -1) for other in given.codes]
        rows[number] = changed
        same = tuple(own.expand(len(changed), -1, -1) for own in codes)
        assert changes(prior, same, Condition(codes=tuple(rows)))[1:].all()
    listed, others = in_order(codes), in_order(random_codes(prior.layout, 1))
    number = torch.arange(listed.shape[1])
    both = torch.where(number < number[:, None], listed, others)  # row i: changed from code i on
    both = torch.cat([listed, both]).view(-1, *prior.layout[0].shape, len(codes)).unbind(-1)
    changed = changes(prior, both, given.rows([0] * (1 + len(number))))[1:]
    assert not changed.tril().any() and changed.triu(1).any()


@torch.no_grad()
@each_family
@pytest.mark.parametrize(
    "backend,dtype,off",
    [
        ("torch", torch.float64, 1e-10),
        ("torch", torch.float32, 1e-4),
        pytest.param("native", torch.float32, 1e-4, marks=needs_compiler),
    ],
)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_the_cache_gives_the_logits_of_the_parallel_pass(family, backend, dtype, off, num_classes):
    prior = build(family, num_classes).to(dtype)
    given, codes = random_condition(prior, LABELS if num_classes else None), random_codes(prior.layout)
    expected, steps = prior.logits(codes, given), prior.steps(given, 4, backend)
    for grid, (site,) in steps.order:
        torch.testing.assert_close(steps.next_logits()[:, 0], expected[grid].flatten(2)[:, :, site], atol=off, rtol=off)
        steps.append(codes[grid].flatten(1)[:, site : site + 1])


@each_family
@pytest.mark.parametrize(
    "controls,num_known", [({}, 0), ({"guidance_scale": 2.0, "temperature": 0.7}, 7)], ids=["plain", "guided"]
)
def test_all_backends_draw_the_same_codes(family, controls, num_known, monkeypatch):
    monkeypatch.setattr(cache, "compiled_site", lambda device_type: compiled.site)  # as it is before it is compiled
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)  # imports for seconds
    prior = build(family, 3)
    given = random_condition(prior, LABELS)
    expected = drawn(prior, given, "plain", **controls)
    first = torch.arange(expected[0].numel()).view(-1, len(prior.layout)).T.reshape(-1, *prior.layout[0].shape)
    codes = expected.view(4, -1, len(first)).mT.reshape(4, *first.shape)
    known = Known(tuple(codes.unbind(1)), tuple(first < num_known))
    for backend in ("torch", "rows", "compiled"):
        assert torch.equal(drawn(prior, given, backend, known, **controls), expected)
    if not isinstance(library_or_reason(PIXELCNN), str):
        assert torch.equal(drawn(prior.float(), given, "native", known, **controls), expected)


@each_device
def test_rows_that_a_graph_records_take_the_map_of_each_batch(device):
    prior = build(num_classes=3).to(device)
    batches = [random_condition(prior, LABELS).to(device) for _ in range(2)]
    expected = [drawn(prior, given) for given in batches]
    with torch.inference_mode():
        assert torch.equal(drawn(prior, batches[0], "rows"), expected[0])
    for given, codes in zip(batches, expected, strict=True):
        assert torch.equal(drawn(prior, given, "rows"), codes)
    assert not torch.equal(*expected)


def test_a_sample_follows_from_its_number_and_its_own_coarser_codes():
    prior = build()
    given = random_condition(prior)
    whole = drawn(prior, given)
    for index in (0, 3):
        *_, last = prior.sample(given.rows([index]), Noise(0, index), SamplingConfig(), backend="torch")
        assert torch.equal(in_order(last.codes)[0], whole[index])


@torch.no_grad()
def test_guidance_is_two_runs_with_the_same_coarser_codes():
    prior = build(num_classes=3)
    given, codes = random_condition(prior, LABELS), random_codes(prior.layout)
    shown, hidden = (prior.logits(codes, one)[0] for one in (given, given._replace(labels=None)))
    assert not torch.allclose(shown[0], hidden[0])
    both = prior.steps(with_hidden(given), 8, "torch")
    torch.testing.assert_close(both.next_logits()[:, 0], torch.cat([shown, hidden]).flatten(2)[:, :, 0])


@pytest.mark.parametrize("backend", ["torch", "rows", pytest.param("native", marks=needs_compiler)])
def test_the_network_of_the_coarser_grids_runs_once_a_batch(backend):
    prior, seen = build(num_classes=3).float(), []
    prior.network.coarser.register_forward_hook(lambda module, inputs, features: seen.append(features.shape))
    for _ in range(2):
        drawn(prior, random_condition(prior, LABELS), backend, guidance_scale=2.0)
    assert seen == [(8, 7, 7, 5)] * 2


def test_codes_under_random_coarser_ones_are_those_below_a_uniform_prior():
    fine = build(FAMILIES["6×4 from 3×2 and 2×1"], 3)
    coarse = UniformPrior(fine.given_layout).eval()
    how = {"seed": 3, "temperature": 0.5, "labels": [1], "backend": "torch"}
    *coarser, expected = sample([coarse, fine], 5, batch_size=2, **how)
    assert torch.equal(sample(fine, 5, codes=tuple(coarser), **how)[0], expected)
    assert not torch.equal(sample(fine, 5, codes=tuple(grid[:1] for grid in coarser), **how)[0], expected)


def loss_of(prior, codes, given, moment=None):
    with torch.no_grad():
        return prior(codes, given, moment).total.item()


def test_coarser_codes_are_hidden_in_training_moments_alone_by_the_noise_of_the_sample():
    options = {"dropout": 0.0, "coarse_dropout": 0.4}
    prior = build(FAMILIES["6×4 from 3×2 and 2×1"], **options).train()
    given, codes = Condition(codes=random_codes(prior.given_layout, 6)), random_codes(prior.layout, 6)
    plain, hiding = loss_of(prior, codes, given), loss_of(prior, codes, given, Moment(0, 9, Noise(3, 0, 6)))
    parts = [
        loss_of(prior, (codes[0][rows],), given.rows(rows), Moment(0, 9, Noise(3, rows.start, 2)))
        for rows in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    assert plain == loss_of(prior, codes, given) != hiding == pytest.approx(sum(parts) / 3)
    assert hiding != loss_of(prior, codes, given, Moment(1, 9, Noise(4, 0, 6)))
    hidden = [
        Noise(3, 0, 6).uniforms(f"coarse dropout {i}", *grid.shape[1:]) < 0.4 for i, grid in enumerate(given.codes)
    ]
    by_hand = tuple(grid.masked_fill(mask, HIDDEN) for grid, mask in zip(given.codes, hidden, strict=True))
    assert hiding == pytest.approx(loss_of(prior, codes, Condition(codes=by_hand)))


class Summing(SequentialPrior):
    """One code, whose logits are the code below it."""

    options = CoarserOptions

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def logits(self, codes, given):
        (below,) = self.coarser_codes(given, len(codes[0]))
        return ((self.scale * below)[:, None] * torch.arange(4)[:, None, None],)


def test_any_prior_with_these_options_is_given_coarser_codes_and_trained_with_some_hidden():
    prior = Summing([Grid((1, 1), 4)], (1,), given_grids=(0,), given_layout=[Grid((1, 1), 3)], coarse_dropout=0.5)
    codes, given = (torch.zeros(20, 1, 1).long(),), Condition(codes=(torch.full((20, 1, 1), 2),))
    plain, hiding = loss_of(prior, codes, given), loss_of(prior, codes, given, Moment(0, 9, Noise(3, 0, 20)))
    hidden = Noise(3, 0, 20).uniforms("coarse dropout 0", 1, 1) < 0.5
    some = Condition(codes=(given.codes[0].masked_fill(hidden, HIDDEN),))
    assert plain != hiding == loss_of(prior, codes, some)


def test_training_makes_use_of_the_coarser_codes():
    torch.manual_seed(0)
    prior = GatedPixelCNN(
        (Grid((4, 3), 4),), (1,), given_grids=(0,), given_layout=(Grid((2, 2), 4),), channels=12, num_layers=1,
        condition_channels=12, condition_blocks=0, dropout=0, coarse_dropout=0,
    )  # fmt: skip
    given = Condition(codes=random_codes(prior.given_layout, 64))
    codes = (enlarge(given.codes[0][:, None].float(), (4, 3))[:, 0].long(),)
    for step in range(30):
        loss = prior(codes, given, Moment(step, 30, Noise(step, count=64))).total
        gradients = torch.autograd.grad(loss, list(prior.parameters()))  # each weight has one
        with torch.no_grad():
            for weight, gradient in zip(prior.parameters(), gradients, strict=True):
                weight -= 0.02 * gradient.sign()
    known, mixed = (loss_of(prior, codes, one) for one in (given, given.rows(torch.randperm(64))))
    assert known < 0.1 and mixed > 1


def test_a_step_in_bfloat16_is_in_bfloat16_throughout():
    prior, seen = build(num_classes=3).float(), set()
    for layer in prior.network.layers:
        layer.register_forward_hook(lambda layer, inputs, outputs: seen.update(x.dtype for x in outputs))
    with torch.autocast("cpu", torch.bfloat16):
        losses = prior(random_codes(prior.layout), random_condition(prior, LABELS))
    assert seen == {torch.bfloat16} and losses.total.dtype == torch.float32


REFUSED = {
    "none": ((), "`codes` of 0 coarser grids, but this prior needs the grids 0, 1"),
    "one too few": ((torch.zeros(2, 2, 1),), "`codes` of 1 coarser grids"),
    "fine to coarse": ((torch.zeros(2, 3, 2), torch.zeros(2, 2, 1)), r"`codes` of shape \(2, 3, 2\) for grid 0"),
    "of another batch": ((torch.zeros(3, 2, 1), torch.zeros(3, 3, 2)), r"but \(2, 2, 1\) is needed"),
    "beyond the last code": ((torch.zeros(2, 2, 1), torch.full((2, 3, 2), 7)), "`codes`: code 7 for grid 1"),
    "below a hidden one": ((torch.full((2, 2, 1), -2), torch.zeros(2, 3, 2)), "`codes`: code -2 for grid 0"),
    "hidden": ((torch.full((2, 2, 1), HIDDEN), torch.zeros(2, 3, 2)), "`codes`: hidden codes for grid 0"),
}


@pytest.mark.parametrize("codes,reason", REFUSED.values(), ids=REFUSED)
def test_coarser_codes_that_do_not_fit_are_refused_by_name(codes, reason):
    prior = build(FAMILIES["6×4 from 3×2 and 2×1"], coarse_dropout=0.0)
    given, own = Condition(codes=tuple(grid.long() for grid in codes)), random_codes(prior.layout, 2)
    for ask in (prior, prior.logits, prior.nll):
        with pytest.raises(InputError, match=reason):
            ask(own, given)
    for backend in ("plain", "torch"):
        with pytest.raises(InputError, match=reason):
            prior.steps(given, 2, backend).next_logits()


def test_a_prior_that_makes_nothing_of_coarser_grids_refuses_them():
    with pytest.raises(InputError, match=r"`given_grids` \(0,\): PixelSNAIL cannot be conditioned on coarser grids"):
        TABLES["prior"]["pixelsnail"]([Grid((4, 4), 8)], (1,), given_grids=(0,), given_layout=[Grid((2, 2), 8)])


@pytest.mark.parametrize(
    "grids,given_grids,given_layout,reason",
    [
        ((1,), (0, 1), [Grid((2, 2), 8)], r"`given_grids` \(0, 1\): give one number for each of 1 grids"),
        ((1,), (), [Grid((2, 2), 8)], r"`given_grids` \(\)"),
        ((0,), (1,), [Grid((2, 2), 8)], r"`given_grids` \(1,\): give them coarse to fine, all coarser"),
        ((2,), (1, 0), [Grid((2, 2), 8), Grid((1, 1), 8)], r"`given_grids` \(1, 0\): give them coarse to fine"),
        ((1,), (0,), [Grid((4,), 8)], "`given_layout` with 4 codes"),
    ],
)
def test_grids_that_no_prior_can_be_given_are_refused_by_name(grids, given_grids, given_layout, reason):
    with pytest.raises(InputError, match=reason):
        GatedPixelCNN([Grid((4, 4), 8)], grids, given_grids=given_grids, given_layout=given_layout)


def test_the_model_folder_holds_what_the_prior_is_given(tmp_path):
    prior = build(FAMILIES["6×4 from 3×2 and 2×1"], 3).float()
    prior.save_pretrained(tmp_path)
    again = GatedPixelCNN.from_pretrained(tmp_path)
    assert again.given_grids == (0, 1) and again.given_layout == prior.given_layout and again.config == prior.config
    assert again.fingerprint() == prior.fingerprint()
    given, codes = random_condition(prior, LABELS), random_codes(prior.layout)
    assert torch.equal(again.logits(codes, given)[0], prior.logits(codes, given)[0])


def test_a_prior_without_coarser_grids_does_not_hand_on_their_options():
    prior = GatedPixelCNN((Grid((3, 3), 8),), channels=4, num_layers=1, coarse_dropout=0.0)
    assert not prior.config.keys() & {"given_grids", "given_layout", "coarse_dropout", "condition_blocks"}
    assert TABLES["prior"]["pixelcnn"](**prior.config).config == prior.config


def test_a_prior_takes_what_fits_from_one_of_other_coarser_grids():
    old, new = build(num_classes=3), build((((4, 3), (7, 5)), (7, 5), (8,)), num_classes=3)
    with torch.no_grad():
        for weight in new.parameters():
            weight.zero_()
    fresh = new.inherit(old)
    assert fresh == ["network.coarser.tables.1.weight", *(name for name in new.state_dict() if ".blocks.1." in name)]
    assert torch.equal(new.network.coarser.tables[0].weight, old.network.coarser.tables[0].weight)
    flat = GatedPixelCNN(old.layout, num_classes=3, channels=6, num_layers=3, first_kernel=5)
    assert not flat.inherit(old) and {name.split(".")[1] for name in old.inherit(flat)} == {"coarser", "layers"}


@pytest.mark.parametrize(
    "coarse,fine,expected",
    [
        (4, 7, [0, 0, 1, 1, 2, 2, 3]),  # padded to 8 before it was halved
        (4, 13, [0] * 4 + [1] * 4 + [2] * 4 + [3]),
        (3, 3, [0, 1, 2]),
        (7, 15, [0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6]),
        (4, 5, [0, 1, 2, 2, 3]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_a_site_takes_the_features_of_the_one_that_covers_it(coarse, fine, expected):
    row = torch.arange(float(coarse)).view(1, 1, 1, -1)
    assert enlarge(row, (2, fine))[0, 0].tolist() == [expected, expected]
    assert enlarge(row.mT, (fine, 1))[0, 0, :, 0].tolist() == expected

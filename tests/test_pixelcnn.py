"""The gated PixelCNN: what each code sees, what it is trained on, what it refuses.

Shapes: h w code grid.
"""

import math

import pytest
import torch

from codegrid.codes import NO_LABEL, Condition, Grid, Moment
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.registry import TABLES
from codegrid.stage2_prior import GatedPixelCNN
from codegrid.stage2_prior.likelihood import bits_per_code, measure, measure_accuracy
from codegrid.stage2_prior.options import PixelCNNOptions

SHAPES = [(4, 7), (7, 4), (1, 5), (5, 1)]
SIZES = [(8,), (8, 5), (8, 5, 6)]  # num_embeddings of one, two and three codes a site
each_size = pytest.mark.parametrize("sizes", SIZES, ids=["one", "two", "three"])


def build(sizes=(8,), shape=(4, 7), num_classes=0, **options):
    torch.manual_seed(0)
    # wide enough that no site has all its features cut off by the ReLU of the head
    options = {
        "channels": 24, "num_layers": 3, "first_kernel": 5, "dropout": 0.0, "label_dropout": 0.0, **options,
    }  # fmt: skip
    return GatedPixelCNN([Grid(shape, size) for size in sizes], num_classes=num_classes, **options).double()


def random_codes(prior, count=2):
    return tuple(torch.randint(0, grid.num_embeddings, (count, *grid.shape)) for grid in prior.layout)


def given(*labels):
    return Condition(torch.tensor(labels))


def sites_that_see(site, height, width, first_kernel, kernel, num_layers):
    """Sites whose logits may depend on `site`, found by walking through the kernels layer by layer."""
    vertical, horizontal = set(), set()
    grid = [(r, c) for r in range(height) for c in range(width)]
    for layer in range(num_layers):
        reach = (first_kernel if layer == 0 else kernel) // 2
        first = layer == 0
        # the vertical stack looks up to `reach` rows up, and in later layers at its own row, `reach` to each side
        seen_above = {
            (r, c) for r, c in grid
            if any((r - up, c + side) in ({site} if first else vertical)
                   for up in range(1 if first else 0, reach + 1) for side in range(-reach, reach + 1))
        }  # fmt: skip
        seen_left = {
            (r, c) for r, c in grid
            if any((r, c - left) in ({site} if first else horizontal) for left in range(1 if first else 0, reach + 1))
        }  # fmt: skip
        vertical = seen_above
        horizontal = (set() if first else horizontal) | seen_left | seen_above
    return horizontal


def codes_that_see(prior, codes):
    """For each code (row, column, grid): those, in the same way, whose logits change with it. One batch of all."""
    sites = torch.ones(codes[0].shape[1:]).nonzero().tolist()
    places = [(row, column, k) for k in range(len(codes)) for row, column in sites]
    changed = [grid.expand(len(places), -1, -1).clone() for grid in codes]
    for i, (row, column, k) in enumerate(places):
        changed[k][i, row, column] = (changed[k][i, row, column] + 1) % prior.layout[k].num_embeddings
    pairs = zip(prior.logits(tuple(changed)), prior.logits(codes), strict=True)
    differ = torch.stack([(new - old).abs().amax(1) > 1e-12 for new, old in pairs], -1)  # (changed, h, w, q)
    return {place: set(map(tuple, differ[i].nonzero().tolist())) for i, place in enumerate(places)}


@torch.no_grad()
@each_size
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("first_kernel,kernel", [(5, 3), (3, 5), (7, 3)])
def test_a_code_is_seen_by_exactly_the_later_codes_that_the_kernels_reach(first_kernel, kernel, shape, sizes):
    prior = build(sizes, shape, first_kernel=first_kernel, kernel=kernel)
    for place, seen in codes_that_see(prior, random_codes(prior, 1)).items():
        *site, grid = place
        later_at_the_site = {(*site, k) for k in range(grid + 1, len(sizes))}
        further = sites_that_see(tuple(site), *shape, first_kernel, kernel, 3)
        assert seen == {(*other, k) for other in further for k in range(len(sizes))} | later_at_the_site
        assert all(other > place for other in seen)


@torch.no_grad()
def test_no_site_within_the_reach_of_many_layers_is_blind():
    prior = build((8, 8), (6, 6), num_layers=8)
    seen = codes_that_see(prior, random_codes(prior, 1))[0, 0, 0]
    assert len(seen) == 71 and (0, 0, 0) not in seen


@each_size
def test_other_images_of_the_batch_do_not_matter(sizes):
    prior = build(sizes).train()
    codes = random_codes(prior, 3)
    alone = prior.logits(tuple(grid[1:2] for grid in codes))
    for one, together in zip(alone, prior.logits(codes), strict=True):
        torch.testing.assert_close(together[1:2], one)


def test_forward_and_a_backward_pass_leave_the_state_dict_as_it_was():
    prior = build((8, 5))
    before = {key: value.clone() for key, value in prior.state_dict().items()}
    prior(random_codes(prior), moment=Moment(0, 10, Noise(0, count=2))).total.backward()
    assert all(torch.equal(value, before[key]) for key, value in prior.state_dict().items())
    assert all(parameter.grad is not None for parameter in prior.parameters())


@torch.no_grad()
@each_size
def test_codes_are_categories_whose_numbers_do_not_matter(sizes):
    prior, renamed = build(sizes), build(sizes)
    codes = random_codes(prior)
    new_names = [torch.randperm(size) for size in sizes]
    for old, new in ((prior.network.embeddings, renamed.network.embeddings),
                     (prior.network.within_site, renamed.network.within_site)):  # fmt: skip
        for from_table, to_table, names in zip(old, new, new_names, strict=False):
            to_table.weight[names] = from_table.weight
    for old, new, names in zip(prior.network.heads, renamed.network.heads, new_names, strict=True):
        new[-1].weight[names], new[-1].bias[names] = old[-1].weight, old[-1].bias
    again = renamed(tuple(names[grid] for names, grid in zip(new_names, codes, strict=True)))
    torch.testing.assert_close(again.total, prior(codes).total)


@torch.no_grad()
@each_size
def test_the_loss_is_the_mean_of_the_nats_of_all_codes(sizes):
    prior = build(sizes)
    codes = random_codes(prior, 3)
    losses, nats = prior(codes), prior.nll(codes)
    assert [grid.shape for grid in nats] == [grid.shape for grid in codes] and set(losses.terms) == {"nll"}
    pairs = zip(prior.logits(codes), codes, strict=True)
    expected = [logits.log_softmax(1).gather(1, grid[:, None]) for logits, grid in pairs]
    assert torch.stack(expected).mean().item() == pytest.approx(-losses.total.item())
    assert bits_per_code(nats) == pytest.approx(losses.figures["bits_per_code"].item())


@torch.no_grad()
@each_size
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_uniform_logits_cost_log2_k_bits_whatever_the_batches(sizes, batch_size):
    prior = build(sizes)
    for head in prior.network.heads:
        head[-1].weight.zero_(), head[-1].bias.zero_()
    codes = random_codes(prior, 5)
    batches = [
        (tuple(grid[first : first + batch_size] for grid in codes), Condition()) for first in range(0, 5, batch_size)
    ]
    bits = measure(prior, batches)
    assert bits.of_grids == pytest.approx(tuple(map(math.log2, sizes)), abs=1e-9) and bits.num_samples == 5
    assert bits.per_sample == pytest.approx(28 * sum(map(math.log2, sizes)))
    assert bits.per_code == pytest.approx(sum(map(math.log2, sizes)) / len(sizes))
    hits = sum(int((grid == 0).sum()) for grid in codes) / (5 * 28 * len(sizes))
    assert measure_accuracy(prior, batches) == pytest.approx(hits)


def test_a_prior_without_a_likelihood_has_no_bits():
    class Silent:
        device = "cpu"

        def nll(self, codes, given, noise, num_inference_steps):
            return None

    batches = [((torch.zeros(1, 2, 2),), Condition())]
    assert measure(Silent(), batches) is None and measure_accuracy(Silent(), batches) is None


@torch.no_grad()
@each_size
def test_the_label_changes_the_logits_of_every_code(sizes):
    prior = build(sizes, num_classes=3)
    codes = tuple(grid[:1].expand(2, -1, -1) for grid in random_codes(prior))
    for logits in prior.logits(codes, given(0, 2)):
        assert ((logits[0] - logits[1]).abs().amax(0) > 0).all()


def losses_at(prior, codes, condition, seed, first_index=0):
    torch.manual_seed(seed)
    return prior(codes, condition, Moment(0, 10, Noise(seed, first_index, len(codes[0])))).total.item()


@torch.no_grad()
def test_codes_and_labels_are_hidden_in_training_moments_alone():
    for options in ({"dropout": 0.5}, {"label_dropout": 0.5}):
        prior = build((8, 5), num_classes=3, **options).train()
        codes, condition = random_codes(prior, 8), given(*[0, 1, 2, 0, 1, 2, 0, 1])
        plain = prior(codes, condition).total.item()
        assert plain == prior(codes, condition).total.item() == prior.eval()(codes, condition).total.item()
        assert losses_at(prior, codes, condition, 0) == losses_at(prior, codes, condition, 0) != plain
        assert losses_at(prior, codes, condition, 0) != losses_at(prior, codes, condition, 1)


@torch.no_grad()
def test_which_labels_are_hidden_follows_from_the_number_of_the_sample_alone():
    prior = build(num_classes=3, label_dropout=0.4)
    codes, condition = random_codes(prior, 6), given(0, 1, 2, 0, 1, 2)
    whole = losses_at(prior, codes, condition, 3)
    parts = [
        losses_at(prior, (codes[0][first : first + 2],), condition.rows(slice(first, first + 2)), 3, first)
        for first in (0, 2, 4)
    ]
    assert sum(parts) / 3 == pytest.approx(whole)
    hidden = Noise(3, 0, 6).uniforms("label dropout") < 0.4
    expected = prior(codes, Condition(condition.labels.masked_fill(hidden, NO_LABEL))).total.item()
    assert whole == pytest.approx(expected) and 0 < hidden.sum() < 6


@torch.no_grad()
def test_a_prior_that_learnt_without_labels_can_be_asked_without():
    prior = build(num_classes=3, label_dropout=0.5)
    codes = random_codes(prior)
    (without,), (labelled,) = prior.logits(codes), prior.logits(codes, given(0, 2))
    assert not torch.allclose(without, labelled)
    (mixed,) = prior.logits(codes, given(0, NO_LABEL))
    assert torch.allclose(mixed, torch.cat([labelled[:1], without[1:]]))
    for layer in prior.network.layers:  # the classes have no part in it
        layer.condition.weight[:3] += 1
    assert torch.equal(without, prior.logits(codes)[0])


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_step_in_bfloat16_is_in_bfloat16_throughout(num_classes):
    prior = build(num_classes=num_classes).float()
    seen = set()
    for layer in prior.network.layers:
        layer.register_forward_hook(lambda layer, inputs, outputs: seen.update(x.dtype for x in outputs))
    with torch.autocast("cpu", torch.bfloat16):
        losses = prior(random_codes(prior), given(0, 2) if num_classes else Condition())
    assert seen == {torch.bfloat16} and losses.total.dtype == torch.float32


REFUSED = {
    "no label": (3, 0.0, Condition(), "was only trained with labels"),
    "a hidden label": (3, 0.0, given(0, NO_LABEL), "was only trained with labels"),
    "a label too many": (3, 0.5, given(0, 1, 2), "but 2 samples need one label each"),
    "a class beyond the last": (3, 0.5, given(0, 3), "`labels` 3: there are classes 0 to 2"),
    "a class below no label": (3, 0.0, given(0, -2), "`labels` -2: there are classes 0 to 2"),
    "labels without classes": (0, 0.0, given(0, 0), "`labels`: this prior is not conditioned"),
    "text": (3, 0.5, Condition(text=torch.ones(2, 4, dtype=torch.int64)), "`text`"),
    "coarser codes": (3, 0.5, Condition(codes=(torch.zeros(2, 2, 2),)), "`codes`"),
    "actions": (0, 0.0, Condition(actions=torch.zeros(2, 3)), "`actions`"),
}


@pytest.mark.parametrize("num_classes,label_dropout,condition,reason", REFUSED.values(), ids=REFUSED)
def test_a_condition_that_the_prior_did_not_learn_is_refused_by_name(num_classes, label_dropout, condition, reason):
    prior = build(num_classes=num_classes, label_dropout=label_dropout)
    for ask in (prior, prior.logits, prior.nll):
        with pytest.raises(InputError, match=reason):
            ask(random_codes(prior), condition)
    for backend in ("plain", "torch"):
        with pytest.raises(InputError, match=reason):
            prior.steps(condition, 2, backend).next_logits()


@pytest.mark.parametrize(
    "layout,options,reason",
    [
        ([Grid((4, 4), 8)], {"kernel": 4}, "`kernel` 4: it must be an odd number"),
        ([Grid((4, 4), 8)], {"first_kernel": 1}, "`first_kernel` 1"),
        ([Grid((4, 4), 8)], {"dropout": 1.0}, "`dropout` 1.0"),
        ([Grid((4, 4), 8)], {"depth": 3}, "`depth`: the pixelcnn prior has no such option"),
        ([Grid((4, 4), 8)], {"num_classes": -1}, "`num_classes` -1"),
        ([Grid((4, 4), 8)], {"grids": (0, 1)}, "`grids`"),
        ([Grid((4, 4), 8), Grid((4, 5), 8)], {}, "`layout` of 4×4, 4×5"),
        ([Grid((16,), 8)], {}, "`layout` of 16"),
        ([Grid((2, 4, 4), 8)], {}, "`layout` of 2×4×4"),
        ([], {}, "`layout` of no grid"),
    ],
)
def test_what_the_network_cannot_be_built_for_is_refused_by_name(layout, options, reason):
    with pytest.raises(InputError, match=reason):
        GatedPixelCNN(layout, **options)


def test_the_config_rebuilds_the_prior():
    prior = GatedPixelCNN((Grid((3, 4), 8), Grid((3, 4), 5)), grids=(1, 2), num_classes=2, channels=8, num_layers=2)
    again = TABLES["prior"]["pixelcnn"](**prior.config)
    again.load_state_dict(prior.state_dict())
    assert again.config == prior.config and again.layout == prior.layout and again.grids == (1, 2)
    assert prior.config["dropout"] == PixelCNNOptions().dropout and TABLES["prior"].name_of(type(again)) == "pixelcnn"


def test_the_names_of_the_classes_come_with_the_provenance():
    prior = build(num_classes=2, label_dropout=0.1)
    prior.provenance["classes"] = ["cat", "dog"]
    assert prior.conditions.resolve(["dog", "none", 0], 3).labels.tolist() == [1, NO_LABEL, 0]

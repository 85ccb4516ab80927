"""Every prior of the table that draws step by step: what each code sees, what it is trained on, what it refuses.

Shapes: h w code grid.
"""

import math

import pytest
import torch
from small_priors import (
    ALL,
    CONDITIONED,
    NAMES,
    SMALL,
    build_prior,
    codes_of_later_steps,
    codes_that_see,
    earlier_frames,
    random_codes,
)

from codegrid.codes import NO_LABEL, Condition, Grid, Moment
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.registry import TABLES
from codegrid.stage2_prior import sample
from codegrid.stage2_prior.likelihood import bits_per_code, measure, measure_accuracy

SIZES = [(8,), (8, 5), (8, 5, 6)]  # num_embeddings of one, two and three codes a site
each = pytest.mark.parametrize("name", NAMES)
every = pytest.mark.parametrize("name", ALL)
each_size = pytest.mark.parametrize("sizes", SIZES, ids=["one", "two", "three"])


def given(*labels):
    return Condition(torch.tensor(labels))


@each
@pytest.mark.parametrize(
    "shape,sizes", [((4, 5), (8, 5)), ((5, 3), (8,)), ((1, 6), (8,)), ((6, 1), (4, 5, 6)), ((1, 1), (8, 8))]
)
def test_a_code_is_seen_by_all_codes_of_later_steps_and_by_no_other(name, shape, sizes):
    prior = build_prior(name, sizes, shape)
    assert codes_that_see(prior, random_codes(prior, 1)) == codes_of_later_steps(prior)


@each
def test_a_step_is_a_code_site_after_site_or_a_whole_grid(name):
    prior = build_prior(name, (8, 5), (2, 3))
    grids = [(number, range(6)) for number in range(2)]
    sites = [(number, range(site, site + 1)) for site in range(6) for number in range(2)]
    by_torch, plain = (list(prior.steps(Condition(), 1, backend).order) for backend in ("torch", "plain"))
    assert by_torch == plain and plain in (grids, sites)


@each
@torch.no_grad()
@pytest.mark.parametrize("sizes,shape", [((8,), (4, 7)), ((8, 5), (5, 3)), ((8,), (1, 5)), ((8, 5, 6), (5, 1))])
def test_the_cache_gives_the_logits_of_the_parallel_pass_in_float32_too(name, sizes, shape):
    prior = build_prior(name, sizes, shape, num_classes=3).float()
    codes, condition = random_codes(prior, 3), given(0, 2, 1)
    expected = prior.logits(codes, condition)
    steps = prior.steps(condition, 3, "torch")
    for grid, sites in steps.order:
        logits = expected[grid].flatten(2)[:, :, list(sites)].mT
        torch.testing.assert_close(steps.next_logits(), logits, atol=1e-4, rtol=1e-4)
        steps.append(codes[grid].flatten(1)[:, list(sites)])


@each
@pytest.mark.parametrize("options", [{}, {"guidance_scale": 2.0, "top_k": 5}], ids=["plain", "guided"])
def test_cached_sampling_draws_the_codes_of_plain_sampling(name, options):
    prior = build_prior(name, (8, 5), (4, 3), num_classes=3, decided=20, label_dropout=0.1)
    by_torch, plain = (
        sample(prior, 5, labels=[0, 1, 2, 0, "none"], seed=1, backend=backend, **options)
        for backend in ("torch", "plain")
    )
    assert all(map(torch.equal, by_torch, plain))


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(TABLES["prior"][name], "bytes_per_sample")])
def test_keys_and_values_take_the_memory_that_the_prior_states_and_are_refused_if_it_does_not_fit(name, monkeypatch):
    few, more, most = (build_prior(name, shape=(height, 3)).bytes_per_sample for height in (2, 4, 6))
    assert most - more == more - few > 0
    monkeypatch.setattr("codegrid.budget.machine_memory", lambda: 100_000)
    needed = f"{200 * more:,}"
    with pytest.raises(InputError, match=f"the keys and values of 200 samples would take {needed} bytes.*`batch_size`"):
        build_prior(name, shape=(4, 3)).steps(Condition(), 200, "torch")


@each
@torch.no_grad()
@pytest.mark.parametrize("appended", [[1], [3, 2], [5, 8], [9], [20, 3], [2, 17]])
def test_steps_may_pass_over_known_codes(name, appended):
    prior = build_prior(name, (8, 5), (5, 4))
    codes = random_codes(prior)
    steps = prior.steps(Condition(), 2, "torch")
    of_steps = [codes[grid].flatten(1)[:, list(sites)] for grid, sites in steps.order]
    passed = 0
    for count in appended:
        count = min(count, len(of_steps) - 1 - passed)
        steps.append(torch.cat([codes[0].flatten(1)[:, :0], *of_steps[passed : passed + count]], dim=1))
        passed += count
    expected = prior.logits(codes)
    for (grid, sites), drawn in list(zip(steps.order, of_steps, strict=True))[passed : passed + 6]:
        torch.testing.assert_close(steps.next_logits(), expected[grid].flatten(2)[:, :, list(sites)].mT)
        assert torch.equal(steps.next_logits(), steps.next_logits())
        steps.append(drawn)


@torch.no_grad()
@pytest.mark.parametrize("name", CONDITIONED)
def test_every_coarser_code_is_seen_by_every_code_and_the_cache_sees_them_too(name):
    coarser = {"grids": (1, 2), "given_grids": (0,), "given_layout": [Grid((2, 2), 6)]}
    prior = build_prior(name, (8, 5), (3, 4), num_classes=3, label_dropout=0.1, decided=20, **coarser)
    below = torch.randint(0, 6, (1, 2, 2)).repeat(5, 1, 1)
    for changed in range(4):
        below[changed + 1].view(-1)[changed] += 1
    below, labels = below % 6, torch.tensor([1, 1, 1, 1, 1])
    codes = tuple(grid.expand(5, -1, -1) for grid in random_codes(prior, 1))
    for logits in prior.logits(codes, Condition(labels, codes=(below,))):
        assert ((logits[1:] - logits[:1]).abs().amax(1) > 1e-12).all()
    drawn = [
        sample(prior, 5, labels=labels, codes=(below,), guidance_scale=2.0, backend=backend)
        for backend in ("torch", "plain")
    ]
    assert all(map(torch.equal, *drawn))


@each
@each_size
def test_other_images_of_the_batch_do_not_matter(name, sizes):
    prior = build_prior(name, sizes).train()
    codes = random_codes(prior, 3)
    alone = prior.logits(tuple(grid[1:2] for grid in codes))
    for one, together in zip(alone, prior.logits(codes), strict=True):
        torch.testing.assert_close(together[1:2], one)


@every
def test_forward_and_a_backward_pass_leave_the_state_dict_as_it_was(name):
    prior = build_prior(name, (8, 5)).train()
    before = {key: value.clone() for key, value in prior.state_dict().items()}
    prior(random_codes(prior), moment=Moment(0, 10, Noise(0, count=2))).total.backward()
    assert all(torch.equal(value, before[key]) for key, value in prior.state_dict().items())
    assert all(parameter.grad is not None for parameter in prior.parameters())


@each
@torch.no_grad()
@each_size
def test_codes_are_categories_whose_numbers_do_not_matter(name, sizes):
    prior, renamed = build_prior(name, sizes), build_prior(name, sizes)
    codes = random_codes(prior)
    new_names = [torch.randperm(size) for size in sizes]
    for lists in ("embeddings", "within_site"):  # the second one is not in every prior
        tables = zip(getattr(prior.network, lists, ()), getattr(renamed.network, lists, ()), strict=True)
        for (from_table, to_table), names in zip(tables, new_names, strict=False):
            to_table.weight[names] = from_table.weight
    for old, new, names in zip(prior.network.heads, renamed.network.heads, new_names, strict=True):
        new[-1].weight[names], new[-1].bias[names] = old[-1].weight, old[-1].bias
    again = renamed(tuple(names[grid] for names, grid in zip(new_names, codes, strict=True)))
    torch.testing.assert_close(again.total, prior(codes).total)


@each
@torch.no_grad()
@each_size
def test_the_loss_is_the_mean_of_the_nats_of_all_codes(name, sizes):
    prior = build_prior(name, sizes)
    codes = random_codes(prior, 3)
    losses, nats = prior(codes), prior.nll(codes)
    assert [grid.shape for grid in nats] == [grid.shape for grid in codes] and set(losses.terms) == {"nll"}
    pairs = zip(prior.logits(codes), codes, strict=True)
    expected = [logits.log_softmax(1).gather(1, grid[:, None]) for logits, grid in pairs]
    assert torch.stack(expected).mean().item() == pytest.approx(-losses.total.item())
    assert bits_per_code(nats) == pytest.approx(losses.figures["bits_per_code"].item())


@each
@torch.no_grad()
@each_size
@pytest.mark.parametrize("batch_size", [2, 5])
def test_uniform_logits_cost_log2_k_bits_whatever_the_batches(name, sizes, batch_size):
    prior = build_prior(name, sizes)
    for head in prior.network.heads:
        head[-1].weight.zero_(), head[-1].bias.zero_()
    codes = random_codes(prior, 5)
    batches = [
        (tuple(grid[first : first + batch_size] for grid in codes), Condition()) for first in range(0, 5, batch_size)
    ]
    bits = measure(prior, batches)
    assert bits.of_grids == pytest.approx(tuple(map(math.log2, sizes)), abs=1e-9) and bits.num_samples == 5
    assert bits.per_sample == pytest.approx(20 * sum(map(math.log2, sizes)))
    assert bits.per_code == pytest.approx(sum(map(math.log2, sizes)) / len(sizes))
    hits = sum(int((grid == 0).sum()) for grid in codes) / (5 * 20 * len(sizes))
    assert measure_accuracy(prior, batches) == pytest.approx(hits)


def test_a_prior_without_a_likelihood_has_no_bits():
    class Silent:
        device = "cpu"

        def nll(self, codes, given, noise, num_inference_steps):
            return None

    batches = [((torch.zeros(1, 2, 2),), Condition())]
    assert measure(Silent(), batches) is None and measure_accuracy(Silent(), batches) is None


@each
@torch.no_grad()
@each_size
def test_the_label_changes_the_logits_of_every_code(name, sizes):
    prior = build_prior(name, sizes, num_classes=3)
    codes = tuple(grid[:1].expand(2, -1, -1) for grid in random_codes(prior))
    for logits in prior.logits(codes, given(0, 2)):
        assert ((logits[0] - logits[1]).abs().amax(0) > 0).all()


def losses_at(prior, codes, condition, seed, first_index=0):
    torch.manual_seed(seed)
    return prior(codes, condition, Moment(0, 10, Noise(seed, first_index, len(codes[0])))).total.item()


@every
@torch.no_grad()
def test_what_training_hides_is_hidden_in_training_moments_alone(name):
    shares = [option for option in build_prior(name).config if option.endswith("dropout")]
    for share in shares:
        prior = build_prior(name, (8, 5), num_classes=3, **{share: 0.5}).train()
        codes, labels = random_codes(prior, 8), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
        condition = earlier_frames(prior, 8)._replace(labels=labels)
        plain = prior(codes, condition).total.item()
        assert plain == prior(codes, condition).total.item() == prior.eval()(codes, condition).total.item()
        assert losses_at(prior, codes, condition, 0) == losses_at(prior, codes, condition, 0) != plain
        assert losses_at(prior, codes, condition, 0) != losses_at(prior, codes, condition, 1)


@each
@torch.no_grad()
def test_which_labels_are_hidden_follows_from_the_number_of_the_sample_alone(name):
    prior = build_prior(name, num_classes=3, label_dropout=0.4)
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


@each
@torch.no_grad()
def test_a_prior_that_learnt_without_labels_can_be_asked_without(name):
    prior = build_prior(name, num_classes=3, label_dropout=0.5)
    codes = random_codes(prior)
    (without,), (labelled,) = prior.logits(codes), prior.logits(codes, given(0, 2))
    assert not torch.allclose(without, labelled)
    (mixed,) = prior.logits(codes, given(0, NO_LABEL))
    assert torch.allclose(mixed, torch.cat([labelled[:1], without[1:]]))
    tables = prior.shared_rows(prior)
    for table in tables:  # the classes have no part in it
        prior.get_parameter(table)[:3] += 1
    assert tables and torch.equal(without, prior.logits(codes)[0])


@each
@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_step_in_bfloat16_is_in_bfloat16_throughout(name, num_classes):
    prior = build_prior(name, num_classes=num_classes).float()
    seen = set()

    def look(module, inputs, out):
        if any(torch.is_tensor(x) and x.is_floating_point() for x in inputs):  # not tables
            seen.update(x.dtype for x in (out if isinstance(out, tuple) else (out,)))

    for module in prior.network.modules():
        module.register_forward_hook(look)
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


@each
@pytest.mark.parametrize("num_classes,label_dropout,condition,reason", REFUSED.values(), ids=REFUSED)
def test_a_condition_that_the_prior_did_not_learn_is_refused_by_name(
    name, num_classes, label_dropout, condition, reason
):
    prior = build_prior(name, num_classes=num_classes, label_dropout=label_dropout)
    for ask in (prior, prior.logits, prior.nll):
        with pytest.raises(InputError, match=reason):
            ask(random_codes(prior), condition)
    for backend in ("plain", "torch"):
        with pytest.raises(InputError, match=reason):
            prior.steps(condition, 2, backend).next_logits()


@each
@pytest.mark.parametrize(
    "layout,options,reason",
    [
        ([Grid((4, 4), 8)], {"depth": 3}, "`depth`: the {name} prior has no such option"),
        ([Grid((4, 4), 8)], {"num_classes": -1}, "`num_classes` -1"),
        ([Grid((4, 4), 8)], {"grids": (0, 1)}, "`grids`"),
        ([], {}, "`layout` of no grid"),
    ],
)
def test_grids_and_options_that_the_prior_does_not_know_are_refused_by_name(name, layout, options, reason):
    with pytest.raises(InputError, match=reason.format(name=name)):
        TABLES["prior"][name](layout, **options)


ODD_LAYOUTS = {
    "two shapes": (Grid((2, 2), 8), Grid((4, 3), 8)), "a line": (Grid((6,), 8),), "time": (Grid((2, 2, 3), 8),),
    "a line and a grid": (Grid((3,), 8), Grid((2, 3), 8)), "a pyramid": (Grid((1, 2), 4), *[Grid((2, 3), 8)] * 2),
}  # fmt: skip


@each
@torch.no_grad()
@pytest.mark.parametrize("layout", ODD_LAYOUTS.values(), ids=ODD_LAYOUTS)
def test_grids_of_other_shapes_are_refused_by_name_or_drawn_with_each_code_seen_by_all_later_steps(name, layout):
    try:
        prior = build_prior(name, layout=layout)
    except InputError as error:
        assert "`layout` of " in str(error) and f"a {name} prior learns grids" in str(error)
        return
    assert codes_that_see(prior, random_codes(prior, 1)) == codes_of_later_steps(prior)
    by_torch, plain = (sample(prior, 3, seed=1, backend=backend) for backend in ("torch", "plain"))
    assert all(map(torch.equal, by_torch, plain))


@every
def test_the_config_rebuilds_the_prior(name):
    small = {key: value for key, value in SMALL[name].items() if not key.endswith("dropout")}
    prior = TABLES["prior"][name]((Grid((3, 4), 8), Grid((3, 4), 5)), grids=(1, 2), num_classes=2, **small)
    again = TABLES["prior"][name](**prior.config)
    again.load_state_dict(prior.state_dict())
    assert again.config == prior.config and again.layout == prior.layout and again.grids == (1, 2)
    defaults = vars(TABLES["prior"].options(name)())
    told = prior.config.keys() & defaults.keys()  # without coarser grids, not the options that only concern them
    assert told and all(prior.config[option] == small.get(option, defaults[option]) for option in told)
    assert TABLES["prior"].name_of(type(again)) == name


@every
def test_the_names_of_the_classes_come_with_the_provenance(name):
    prior = build_prior(name, num_classes=2, label_dropout=0.1)
    prior.provenance["classes"] = ["cat", "dog"]
    assert prior.conditions.resolve(["dog", "none", 0], 3).labels.tolist() == [1, NO_LABEL, 0]

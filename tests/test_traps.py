"""Ways in which quantizers go wrong: each check runs on every quantizer of its kind, and must catch its broken twins.

Shapes: b batch, D embedding_dim, K codebook entries.
"""

import copy

import broken_twins
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from small_quantizers import CASES, CODEBOOKS, LargestTensor, build, flatten, moment

from codegrid.stage1_vqvae.quantizers.clustered import ANCHORS, Clustered
from codegrid.stage1_vqvae.quantizers.codebook import EMAQuantizer
from codegrid.stage1_vqvae.quantizers.nearest import TILES, Tile

K, D = 8, 4
RESIDUALS = [case for case, (name, _) in CASES.items() if name == "residual" and "clustered" not in case]
TRAPS = {}


def trap(*twins, of=CODEBOOKS):
    """Note a check of the quantizers `of` a kind, with the ways to break one that it must catch."""

    def note(check):
        TRAPS[check.__name__] = (check, twins, of)
        return check

    return note


def draw_latents(*shape, seed=1):
    """Latents that need a gradient."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def train_step(quantizer, latents, step=10, lr=0.1):
    """One step, with plain gradient descent on the codebook where it is a parameter."""
    result = quantizer(latents, moment(step))
    if any(True for _ in quantizer.parameters()):
        result.losses.total.backward()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter -= lr * parameter.grad
            parameter.grad = None
    quantizer.after_step(step, 0)
    return result


# The checks. Each takes `make(**options)`, which builds a quantizer, right or broken.


@trap(broken_twins.swap_the_losses)
def without_commitment_cost_the_loss_gives_the_encoder_no_gradient(make):
    latents = draw_latents(2, D, 3, 5)
    loss = make(commitment_cost=0.0)(latents).losses.total
    gradient = torch.autograd.grad(loss, latents, allow_unused=True)[0] if loss.requires_grad else None
    assert gradient is None or not gradient.any()


@trap(
    broken_twins.replace_straight_through(lambda latents, vectors: vectors),
    broken_twins.replace_straight_through(lambda latents, vectors: latents + (vectors - latents)),
    broken_twins.replace_straight_through(lambda latents, vectors: latents + (vectors - latents).detach()),
    broken_twins.replace_straight_through(lambda latents, vectors: vectors + (latents - latents.detach()) * 2),
)
def the_gradient_goes_straight_through_and_the_vectors_are_bitwise_the_entries(make):
    for when in (moment(10), None):
        quantizer, latents = make(), draw_latents(2, D, 30, 5)
        book = quantizer.codebook.detach().clone()
        vectors, (codes,), _ = quantizer(latents, when)
        assert torch.equal(rearrange(vectors, "b d ... -> (b ...) d"), book[codes.flatten()])
        weights = torch.randn_like(vectors)
        assert vectors.requires_grad
        gradients = torch.autograd.grad(
            (vectors * weights).sum(), [latents, *quantizer.parameters()], allow_unused=True
        )
        assert gradients[0] is not None and torch.equal(gradients[0], weights)
        assert all(gradient is None for gradient in gradients[1:])


@trap(broken_twins.let_unused_entries_shrink)
def a_thousand_batches_on_one_entry_leave_the_others_bitwise_where_they_were(make):
    quantizer = make(revival_threshold=0.0, decay=0.9999)
    for _ in range(3):  # until each entry counts as used
        train_step(quantizer, rearrange(quantizer.codebook.detach(), "k d -> k d 1"))
    before = quantizer.codebook.detach().clone()
    others = torch.arange(K) != 3
    for _ in range(1000):
        train_step(quantizer, before[3].view(1, D, 1) + 0.1)
        assert torch.equal(quantizer.codebook[others], before[others])  # a broken twin fails at its first step
    assert not torch.equal(quantizer.codebook[3], before[3])


@trap(broken_twins.let_unused_entries_shrink, broken_twins.write_smoothed_counts_back)
def three_steps_equal_the_equations_in_numpy(make):
    options = {"anchors": "closest"} if isinstance(make(), Clustered) else {}
    quantizer = make(decay=0.9, revival_threshold=0.0, **options)
    reference = NumpyReference(quantizer)
    for step in range(3):
        latents = draw_latents(5, D, 2, seed=step)
        reference.step(flatten(latents).double().numpy(), lr=0.1)
        train_step(quantizer, latents, step, lr=0.1)
        np.testing.assert_allclose(quantizer.codebook.detach().numpy(), reference.entries, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(quantizer.running_hits.numpy(), reference.counts, rtol=1e-5)


class NumpyReference:
    """The equations, one entry at a time."""

    def __init__(self, quantizer):
        self.entries = quantizer.codebook.detach().double().numpy().copy()
        self.decay = quantizer.decay
        self.is_ema, self.is_clustered = isinstance(quantizer, EMAQuantizer), isinstance(quantizer, Clustered)
        self.counts, self.usage = np.ones(K), np.zeros(K)

    def step(self, latents, lr):
        codes = np.square(latents[:, None] - self.entries[None]).sum(2).argmin(1)
        old = self.entries.copy()
        for k in range(K):
            hits = latents[codes == k]
            self.counts[k] = self.decay * self.counts[k] + (1 - self.decay) * len(hits)
            self.usage[k] = self.decay * self.usage[k] + (1 - self.decay) * len(hits) / len(latents)
            if not self.is_ema:
                self.entries[k] -= lr * 2 * (old[k] - hits).sum(0) / latents.size
            elif len(hits):
                self.entries[k] += (1 - self.decay) * (hits - old[k]).sum(0) / self.counts[k]
            if self.is_clustered:
                share = np.exp(-self.usage[k] * K * 10 / (1 - self.decay) - 1e-3)
                anchor = latents[np.square(latents - self.entries[k]).sum(1).argmin()]
                self.entries[k] = (1 - share) * self.entries[k] + share * anchor


@trap(broken_twins.keep_old_sums_through_revival)
def a_revived_entry_survives_a_step_without_a_hit(make):
    quantizer, latents = make(revival_threshold=0.5), draw_latents(8, D, 40)
    quantizer.codebook.data[2] = 1e3
    for _ in range(200):  # its running hits fade
        train_step(quantizer, latents, lr=0)
        if quantizer.codebook[2].abs().max() < 1e3:
            break
    moved = quantizer.codebook[2].detach().clone()
    if isinstance(quantizer, Clustered):
        quantizer.running_usage.fill_(1)  # or it would move on to the next anchor, as it should
    else:
        assert (flatten(latents) == moved).all(1).any()
    train_step(quantizer, torch.full((8, D, 40), 50.0), lr=0)  # far from it: no hit
    assert torch.equal(quantizer.codebook[2].detach(), moved)


@trap(broken_twins.update_before_the_lookup)
def training_decodes_with_the_codebook_that_was_searched(make):
    quantizer = make()
    before = quantizer.codebook.detach().clone()
    vectors, (codes,), _ = train_step(quantizer, draw_latents(2, D, 3, 5))
    assert torch.equal(rearrange(vectors, "b d ... -> (b ...) d"), before[codes.flatten()])


@trap(
    broken_twins.encode_by_a_training_pass,
    broken_twins.train_without_a_moment,
    of=[*CODEBOOKS, *RESIDUALS],
)
def neither_encoding_nor_a_forward_pass_without_a_moment_changes_anything(make):
    quantizer = make()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.encode(draw_latents(2, D, 3, 5))
    quantizer(draw_latents(2, D, 3, 5))
    quantizer.after_step(10, 0)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


@trap(broken_twins.search_in_half_precision, broken_twins.sum_in_half_precision)
def under_autocast_codes_hits_and_sums_are_those_of_float32(make):
    for dtype in (torch.float32, torch.bfloat16):
        given = draw_latents(16, D, 16, 16).detach().to(dtype)
        quantizer, seen = make(), []
        quantizer.move_entries = lambda tally, *rest, seen=seen: seen.append(tally)
        flat = flatten(given).double()
        expected = torch.cdist(flat, quantizer.codebook.detach().double()).argmin(1)
        with torch.autocast("cpu", torch.bfloat16):
            (codes,) = quantizer.encode(given)
            result = quantizer(given, moment(10))
            quantizer.after_step(10, 0)
        assert torch.equal(codes.flatten(), expected) and torch.equal(result.codes[0], codes)
        (tally,), loss = seen, result.losses.total
        one_hot = F.one_hot(expected, K).double()
        assert tally.hits.dtype == tally.sums.dtype == result.vectors.dtype == loss.dtype == torch.float32
        torch.testing.assert_close(tally.hits.double(), one_hot.sum(0), atol=0, rtol=0)
        torch.testing.assert_close(tally.sums.double(), one_hot.T @ flat, atol=1e-2, rtol=1e-4)
        error = (result.vectors.double() - given.double()).square().mean()
        weight = quantizer.commitment_cost + ("codebook_loss" in result.losses.terms)
        torch.testing.assert_close(loss.double(), weight * error)


@trap(broken_twins.keep_state_outside_the_buffers)
def save_load_and_a_step_equal_an_uninterrupted_step(make):
    variants = [{"revival_threshold": 0.9}, {"kmeans_steps": 6}]
    if isinstance(make(), Clustered):
        variants += [{"anchors": "random"}, {"anchor_once": True}]
    for options in variants:
        quantizer = make(**options)
        for step in range(5):
            train_step(quantizer, draw_latents(2, D, 3, 5, seed=step), step, lr=0)
        quantizer.codebook.data[7], quantizer.running_hits[7] = 1e3, 0.0  # about to be revived at random
        loaded = make(**options)
        loaded.load_state_dict(copy.deepcopy(quantizer.state_dict()))
        for step in range(5, 8):
            for each in (quantizer, loaded):
                train_step(each, draw_latents(2, D, 3, 5, seed=step), step, lr=0)
        state = dict(quantizer.named_buffers()) | dict(quantizer.named_parameters())
        again = dict(loaded.named_buffers()) | dict(loaded.named_parameters())
        assert all(torch.equal(value, again[key]) for key, value in state.items()), options


@trap(broken_twins.make_a_new_parameter_each_step)
def the_optimizer_knows_the_codebook_only_where_gradients_move_it(make):
    quantizer = make()
    codebook = quantizer.codebook
    loss = quantizer(draw_latents(2, D, 3, 5), moment(10)).losses.total
    quantizer.after_step(10, 0)
    assert quantizer.codebook is codebook and "codebook" in quantizer.state_dict()
    loss.backward()
    assert all(parameter.grad is not None for parameter in quantizer.parameters())


@trap(broken_twins.hold_all_distances, broken_twins.count_with_one_hot_codes)
def no_tensor_is_as_large_as_sites_times_entries(make):
    sites = 1024
    for options in [{"anchors": anchors} for anchors in ANCHORS] if isinstance(make(), Clustered) else [{}]:
        quantizer, latents = make(**options), draw_latents(1, D, sites)
        with LargestTensor() as largest:
            quantizer(latents, moment(10)).losses.total.backward()
            quantizer.after_step(10, 0)
        assert largest.numel <= sites * D


# Of residual quantizers.


@trap(broken_twins.pass_the_gradient_at_each_depth, broken_twins.add_the_finest_first, of=RESIDUALS)
def the_gradient_passes_once_over_all_depths_and_the_sum_is_that_of_the_codes(make):
    quantizer, latents = make(), draw_latents(2, D, 30, 5)
    result = quantizer(latents, moment(10))
    weights = torch.randn_like(result.vectors)
    assert torch.equal(torch.autograd.grad((result.vectors * weights).sum(), latents)[0], weights)
    assert torch.equal(quantizer.look_up(result.codes), result.vectors)


@trap(broken_twins.move_each_book_before_the_next_one_looks, of=RESIDUALS)
def codebooks_stay_where_they_are_until_the_step_is_over(make):
    quantizer = make()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(draw_latents(8, D, 30), moment(10))
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


@trap(broken_twins.draw_the_same_rows_for_all_books, broken_twins.note_the_latents_at_each_depth, of=RESIDUALS)
def dead_entries_move_to_residuals_of_their_depth_each_codebook_to_rows_of_its_own(make):
    quantizer, latents = make(revival_threshold=0.9), draw_latents(4, D, 40)
    rest, rests = latents.detach(), []
    for book in quantizer.books:
        book.codebook.data[1:] += 100  # never chosen
        book.running_hits.zero_()
        rests.append(flatten(rest))
        rest = rest - book.codebook.detach()[0][:, None]
    train_step(quantizer, latents, lr=0)
    places = [
        (book.codebook.detach()[1:, None] == rows).all(2) for book, rows in zip(quantizer.books, rests, strict=True)
    ]
    assert all(place.any(1).all() for place in places)
    assert not torch.equal(places[0], places[1]) and not torch.equal(places[1], places[2])


@pytest.fixture(autouse=True)
def small_search_budget(monkeypatch):
    """So small that the sites of these checks are searched in several pieces."""
    monkeypatch.setitem(TILES, "cpu", Tile(pairs=4096, entries=3))


RIGHT = [(check, case) for check, (_, _, of) in TRAPS.items() for case in of]
BROKEN = [(check, twin, case) for check, case in RIGHT for twin in range(len(TRAPS[check][1]))]


@pytest.mark.parametrize(("check", "case"), RIGHT)
def test_in_every_quantizer(check, case):
    TRAPS[check][0](lambda **options: build(case, **options))


@pytest.mark.parametrize(("check", "twin", "case"), BROKEN)
def test_the_check_catches_its_broken_twin(check, twin, case, monkeypatch):
    run, twins, _ = TRAPS[check]

    def make(**options):
        quantizer = build(case, **options)
        twins[twin](quantizer, monkeypatch)
        return quantizer

    with pytest.raises(AssertionError):
        run(make)

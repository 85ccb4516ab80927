"""Quantizers of several codebooks, product and residual, against plain NumPy; what residual ones drop and draw.

Shapes: b batch, D embedding_dim, K codebook entries.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from small_quantizers import (
    SMALL,
    assert_same_state,
    build,
    draw_latents,
    flatten,
    is_row_of,
    measure_gaps,
    moment,
    train_step,
)

from codegrid.errors import InputError
from codegrid.stage1_vqvae.quantizers import QUANTIZERS

EVERYTHING = {"num_groups": 2, "shared": True, "codes_dropout": 0.7}
KINDS = {
    "product": ("product", {}),
    "residual": ("residual", {}),
    "in groups": ("residual", {"num_groups": 2}),
    "shared": ("residual", {"shared": True}),
    "dropout": ("residual", {"codes_dropout": 0.7}),
    "everything": ("residual", EVERYTHING),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_base = pytest.mark.parametrize("base", ["ema", "gradient"])


def build_kind(kind, **options):
    name, own = KINDS[kind]
    return build(name, **own, **options)


class NumpyReference:
    """The equations, one codebook at a time."""

    def __init__(self, quantizer):
        config = quantizer.config
        is_product = "shared" not in config
        self.depths = 1 if is_product else config["num_quantizers"]
        self.groups = config["num_quantizers"] if is_product else config["num_groups"]
        self.books = [book.codebook.detach().double().numpy().copy() for book in quantizer.books]
        self.uses = self.depths * self.groups // len(self.books)  # of a codebook
        self.hits = [np.ones(len(book)) for book in self.books]
        self.is_ema = config["codebook"] == "ema"

    def step(self, latents, kept, lr):
        """Latents (b, sites, D), depths that samples keep (b,) → codes, vectors, losses, their gradient."""
        codes, vectors, gradient, rows = [], 0, 0, [[] for _ in self.books]
        losses = {"commitment_loss": 0} if self.is_ema else {"codebook_loss": 0, "commitment_loss": 0}
        rest, width = latents, latents.shape[2] // self.groups
        for depth in range(self.depths):
            found, is_kept = np.zeros_like(latents), kept[:, None, None] > depth
            for group in range(self.groups):
                number = (depth * self.groups + group) % len(self.books)
                part = slice(group * width, (group + 1) * width)
                chosen = np.square(rest[..., None, part] - self.books[number]).sum(3).argmin(2)
                found[..., part] = self.books[number][chosen]
                codes.append(chosen)
                own = kept > depth
                rows[number] += zip(chosen[own].flatten(), rest[own][..., part].reshape(-1, width), strict=True)
            gap = np.where(is_kept, rest - found, 0)
            losses["commitment_loss"] += 0.25 * np.square(gap).mean() / self.depths
            if not self.is_ema:
                losses["codebook_loss"] += np.square(gap).mean() * self.groups / self.uses
            gradient = gradient + 0.25 * 2 * gap / gap.size / self.depths
            vectors, rest = vectors + np.where(is_kept, found, 0), rest - found
        of_books = [self._move(number, rows[number], latents.size // self.groups, lr) for number in range(len(rows))]
        return codes, vectors, losses, gradient, of_books

    def _move(self, number, rows, size, lr):
        """Move a codebook (K, D/g) by its rows; returns its gradient."""
        book, old = self.books[number], self.books[number].copy()
        gradient = np.zeros_like(book)
        for k in range(len(book)):
            hits = np.array([row for code, row in rows if code == k]).reshape(-1, book.shape[1])
            self.hits[number][k] = 0.9 * self.hits[number][k] + 0.1 * len(hits)
            gradient[k] = 2 * (old[k] - hits).sum(0) / size / self.uses
            step = 0.1 * (hits - old[k]).sum(0) / self.hits[number][k] if self.is_ema else -lr * gradient[k]
            book[k] += step
        return gradient


def as_rows(latents):
    return rearrange(latents.detach(), "b d h w -> b (h w) d")


@every_kind
@every_base
def test_steps_equal_the_equations_in_numpy(kind, base):
    quantizer = build_kind(kind, codebook=base, decay=0.9, revival_threshold=0.0)
    reference = NumpyReference(quantizer)
    for step in range(3):
        latents = draw_latents(5, 4, 2, 3, seed=step).requires_grad_()
        now = moment(step, 0, 5)
        kept = quantizer.count_depths(now)
        kept = np.full(5, 9) if kept is None else kept.numpy()
        rows = as_rows(latents).double().numpy()
        codes, vectors, losses, gradient, of_books = reference.step(rows, kept, lr=0.1)
        result = quantizer(latents, now)
        for ours, theirs in zip(result.codes, codes, strict=True):
            assert np.array_equal(ours.flatten(1).numpy(), theirs)
        np.testing.assert_allclose(as_rows(result.vectors).numpy(), vectors, atol=1e-5)
        assert result.losses.terms.keys() == losses.keys()
        for name, loss in losses.items():
            np.testing.assert_allclose(result.losses.terms[name].item(), loss, rtol=1e-5)
        result.losses.total.backward()
        np.testing.assert_allclose(as_rows(latents.grad).numpy(), gradient, atol=1e-6)
        for book, theirs in zip(quantizer.books, of_books, strict=True):
            if base == "gradient":
                np.testing.assert_allclose(book.codebook.grad.numpy(), theirs, atol=1e-6)
                book.codebook.data -= 0.1 * book.codebook.grad
                book.codebook.grad = None
        quantizer.after_step(step, 0)
        for number, book in enumerate(quantizer.books):
            np.testing.assert_allclose(book.codebook.detach().numpy(), reference.books[number], atol=1e-5)
            np.testing.assert_allclose(book.running_hits.numpy(), reference.hits[number], rtol=1e-5)


def test_each_codebook_by_gradient_learns_as_it_would_alone():
    quantizer, latents = build("residual of gradient"), draw_latents(5, 4, 6)
    quantizer(latents).losses.total.backward()
    rest = latents
    for book in quantizer.books:
        alone = QUANTIZERS["gradient"](**SMALL["gradient"])
        alone.load_state_dict(book.state_dict())
        result = alone(rest)
        result.losses.total.backward()
        torch.testing.assert_close(book.codebook.grad, alone.codebook.grad)
        rest = rest - result.vectors.detach()


def test_a_shared_codebook_learns_as_one_from_the_rows_of_all_depths_would():
    quantizer, latents = build("residual shared", revival_threshold=0.0), draw_latents(5, 4, 6)
    (book,) = quantizer.books
    alone = build("ema", revival_threshold=0.0)
    alone.load_state_dict(book.state_dict())
    codes = quantizer.encode(latents)
    rests = [latents, *(latents - quantizer.look_up(codes[:depth]) for depth in (1, 2))]
    train_step(quantizer, latents)
    train_step(alone, *rests)
    torch.testing.assert_close(book.running_hits, alone.running_hits)
    torch.testing.assert_close(book.codebook, alone.codebook)


def rows_of_books(quantizer, latents, kept=None):
    """Return for each codebook the rows (n, D/g) that it quantizes, of the samples that keep its depth."""
    rest, rows = latents, [[] for _ in quantizer.books]
    for depth in range(quantizer.depths):
        vectors = []
        for group, part in enumerate(rest.chunk(quantizer.groups, 1)):
            number = (depth * quantizer.groups + group) % len(rows)
            book = quantizer.books[number]
            rows[number].append(flatten(part if kept is None else part[kept > depth]))
            vectors.append(book.look_up(book.encode(part)).detach())
        rest = rest - torch.cat(vectors, 1)
    return [torch.cat(of_book) for of_book in rows]


@every_kind
@every_base
def test_dead_entries_move_to_the_rows_of_their_codebook_each_to_others(kind, base):
    quantizer, latents = build_kind(kind, codebook=base, revival_threshold=0.9), draw_latents(4, 4, 40)
    for book in quantizer.books:
        book.codebook.data[1:] += 100  # never chosen
        book.running_hits.zero_()
    rows = rows_of_books(quantizer, latents, quantizer.count_depths(moment(10, 0, 4)))
    train_step(quantizer, latents, step=10)
    places = []
    for book, of_book in zip(quantizer.books, rows, strict=True):
        moved = book.codebook.detach()[1:]
        assert is_row_of(moved, of_book).all()
        places.append([int((row == of_book).all(1).nonzero()[0]) for row in moved])
    assert all(places.count(one) == 1 for one in places)


@pytest.mark.parametrize("kind", ["product", "residual", "in groups"])
def test_kmeans_of_finer_codebooks_starts_from_what_the_coarser_ones_leave_over(kind):
    quantizer, latents = build_kind(kind, kmeans_steps=1), draw_latents(4, 4, 40)
    train_step(quantizer, latents, step=0)
    for book, rows in zip(quantizer.books, rows_of_books(quantizer, latents), strict=True):
        members = F.one_hot(book.encode(rows)[0], 8).float()
        gaps = members.T @ rows / members.sum(0).clamp_min(1)[:, None] - book.codebook
        assert gaps.abs().max() < 0.5  # ten iterations, near to the means of its own rows
    error = (latents - quantizer.look_up(quantizer.encode(latents))).square().mean()
    assert error < 0.35 * latents.square().mean()


def test_kmeans_of_a_shared_codebook_takes_the_rows_of_all_depths():
    quantizer, latents = build("residual shared", kmeans_steps=3, num_embeddings=8), draw_latents(4, 4, 40)
    for step in range(3):
        train_step(quantizer, latents, step=step)
        assert quantizer.books[0].running_hits.sum() == 3 * 160
    codes = quantizer.encode(latents)
    errors = [(latents - quantizer.look_up(codes[:depth])).square().mean() for depth in (1, 2, 3)]
    assert errors[2] < errors[1] < errors[0] < latents.square().mean()
    assert errors[2] < 0.35 * latents.square().mean()


# Depths that are dropped, and codes that are drawn.


@pytest.mark.parametrize("kind", ["residual", "in groups", "shared"])
def test_a_sample_is_decoded_from_the_codes_of_the_depths_that_it_keeps(kind):
    quantizer, latents = build_kind(kind, codes_dropout=1.0), draw_latents(20, 4, 3, 5)
    now = moment(10, 0, 20)
    result, kept = quantizer(latents, now), quantizer.count_depths(now)
    assert set(kept.tolist()) == {1, 2, 3}
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(result.codes, quantizer.encode(latents), strict=True))
    for sample, count in enumerate(kept):
        codes = [of_grid[sample : sample + 1] for of_grid in result.codes[: count * quantizer.groups]]
        assert torch.equal(quantizer.look_up(tuple(codes))[0], result.vectors[sample])
    whole = quantizer(latents).vectors  # without a moment
    assert torch.equal(whole, quantizer.look_up(result.codes)) and not torch.equal(whole, result.vectors)


def test_each_number_of_depths_is_as_frequent_and_dropped_ones_are_not_counted():
    quantizer = build("residual", num_quantizers=4, codes_dropout=0.8, decay=0.5)
    train_step(quantizer, draw_latents(10_000, 4, 2), step=3)
    hits = torch.stack([2 * (book.running_hits - 0.5).sum() for book in quantizer.books]) / 20_000
    expected = 0.2 + 0.8 * torch.tensor([1, 0.75, 0.5, 0.25])
    torch.testing.assert_close(hits, expected, atol=0.015, rtol=0)


def test_what_a_sample_drops_and_draws_follows_from_its_number_alone():
    quantizer, latents = build("residual", **EVERYTHING, codes_temperature=2.0), draw_latents(20, 4, 3, 5)
    among, alone = quantizer(latents, moment(4, 0, 20)), quantizer(latents[17:18], moment(4, 17, 1))
    assert all(torch.equal(ours[17:18], theirs) for ours, theirs in zip(among.codes, alone.codes, strict=True))
    assert torch.equal(among.vectors[17:18], alone.vectors)
    other = quantizer(latents[17:18], moment(4, 18, 1))
    assert not all(torch.equal(ours, theirs) for ours, theirs in zip(other.codes, alone.codes, strict=True))


def test_a_step_in_pieces_and_a_run_that_goes_on_drop_and_draw_alike():
    whole, pieces, loaded = (build("residual", **EVERYTHING, codes_temperature=0.5) for _ in range(3))
    for step in range(4):
        latents = draw_latents(6, 4, 5, seed=step)
        train_step(whole, latents, step=step)
        train_step(pieces, *latents.chunk(3), step=step)
        if step < 2:
            loaded.load_state_dict(whole.state_dict())
        else:
            train_step(loaded, latents, step=step)
    assert_same_state(loaded, whole.state_dict())
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(pieces.state_dict()[key], value)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_codes_are_drawn_with_the_softmax_of_the_distances_and_encoded_without(distance):
    quantizer = build("residual", num_quantizers=2, distance=distance, codes_temperature=0.5)
    for book in quantizer.books:
        book.codebook.mul_(0.3)
    latents = draw_latents(1, 4, 1).expand(1, 4, 20_000)
    first, second = quantizer(latents, moment(7)).codes
    gaps = measure_gaps(latents[0, :, :1].T, quantizer.books[0].codebook, distance)[0].double()
    expected = (-(gaps.square() if distance == "euclidean" else gaps) / 0.5).softmax(0)
    shares = first.flatten().bincount(minlength=8) / 20_000
    torch.testing.assert_close(shares.double(), expected, atol=0.015, rtol=0)
    joint = (first * 8 + second).flatten().bincount(minlength=64).view(8, 8) / 20_000
    for code in range(8):  # the second depth draws anew, from what the first code leaves over
        rest = (latents[0, :, :1].T - quantizer.books[0].codebook[code]).float()
        gaps = measure_gaps(rest, quantizer.books[1].codebook, distance)[0].double()
        given = (-(gaps.square() if distance == "euclidean" else gaps) / 0.5).softmax(0)
        torch.testing.assert_close(joint[code].double(), expected[code] * given, atol=0.015, rtol=0)
    assert len(quantizer.encode(latents)[0].unique()) == 1
    assert all(len(codes.unique()) == 1 for codes in quantizer(latents).codes)  # without a moment


def test_the_first_codes_alone_are_a_coarser_vector_and_only_whole_depths_count():
    quantizer, latents = build("residual", num_groups=2, kmeans_steps=1), draw_latents(4, 4, 40)
    train_step(quantizer, latents, step=0)
    codes = quantizer.encode(latents)
    errors = [(latents - quantizer.look_up(codes[:count])).square().mean() for count in (2, 4, 6)]
    assert errors[2] < errors[1] < errors[0]
    for wrong in ((), codes[:3], (*codes, *codes)):
        with pytest.raises(
            InputError, match=f"a tuple of {len(wrong)}: it must be one of 2, or a multiple of it up to 6"
        ):
            quantizer.look_up(wrong)
    with pytest.raises(InputError, match=r"a tuple of 1: it must be one of 2$"):
        build("product").look_up(codes[:1])

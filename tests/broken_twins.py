"""Quantizers broken on purpose, each in one way that stands in some public implementation.

A twin changes one quantizer, through its public methods where that will do, or, through pytest's monkeypatch, the
module. Shapes: K codebook entries.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from codegrid.codes import Losses, Moment
from codegrid.noise import Noise
from codegrid.stage1_vqvae.quantizers import codebook, estimators

MOMENT = Moment(10, 1000, Noise(0))


def wrap(quantizer, name, around):
    """Put `around(right, *arguments)` in the place of a method."""
    right = getattr(quantizer, name)
    setattr(quantizer, name, lambda *arguments: around(right, *arguments))


def swap_the_losses(quantizer, patch):
    def swapped(latents, vectors):
        codebook_loss = quantizer.commitment_cost * F.mse_loss(latents.detach(), vectors)
        return Losses({"codebook_loss": codebook_loss, "commitment_loss": F.mse_loss(latents, vectors.detach())}, {})

    quantizer.losses = swapped


def replace_straight_through(apply):
    def twin(quantizer, patch):
        patch.setitem(estimators.ESTIMATORS, "straight-through", apply)

    return twin


def let_unused_entries_shrink(quantizer, patch):
    seen = []

    def observe(right, latents, codes):
        seen.append(codes)
        right(latents, codes)

    def after_step(right, *moment):
        right(*moment)
        unused = torch.bincount(torch.cat(seen), minlength=quantizer.num_embeddings) == 0
        quantizer.codebook.data[unused] *= 0.999
        seen.clear()

    wrap(quantizer, "observe", observe)
    wrap(quantizer, "after_step", after_step)


def write_smoothed_counts_back(quantizer, patch):
    def after_step(right, *moment):
        right(*moment)
        total = quantizer.running_hits.sum()
        quantizer.running_hits.add_(1e-2).mul_(total / (total + quantizer.num_embeddings * 1e-2))

    wrap(quantizer, "after_step", after_step)


def keep_old_sums_through_revival(quantizer, patch):
    kept, hit = {}, set()

    def observe(right, latents, codes):
        hit.update(codes.tolist())
        right(latents, codes)

    def after_step(right, *moment):
        before = quantizer.codebook.detach().clone()
        right(*moment)
        for entry, old in kept.items():  # what mean = sum / count gives where both were left as they were
            quantizer.codebook.data[entry] = old
        kept.clear()
        moved = (quantizer.codebook.detach() != before).any(1).nonzero().flatten().tolist()
        kept.update({entry: before[entry] for entry in moved if entry not in hit})
        hit.clear()

    wrap(quantizer, "observe", observe)
    wrap(quantizer, "after_step", after_step)


def update_before_the_lookup(quantizer, patch):
    def late(right, codes):
        quantizer.codebook.data += 0.01
        return right(codes)

    wrap(quantizer, "look_up", late)


def encode_by_a_training_pass(quantizer, patch):
    quantizer.encode = lambda latents: quantizer(latents, MOMENT).codes


def train_without_a_moment(quantizer, patch):
    wrap(quantizer, "forward", lambda right, latents, moment=None: right(latents, MOMENT))


def sum_in_half_precision(quantizer, patch):
    wrap(quantizer, "observe", lambda right, latents, codes: right(latents.bfloat16().float(), codes))


def search_in_half_precision(quantizer, patch):
    right = codebook.nearest_codes
    patch.setattr(
        codebook, "nearest_codes", lambda latents, book, *rest: right(latents.bfloat16(), book.bfloat16(), *rest)
    )


def keep_state_outside_the_buffers(quantizer, patch):
    quantizer._non_persistent_buffers_set |= {"running_hits"}


def make_a_new_parameter_each_step(quantizer, patch):
    def after_step(right, *moment):
        right(*moment)
        copy = quantizer.codebook.detach().clone()
        del quantizer.codebook
        quantizer.codebook = torch.nn.Parameter(copy)

    wrap(quantizer, "after_step", after_step)


def hold_all_distances(quantizer, patch):
    patch.setattr(codebook, "nearest_codes", lambda latents, book, *rest: torch.cdist(latents, book).argmin(1))


def count_with_one_hot_codes(quantizer, patch):
    def count_and_sum(latents, codes, num_embeddings):
        one_hot = F.one_hot(codes, num_embeddings).to(latents.dtype)
        return one_hot.sum(0), one_hot.T @ latents

    patch.setattr(codebook, "count_and_sum", count_and_sum)


# Of residual quantizers.


def draw_the_same_rows_for_all_books(quantizer, patch):
    for book in quantizer.books:
        wrap(book, "after_step", lambda right, step, seed, *purpose: right(step, seed))


def pass_the_gradient_at_each_depth(quantizer, patch):
    def forward(latents, moment=None):
        residual, total = latents, 0
        for book in quantizer.books:
            vectors = book(residual, moment).vectors
            residual, total = residual - vectors.detach(), total + vectors
        return SimpleNamespace(vectors=total, codes=quantizer.encode(latents))

    quantizer.forward = forward


def move_each_book_as_soon_as_it_has_looked(quantizer, patch):
    for depth, book in enumerate(quantizer.books):

        def observe(right, latents, codes, book=book, depth=depth):
            right(latents, codes)
            book.after_step(10, 0, "grid", depth)

        wrap(book, "observe", observe)


def note_the_latents_at_each_depth(quantizer, patch):
    seen = []

    def observe(right, latents, codes):
        seen.append(latents)
        right(seen[0], codes)

    for book in quantizer.books:
        wrap(book, "observe", observe)


def add_the_finest_first(quantizer, patch):
    def look_up(codes):
        return sum(book.look_up((part,)) for book, part in reversed([*zip(quantizer.books, codes, strict=True)]))

    quantizer.look_up = look_up

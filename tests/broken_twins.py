"""Quantizers broken on purpose, each in one way that stands in some public implementation.

A twin changes one quantizer, or, through pytest's monkeypatch, the module. Shapes: K codebook entries.
"""

from types import MethodType

import torch
import torch.nn.functional as F

from codegrid.stage1_vqvae.quantizers import base
from codegrid.stage1_vqvae.quantizers.nearest import Nearest


def swap_the_losses(quantizer, patch):
    def swapped(self, latents, vectors):
        codebook_loss = self.commitment_cost * F.mse_loss(latents.detach(), vectors)
        return codebook_loss + F.mse_loss(latents, vectors.detach())

    quantizer._loss = MethodType(swapped, quantizer)


def replace_straight_through(apply):
    def twin(quantizer, patch):
        patch.setattr(base.StraightThrough, "apply", staticmethod(apply))

    return twin


def let_unused_entries_shrink(quantizer, patch):
    right = quantizer._update_codebook

    def smoothed(latents, hits, sums, step):
        right(latents, hits, sums, step)
        quantizer.codebook.data[hits == 0] *= 0.999

    quantizer._update_codebook = smoothed


def write_smoothed_counts_back(quantizer, patch):
    right = quantizer._update_codebook

    def smoothed(latents, hits, sums, step):
        right(latents, hits, sums, step)
        total = quantizer.running_hits.sum()
        quantizer.running_hits.add_(1e-2).mul_(total / (total + quantizer.num_embeddings * 1e-2))

    quantizer._update_codebook = smoothed


def keep_old_sums_through_revival(quantizer, patch):
    right, kept = quantizer._revive, {}

    def revive(latents, hits, step):
        before = quantizer.codebook.detach().clone()
        right(latents, hits, step)
        for entry, old in kept.items():  # what mean = sum / count gives where both were left as they were
            quantizer.codebook.data[entry] = old
        kept.clear()
        moved = (quantizer.codebook.detach() != before).any(1) & (hits == 0)
        kept.update({entry: before[entry] for entry in moved.nonzero().flatten().tolist()})

    quantizer._revive = revive


def update_before_the_lookup(quantizer, patch):
    right = quantizer.look_up

    def late(codes):
        quantizer.codebook.data += 0.01
        return right(codes)

    quantizer.look_up = late


def encode_by_forward(quantizer, patch):
    quantizer.encode = lambda latents: quantizer(latents).codes


def update_in_eval_mode(quantizer, patch):
    right = quantizer.forward

    def forward(latents):
        quantizer.training = True
        return right(latents)

    quantizer.forward = forward


def sum_in_half_precision(quantizer, patch):
    right = base.tally
    patch.setattr(
        base, "tally", lambda latents, *rest: tuple(part.float() for part in right(latents.bfloat16(), *rest))
    )


def search_in_half_precision(quantizer, patch):
    right = base.find_nearest
    patch.setattr(base, "find_nearest", lambda latents, book, *rest: right(latents.bfloat16(), book.bfloat16(), *rest))


def keep_state_outside_the_buffers(quantizer, patch):
    quantizer._non_persistent_buffers_set |= {"running_hits", "running_steps"}


def make_a_new_parameter_each_step(quantizer, patch):
    right = quantizer._update

    def update(latents, codes):
        right(latents, codes)
        codebook = quantizer.codebook.detach().clone()
        del quantizer.codebook
        quantizer.codebook = torch.nn.Parameter(codebook)

    quantizer._update = update


def hold_all_distances(quantizer, patch):
    patch.setattr(
        base, "find_nearest", lambda latents, book, *rest: Nearest(torch.cdist(latents, book).argmin(1), None)
    )


def count_with_one_hot_codes(quantizer, patch):
    def tally(latents, codes, num_embeddings):
        one_hot = F.one_hot(codes, num_embeddings).to(latents.dtype)
        return one_hot.sum(0), one_hot.T @ latents

    patch.setattr(base, "tally", tally)

"""Entropies, in nats, of binary codes whose bits are independent at each site, without a table of sites × codes.

Shapes: n sites of this process, D bits, left and right halves of the bits.
"""

import torch
import torch.nn.functional as F

from .collective import joint_mean


def mean_entropy(log_odds: torch.Tensor) -> torch.Tensor:
    """Return the mean over sites of H(p(c|z)), (), for log odds (n, D) of each bit. Independent bits add up."""
    size = log_odds.abs()  # H is the same for both signs, and exact if a bit is certain
    return (F.softplus(-size) + size * torch.sigmoid(-size)).sum(1).mean()


def entropy_of_mean(log_odds: torch.Tensor, is_joint: bool) -> torch.Tensor:
    """Return H(mean over sites of p(c|z)), (), for log odds (n, D); `is_joint`: over the sites of all processes.

    At each site p(c|z) is the product of a distribution over the first half of the bits and one over the other half. So
    its sum over the sites is one product of two matrices, (2^left, n) × (n, 2^right).
    """
    left, right = (_table(half) for half in log_odds.tensor_split(2, dim=1))
    sums = left.T @ right
    mean = joint_mean(sums, log_odds) if is_joint else sums / max(1, len(log_odds))
    # a code that is nowhere possible adds nothing, and has a finite gradient
    return -(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()


def _table(log_odds: torch.Tensor) -> torch.Tensor:
    """Return the probabilities (n, 2^bits) of all combinations of bits with log odds (n, bits)."""
    table = log_odds.new_ones(len(log_odds), 1)
    for odds in log_odds.unbind(1):
        table = torch.cat([table * torch.sigmoid(-odds)[:, None], table * torch.sigmoid(odds)[:, None]], 1)
    return table

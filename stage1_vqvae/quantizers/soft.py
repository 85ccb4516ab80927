"""Random choices by distance: the nearer, the likelier.

Shapes: m points, n candidates, D embedding_dim.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from codegrid.devices import widest

from .nearest import tile_for


def as_compared(vectors: torch.Tensor, distance: str) -> torch.Tensor:
    """Return vectors (n, D) whose Euclidean distance orders them as `distance` does."""
    return F.normalize(vectors, dim=1) if distance == "cosine" else vectors


def log_weights(
    points: torch.Tensor, candidates: torch.Tensor, distance: str, temperature: float = 1.0
) -> Iterator[torch.Tensor]:
    """Yield −‖z − e‖² / τ, or cos(z, e) / τ up to a constant, for one group of m' points after another: (m', n).

    They have the widest type: thousands of small shares are added up. The matrix (m, n) is never held whole.
    """
    points, candidates = as_compared(points, distance), as_compared(candidates, distance)
    if len(candidates):
        centre = candidates.mean(0)  # distances between points far from the origin would lose their digits
        points, candidates = points - centre, candidates - centre
    scale = (0.5 if distance == "cosine" else 1.0) / temperature  # ‖z − e‖² = 2 (1 − cos) on the sphere
    for piece in points.split(max(1, tile_for(points.device).pairs // max(1, len(candidates)))):
        yield -scale * torch.cdist(piece, candidates).square().to(widest(points.device))


def draw_near(
    points: torch.Tensor, candidates: torch.Tensor, distance: str, draws: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Return for each point (m, D) the number (m,) of a candidate (n, D), drawn with the uniform `draws` (m,)."""
    rows, first = [], 0
    for weights in log_weights(points, candidates, distance, temperature):
        of_piece = draws[first : first + len(weights), None]
        rows.append((weights.softmax(1).cumsum(1) <= of_piece).sum(1))
        first += len(weights)
    return torch.cat(rows).clamp_max(max(0, len(candidates) - 1))  # the shares may add up to a little less than 1

"""How hard the terms of the loss pull at the latents: a commitment that outweighs all else collapses the codes.

Shapes: b batch, D embedding_dim, *sites of the latents.
"""

from collections.abc import Mapping

import torch

from codegrid.codes import Moment

CHECKED = (0, 100)  # steps of training


def measure_pulls(terms: Mapping[str, torch.Tensor], latents: torch.Tensor, moment: Moment | None) -> dict:
    """Return the norms () of the gradients at latents (b, D, *sites), as figures, at the steps that are `CHECKED`.

    `reconstruction_pull` is that of the reconstruction term, and `commitment_pull` that of all others together.
    """
    if moment is None or moment.step not in CHECKED or not latents.requires_grad:
        return {}
    others = [term for name, term in terms.items() if name != "reconstruction_loss" and term.requires_grad]
    pulls = {"reconstruction_pull": terms["reconstruction_loss"]}
    pulls |= {"commitment_pull": torch.stack(others).sum()} if others else {}
    norms = {}
    for name, term in pulls.items():
        (gradient,) = torch.autograd.grad(term, latents, retain_graph=True, allow_unused=True)
        norms[name] = latents.new_zeros(()) if gradient is None else gradient.norm()
    return norms

"""The pull of each loss term at the latents: a commitment that outweighs the others collapses the codes.

Shapes: b batch, D embedding_dim, *sites of the latents.
"""

from collections.abc import Mapping

import torch

from codegrid.codes import Moment

CHECKED = (0, 100)  # steps of training at which sound is checked
TOO_STRONG = 100  # commitment gradient over that of the other terms: the encoder is pulled to a point


def gradients_at(latents: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the norm () of the gradient of each term at latents (b, D, *sites), `reconstruction_gradient` and so on.

    Terms that do not depend on the latents, such as one that moves the codebook alone, are left out.
    """
    norms = {}
    for name, term in ((name, term) for name, term in terms.items() if term.requires_grad):
        (gradient,) = torch.autograd.grad(term, latents, retain_graph=True, allow_unused=True)
        if gradient is not None:
            norms[f"{name.removesuffix('_loss')}_gradient"] = gradient.norm()
    return norms


def checked_gradients(
    latents: torch.Tensor, terms: Mapping[str, torch.Tensor], moment: Moment | None
) -> dict[str, torch.Tensor]:
    """Return the norms of `gradients_at` latents as figures, at the steps that are `CHECKED`; at others nothing."""
    is_checked = moment is not None and moment.step in CHECKED and latents.requires_grad
    return gradients_at(latents, terms) if is_checked else {}


def is_too_strong(norms: Mapping[str, float]) -> bool:
    """Return whether the commitment outweighs all other terms, by the norms of their gradients."""
    others = [norm for name, norm in norms.items() if name.endswith("_gradient") and name != "commitment_gradient"]
    return norms.get("commitment_gradient", 0.0) > TOO_STRONG * max(others, default=0.0)

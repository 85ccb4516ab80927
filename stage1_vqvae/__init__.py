"""Stage 1: the tokenizer. A signal → latents → codes → the signal."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tokenizer import VQVAE

__all__ = ["VQVAE"]


def __getattr__(name: str) -> Any:
    # imported when it is first used: command lines are made from `options`, and torch takes seconds
    if name == "VQVAE":
        from .tokenizer import VQVAE

        return VQVAE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

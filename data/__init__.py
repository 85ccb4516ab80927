"""Images in, codes in between: data sets as uint8 images, and data sets of discrete codes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .codes import CodeDataset

__all__ = ["CodeDataset"]


def __getattr__(name: str) -> Any:
    if name == "CodeDataset":  # lazy: it imports torch
        from .codes import CodeDataset

        return CodeDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

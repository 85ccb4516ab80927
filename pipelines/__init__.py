"""Everything that runs the two stages: commands, the training loop, and generation from Python."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codegrid.pipelines.generation.pipeline import TwoStagePipeline

__all__ = ["TwoStagePipeline"]


def __getattr__(name: str) -> Any:
    if name == "TwoStagePipeline":  # lazy: it imports torch, and commands answer --help without it
        from codegrid.pipelines.generation.pipeline import TwoStagePipeline

        return TwoStagePipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

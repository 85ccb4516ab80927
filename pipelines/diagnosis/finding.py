"""What the doctor finds, and the rows of its table."""

from typing import Literal, NamedTuple

Figures = dict[str, float]

FAULT, WARNING = "fault", "warning"
SEVERITIES = (FAULT, WARNING)  # the worst first
STAGES = ("pairing", "tokenizer", "prior", "samples")  # in the order of cause and effect


class Finding(NamedTuple):
    """One thing that is wrong."""

    severity: Literal["fault", "warning"]  # fault: the results cannot be good; warning: they could be better
    stage: Literal["pairing", "tokenizer", "prior", "samples"]
    words: str  # "The prior is undertrained: ...", a sentence
    remedy: str  # what to try, naming flags; a sentence
    figures: Figures  # what it is concluded from


class Row(NamedTuple):
    """A line of the table: what a figure is, and which values are usual."""

    words: str
    usual: str
    style: str = ".2f"  # of the value


def by_importance(findings: list[Finding]) -> list[Finding]:
    """Faults first, and among equals causes before their effects."""
    return sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), STAGES.index(one.stage)))


def pick(figures: Figures, *names: str) -> Figures:
    """Those of the figures that there are."""
    return {name: figures[name] for name in names if name in figures}

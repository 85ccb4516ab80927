"""Findings of the doctor, and the rows of its tables."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

Metrics = dict[str, float]

FAULT: Final = "fault"
WARNING: Final = "warning"
SEVERITIES = (FAULT, WARNING)  # the worst first
STAGES = ("pairing", "tokenizer", "prior", "samples")  # in the order of cause and effect


class Finding(NamedTuple):
    """One thing that is wrong."""

    severity: Literal["fault", "warning"]  # fault: the results cannot be good; warning: they could be better
    stage: Literal["pairing", "tokenizer", "prior", "samples"]
    words: str  # "The prior is undertrained: ...", a sentence
    remedy: str  # what to try, naming commands and flags; a sentence
    metrics: Metrics  # what it is concluded from
    of: str = ""  # the table that these are in: "grid 0", "prior"


class Subject(NamedTuple):
    """A codebook or a prior that is judged; a run may have several."""

    name: str  # at the beginning of a sentence: "The prior"
    of: str = ""  # the table of its metrics
    config: Mapping[str, Any] = MappingProxyType({})  # the options that it has


class Row(NamedTuple):
    """A line of a table: what a metric is, and which values are usual."""

    words: str
    usual: str
    style: str = ".2f"  # of the value


class Table(NamedTuple):
    """Metrics of one subject, under one title."""

    title: str
    rows: Mapping[str, Row]
    metrics: Metrics
    of: str = ""


def by_importance(findings: Iterable[Finding]) -> list[Finding]:
    """Return faults first, and among equals causes before their effects."""
    return sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), STAGES.index(one.stage)))


def pick(metrics: Metrics, *names: str) -> Metrics:
    """Return those of the named metrics that there are."""
    return {name: metrics[name] for name in names if name in metrics}


def name_flags(config: Mapping[str, Any], *names: str, before: str = "") -> list[str]:
    """Return the flags of options, as far as a model has them, behind `before`: a remedy must not name others."""
    return [f"{before}--{name.replace('_', '-')}" for name in names if name in config]


def join_words(words: Sequence[str], last: str = "or") -> str:
    """Join words: `a, b or c`."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)

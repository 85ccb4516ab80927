"""Findings of the doctor, and the rows of its tables."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

Metrics = dict[str, float]
Bound = float | Callable[[Metrics], float]

FAULT: Final = "fault"
WARNING: Final = "warning"
SEVERITIES = (FAULT, WARNING)  # the worst first
LOW: Final = "LOW"  # marks of unusual figures
HIGH: Final = "HIGH"
STAGES = ("pairing", "tokenizer", "prior", "samples")  # in the order of cause and effect


class Finding(NamedTuple):
    """One thing that is wrong."""

    severity: Literal["fault", "warning"]  # fault: the results cannot be good; warning: they could be better
    stage: Literal["pairing", "tokenizer", "prior", "samples"]
    words: str  # "The prior is undertrained: ...", a sentence
    remedy: str  # what to try, naming commands and flags; a sentence
    metrics: Metrics  # the evidence
    of: str = ""  # the table that these metrics are in: "grid 0", "prior"


class Subject(NamedTuple):
    """A codebook or a prior that is judged; a run may have several."""

    name: str  # at the beginning of a sentence: "The prior"
    of: str = ""  # the table of its metrics
    config: Mapping[str, Any] = MappingProxyType({})  # the options that it has, and a prior's controls


class Row(NamedTuple):
    """A line of a table: a metric in words, the format of its value, and its usual range.

    A bound that depends on other metrics of the table is a function of them.
    """

    words: str
    style: str = ".2f"
    low: Bound = -math.inf
    high: Bound = math.inf


class Figure(NamedTuple):
    """A metric as a report shows it, beside its usual range."""

    of: str  # the subject of its table
    title: str
    metric: str
    words: str
    value: float
    shown: str
    usual: str  # "at most 0.10"; empty if no range is known
    mark: str  # LOW or HIGH if the value is outside that range


class Table(NamedTuple):
    """Metrics of one subject, under one title."""

    title: str
    rows: Mapping[str, Row]
    metrics: Metrics
    of: str = ""

    def figures(self) -> list[Figure]:
        """Return the metrics that are present, in the order of the rows, with marks on unusual ones."""
        found = []
        for name, row in self.rows.items():
            if name in self.metrics:
                value = self.metrics[name]
                low, high = self._bound(row.low, -math.inf), self._bound(row.high, math.inf)
                mark = LOW if value < low else "" if value <= high else HIGH  # NaN too is HIGH
                usual = _in_words(low, high, row.style)
                found.append(Figure(self.of, self.title, name, row.words, value, f"{value:{row.style}}", usual, mark))
        return found

    def _bound(self, bound: Bound, unknown: float) -> float:
        """Return a bound as a number; `unknown` if metrics that it depends on are missing."""
        try:
            return bound(self.metrics) if callable(bound) else bound
        except KeyError:
            return unknown


def _in_words(low: float, high: float, style: str) -> str:
    if math.isfinite(low) and math.isfinite(high):
        return f"{low:{style}} to {high:{style}}"
    least = f"at least {low:{style}}" * math.isfinite(low)
    return least or f"at most {high:{style}}" * math.isfinite(high)


def by_importance(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings: faults first, and within a severity causes before their effects."""
    return sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), STAGES.index(one.stage)))


def pick(metrics: Metrics, *names: str) -> Metrics:
    """Return the named metrics, leaving out missing ones."""
    return {name: metrics[name] for name in names if name in metrics}


def name_flags(config: Mapping[str, Any], *names: str, before: str = "") -> list[str]:
    """Return the flags of the named options that a model has, each after `before`: a remedy must not name others."""
    return [f"{before}--{name.replace('_', '-')}" for name in names if name in config]


def join_words(words: Sequence[str], last: str = "or") -> str:
    """Join words: `a, b or c`."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)

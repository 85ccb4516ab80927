"""The doctor's report: a verdict, the findings, and all metrics, as text and for programs."""

import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .finding import Finding, Metrics, Table

WIDTH = 110  # letters of a line of text
WORDS = 74  # letters that describe a metric


@dataclass
class Report:
    """Everything that was looked at, and found."""

    findings: list[Finding] = field(default_factory=list)  # the most important first
    tables: list[Table] = field(default_factory=list)
    metrics: Metrics = field(default_factory=dict)  # of the reconstructions
    grids: list[dict[str, Any]] = field(default_factory=list)  # of the codebook, grid by grid
    priors: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # sentences
    looked_at: dict[str, str] = field(default_factory=dict)  # folders by name
    images: str = ""  # that were looked at, in one line

    @property
    def verdict(self) -> str:
        """One sentence: the first finding, or that there is none."""
        if self.findings:
            return self.findings[0].words
        looked = any(table.metrics for table in self.tables)
        return "Nothing found." if looked else "Nothing was looked at: too many parts are missing."

    def as_text(self) -> str:
        """Return all of it as text."""
        lines = [self.verdict]
        lines += [f"({len(self.findings) - 1} more below)"] if len(self.findings) > 1 else []
        lines += [""]
        lines += [f"Looked at: {', '.join(str(Path(folder)) for folder in self.looked_at.values())}"]
        lines += [f"Images:    {self.images}"] * bool(self.images)
        lines += [f"Left out:  {words}" for words in self.left_out] + [""]
        for number, finding in enumerate(self.findings, 1):
            lines += _describe(number, finding)
        if len(self.findings) > 1:
            lines += ["Later findings often follow from earlier ones: fix the first, and ask again.", ""]
        for table in self.tables:
            lines += self._table(table)
        return "\n".join(lines).rstrip()

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "verdict": self.verdict,
            "findings": [finding._asdict() for finding in self.findings],
            "metrics": self.metrics,
            "grids": self.grids,
            "priors": self.priors,
            "left_out": self.left_out,
            "looked_at": self.looked_at,
            "images": self.images,
        }

    def _table(self, table: Table) -> list[str]:
        """Return metrics with what is usual, and in front of each the number of the first finding that rests on it."""
        here = {name: row for name, row in table.rows.items() if name in table.metrics}
        if not here:
            return []
        lines = [f"{table.title:{WORDS + 3}} {'':8}   usual"]
        mine = [(number, one.metrics) for number, one in enumerate(self.findings, 1) if one.of == table.of]
        for name, row in here.items():
            number = next((str(number) for number, metrics in mine if name in metrics), "")
            value = f"{table.metrics[name]:{row.style}}"
            lines.append(f"{number:2} {row.words:{WORDS}} {value:>8}   {row.usual}".rstrip())
        return [*lines, ""]


def _describe(number: int, finding: Finding) -> list[str]:
    indent = "   "
    words = textwrap.fill(
        f"{number}. {finding.severity}, {finding.stage}: {finding.words}", WIDTH, subsequent_indent=indent
    )
    remedy = textwrap.fill(f"Try: {finding.remedy}", WIDTH, initial_indent=indent, subsequent_indent=indent)
    return [words, remedy, ""]

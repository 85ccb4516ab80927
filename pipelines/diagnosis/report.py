"""The doctor's report: a verdict, the findings, and all metrics, as text and for programs."""

import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codegrid.pipelines.doctor import SOUND

from .finding import HIGH, LOW, Figure, Finding, Metrics, Table
from .training import ROWS as OF_TRAINING

WIDTH = 80  # characters of a line of text
WORDS = 46  # characters that describe a metric


@dataclass
class Report:
    """Everything that was checked and found."""

    findings: list[Finding] = field(default_factory=list)  # the most important first
    tables: list[Table] = field(default_factory=list)
    metrics: Metrics = field(default_factory=dict)  # of the tokenizer: its training, its reconstructions
    grids: list[dict[str, Any]] = field(default_factory=list)  # of the codebook, grid by grid
    priors: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # sentences
    looked_at: dict[str, str] = field(default_factory=dict)  # folders by name
    images: str = ""  # the images that were checked, in one line

    @property
    def marks(self) -> list[Figure]:
        """All unusual figures."""
        return [figure for table in self.tables for figure in table.figures() if figure.mark]

    @property
    def verdict(self) -> str:
        """One sentence: the first finding, or else the first unusual figure, or that there is neither."""
        if self.findings:
            return self.findings[0].words
        if self.marks:
            first, *others = self.marks
            more = f"; {len(others)} more below" if others else ""
            return f"Unusual: {first.title}, {first.words}: {first.shown} (usual: {first.usual}){more}."
        looked = any(table.figures() for table in self.tables if table.rows is not OF_TRAINING)
        return SOUND if looked else "Nothing was checked: too many parts are missing."

    def as_text(self) -> str:
        """Return the report as text."""
        lines = [self.verdict]
        more = [f"{len(self.findings) - 1} more below"] if len(self.findings) > 1 else []
        more += [f"unusual figures are marked {LOW} or {HIGH}"] if self.marks else []
        lines += [f"({'; '.join(more)})"] if more else []
        lines += ["", *_wrap(f"Checked:   {', '.join(str(Path(folder)) for folder in self.looked_at.values())}")]
        lines += _wrap(f"Images:    {self.images}") if self.images else []
        lines += [line for words in self.left_out for line in _wrap(f"Left out:  {words}")] + [""]
        for number, finding in enumerate(self.findings, 1):
            lines += _describe(number, finding)
        if len(self.findings) > 1:
            lines += ["Later findings often follow from earlier ones: fix the first, and run this again.", ""]
        for table in self.tables:
            lines += self._table(table)
        return "\n".join(lines).rstrip()

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "verdict": self.verdict,
            "findings": [finding._asdict() for finding in self.findings],
            "marks": [figure._asdict() for figure in self.marks],
            "metrics": self.metrics,
            "grids": self.grids,
            "priors": self.priors,
            "left_out": self.left_out,
            "looked_at": self.looked_at,
            "images": self.images,
        }

    def _table(self, table: Table) -> list[str]:
        """Return a table's lines: each metric after the number of the first finding that uses it, with its range."""
        figures = table.figures()
        if not figures:
            return []
        lines = [f"{table.title:{WORDS + 3}} {'':8} {'':4} usual"]
        mine = [(number, one.metrics) for number, one in enumerate(self.findings, 1) if one.of == table.of]
        for figure in figures:
            number = next((str(number) for number, metrics in mine if figure.metric in metrics), "")
            words = f"{number:2} {figure.words:{WORDS}} {figure.shown:>8} {figure.mark:4} {figure.usual}"
            lines.append(words.rstrip())
        return [*lines, ""]


def _describe(number: int, finding: Finding) -> list[str]:
    words = _wrap(f"{number}. {finding.severity}, {finding.stage}: {finding.words}", 3)
    return [*words, *_wrap(f"   Try: {finding.remedy}", 3), ""]


def _wrap(words: str, indent: int = 11) -> list[str]:
    """Break words into lines that fit the page. Paths and flags stay whole."""
    return textwrap.wrap(words, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)

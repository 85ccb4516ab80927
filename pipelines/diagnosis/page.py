"""The doctor's page: a verdict, the findings, and all figures."""

import textwrap
from pathlib import Path
from typing import Any

from codegrid.pipelines.diagnosis import codebook, decoder, likelihood, samples

from .finding import Figures, Finding, Row

WIDTH = 110  # letters of a line of text
WORDS = 74  # letters that describe a figure
SECTIONS: dict[str, dict[str, Row]] = {
    "Codebook": codebook.ROWS,
    "Decoder": decoder.ROWS,
    "Prior": likelihood.ROWS,
    "Samples": samples.ROWS,
}


def verdict_of(findings: list[Finding], figures: Figures) -> str:
    """One sentence: the first finding, or that there is none."""
    if findings:
        return findings[0].words
    return "Nothing found." if figures else "Nothing was looked at: too many parts are missing."


def write_page(findings: list[Finding], figures: Figures, left_out: list[str], looked_at: dict[str, str]) -> str:
    """All of it as text."""
    lines = [verdict_of(findings, figures)]
    lines += [f"({len(findings) - 1} more below)"] if len(findings) > 1 else []
    lines += [""]
    lines += [f"Looked at: {', '.join(str(Path(folder)) for folder in looked_at.values())}"]
    lines += [f"Left out:  {words}" for words in left_out] + [""]
    for number, finding in enumerate(findings, 1):
        lines += _describe(number, finding)
    if len(findings) > 1:
        lines += ["Later findings often follow from earlier ones: mend the first, and ask again.", ""]
    for title, rows in SECTIONS.items():
        lines += _table(title, rows, figures, findings)
    return "\n".join(lines).rstrip()


def _describe(number: int, finding: Finding) -> list[str]:
    indent = "   "
    words = textwrap.fill(
        f"{number}. {finding.severity}, {finding.stage}: {finding.words}", WIDTH, subsequent_indent=indent
    )
    remedy = textwrap.fill(f"Try: {finding.remedy}", WIDTH, initial_indent=indent, subsequent_indent=indent)
    return [words, remedy, ""]


def _table(title: str, rows: dict[str, Row], figures: Figures, findings: list[Finding]) -> list[str]:
    """Figures with what is usual, and in front of each the number of the first finding that rests on it."""
    here = {name: row for name, row in rows.items() if name in figures}
    if not here:
        return []
    lines = [f"{title:{WORDS + 3}} {'':8}   usual"]
    for name, row in here.items():
        number = next((str(i) for i, finding in enumerate(findings, 1) if name in finding.figures), "")
        value = f"{figures[name]:{row.style}}"
        lines.append(f"{number:2} {row.words:{WORDS}} {value:>8}   {row.usual}".rstrip())
    return [*lines, ""]


def as_json(findings: list[Finding], figures: Figures, left_out: list[str]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "verdict": verdict_of(findings, figures),
        "findings": [finding._asdict() for finding in findings],
        "figures": figures,
        "left_out": left_out,
    }

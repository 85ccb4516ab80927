"""From tyro's page about an impossible flag to one line without Python's types."""

import re

RULE = re.compile(r"\s*[─-]{3,}\s*")
FLAG = re.compile(r"Error parsing (--[\w-]+): ")
FORM = re.compile(r"Argument helptext:[\s│]+--[\w-]+ (.*?)[\s│]*\n")  # the metavar of the flag
VALUES = {"INT": "a whole number", "INT [INT ...]": "whole numbers", "N [N ...]": "whole numbers", "FLOAT": "a number"}


def explain(page: str, prog: str) -> str:
    """Return what is wrong with a flag and what to do, from the page that tyro prints; empty if it is no such page."""
    # lines divide a page into sections; its first line is a title, framed or, where only ASCII is printed, above a line
    sections = RULE.split(" ".join(line.strip("│ ") for line in page.splitlines()[1:-1]))
    if not (words := next(filter(None, sections), "").strip()):
        return ""
    close = re.search("Perhaps you meant.*?(--[a-z][a-z-]*)", page, re.DOTALL)
    remedy = f"did you mean {close[1]}?" if close else f"`{prog} --help` explains the flags"
    return f"{_plainly(words.rstrip('.'), page)}: {remedy}"


def _plainly(words: str, page: str) -> str:
    words = re.sub("'None', |, 'None'", "", words)  # a flag that is not given is None, but nobody writes that
    flag, form = FLAG.match(words), FORM.search(page)
    if not flag or not form:
        return words
    given = re.findall("'([^']*)'", words[flag.end() :].partition("Got errors")[0])
    return f"{flag[1]} {' '.join(given)}: it must be {VALUES.get(form[1], form[1])}"

"""Phonemes told from codes: each code stands for the phoneme that it occurs with most often (1711.00937, section 4.3).

The mapping is fitted on some recordings and scored on others: on those that it was fitted on, a code for each frame
would know everything. Pauses, a fifth of speech, are easy; so everything is also measured without them.

Shapes: t codes of a clip, q grids.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from codegrid.data.sound import Clip
from codegrid.errors import InputError

from .clip_codes import ClipCodes

PAUSES = frozenset({"pau", "sil", "sp", "spn", "ssil", "nsn", "h#", "#", "<s>", "</s>", "<sil>", "_"})
SHIFTS = range(-3, 4)  # codes

Code = tuple[int, ...]  # of all grids
Pair = tuple[Code, str]


class Accuracy(NamedTuple):
    """Share of the frames whose phoneme is told, and what would be right without any code."""

    right: float
    commonest: float  # always the commonest phoneme of the frames that the mapping was fitted on
    frames: int  # that are scored


def phones_of(clip: Clip, count: int, code_rate: float, shift: int = 0) -> list[str | None]:
    """Return the phone in the middle of each of `count` codes, `shift` codes later; None beyond the clip's phones."""
    phones, number = list[str | None](), 0
    for code in range(count):
        time = (code + shift + 0.5) / code_rate
        while number < len(clip.segments) and clip.segments[number][0] <= time:
            number += 1
        inside = time >= 0 and number < len(clip.segments)
        phones.append(clip.segments[number][1] if inside else None)
    return phones


def pairs_of(found: Iterable[ClipCodes], code_rate: float, shift: int = 0, pauses: bool = True) -> list[Pair]:
    """Return each code of some clips with its phone; without those of pauses unless `pauses`."""
    pairs = []
    for clip, codes in found:
        if clip.segments:
            phones = phones_of(clip, len(codes), code_rate, shift)
            pairs += [(tuple(code), phone) for code, phone in zip(codes.tolist(), phones, strict=True) if phone]
    return pairs if pauses else [pair for pair in pairs if pair[1].casefold() not in PAUSES]


def score(train: Sequence[Pair], test: Sequence[Pair]) -> Accuracy:
    """Fit the phoneme of each code on some pairs, and score it on others; new codes get the commonest phoneme.

    Raises `InputError` if there is nothing to fit or to score.
    """
    if not train or not test:
        raise InputError("`phonemes`: both parts need recordings with phones: give label files (.lab) beside them")
    counts = defaultdict[Code, Counter[str]](Counter)
    for code, phone in train:
        counts[code][phone] += 1
    commonest = _most_common(Counter(phone for _, phone in train))
    phone_of = {code: _most_common(each) for code, each in counts.items()}
    right = sum(phone_of.get(code, commonest) == phone for code, phone in test)
    as_commonest = sum(phone == commonest for _, phone in test)
    return Accuracy(right / len(test), as_commonest / len(test), len(test))


def measure_phonemes(train: Sequence[ClipCodes], test: Sequence[ClipCodes], code_rate: float) -> dict[str, Any]:
    """Return how often codes tell the phoneme, with and without pauses, each beside the commonest one's share.

    `phoneme_accuracy_by_shift` is that of phonemes some codes later, which is highest at 0 if codes stand for their own
    moment.
    """
    results: dict[str, Any] = {}
    for pauses, ending in ((True, ""), (False, "_without_pauses")):
        found = score(pairs_of(train, code_rate, 0, pauses), pairs_of(test, code_rate, 0, pauses))
        results |= {f"phoneme_accuracy{ending}": found.right, f"commonest_phoneme{ending}": found.commonest}
        results[f"phoneme_frames{ending}"] = found.frames
    shifts = {shift: [pairs_of(part, code_rate, shift) for part in (train, test)] for shift in SHIFTS}
    results["phoneme_accuracy_by_shift"] = {str(shift): score(*parts).right for shift, parts in shifts.items()}
    return results


def _most_common(counts: Counter[str]) -> str:
    """Return the phone that is met most often, the first by name of several."""
    return min(counts, key=lambda phone: (-counts[phone], phone))

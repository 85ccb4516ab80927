"""Phonemes and speakers, told from codes of speech."""

from __future__ import annotations

from typing import Any

from codegrid.data.images import evenly_spaced
from codegrid.data.sound import Clip, SoundDataset
from codegrid.data.sources import Images
from codegrid.errors import InputError
from codegrid.progress import progress_bar
from codegrid.protocols import Tokenizer

from .clip_codes import ClipCodes, encode_clips
from .metrics import Metrics
from .phonemes import measure_phonemes
from .speaker_probe import probe_speakers

MAX_PROBED = 2000  # clips of a part that tell who speaks


def check_phonemes(tokenizer: Tokenizer, split: str) -> None:
    """Raise `InputError` if phonemes cannot be told from this tokenizer's codes, or not on this part."""
    if tokenizer.signal.kind != "sound" or len(tokenizer.stack) > 1:
        raise InputError("`phonemes` needs a single tokenizer of sound: give one, or leave it out")
    if split == "train":
        raise InputError("`phonemes` is fitted on the training part: measure it on the test part")


def add_speech(
    tokenizer: Any, train: Images | None, test: Images, phonemes: bool, metrics: Metrics, **measured_on: Any
) -> None:
    """Add how often codes tell the speaker of a clip and, if asked for, the phoneme.

    Both are fitted on the training part. Raises `InputError` if no clip has phones, but they are asked for.
    """
    if not isinstance(train, SoundDataset) or not isinstance(test, SoundDataset) or train is test:
        return
    if len(test.classes) > 1:
        learnt, scored = (_encode(tokenizer, data.clips, MAX_PROBED, "speakers") for data in (train, test))
        probed = probe_speakers(learnt, scored, tokenizer.layout, test.classes)
        metrics.add(probed, **measured_on, probe="logistic regression on the histogram of a clip's codes")
    if phonemes:
        learnt, scored = (_encode(tokenizer, data.clips, len(data.clips), "phonemes") for data in (train, test))
        code_rate = tokenizer.signal.rate / tokenizer.hop
        metrics.add(measure_phonemes(learnt, scored, code_rate), **measured_on, codes_per_second=code_rate)


def _encode(tokenizer: Any, clips: list[Clip], at_most: int, name: str) -> list[ClipCodes]:
    numbers = evenly_spaced(len(clips), at_most)
    return encode_clips(tokenizer, progress_bar([clips[number] for number in numbers], name))

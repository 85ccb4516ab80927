"""Recordings in another speaker's voice: from Python, and the body of `codegrid convert`.

Shapes: T samples of a clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from codegrid.codes import Condition
from codegrid.data.clips import load_clips
from codegrid.data.image_files import ClipFiles, names_of_files
from codegrid.data.images import to_float, to_stored
from codegrid.data.loading import in_batches
from codegrid.data.manifest import FILES_JSON
from codegrid.data.sound import Clip
from codegrid.errors import InputError
from codegrid.file_names import printable
from codegrid.files import write_json
from codegrid.limits import BatchSize, check_value, short
from codegrid.locks import releasing
from codegrid.noise import Noise
from codegrid.pipelines.convert import Convert
from codegrid.pipelines.drawing.sheets import save_pairs
from codegrid.pipelines.drawing.shown import as_pictures
from codegrid.pipelines.running.cli import print_once, print_plan, resume_bar
from codegrid.pipelines.running.device import choose_device
from codegrid.pipelines.running.run_folder import Run
from codegrid.stage1_vqvae.drawn_waves import decode_clips
from codegrid.tensors import digest_of, sha256

from .tokenizers import load_tokenizer

SHOWN, COLUMNS, SECONDS = 8, 4, 2  # clips in sounds.png, and as much of each
NAMED = 20  # speakers in a message


@torch.no_grad()
def convert_voice(
    tokenizer: Any,
    waves: Sequence[torch.Tensor],
    speaker: str,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int = 16,
) -> list[torch.Tensor]:
    """Return clips in another speaker's voice, each (T,) in its own length.

    Args:
        tokenizer: one of sound that was trained on several speakers.
        waves: clips (T,) of any lengths, in [-1, 1], at the tokenizer's sampling rate; by any speaker.
        speaker: the name of the speaker to be heard.
        seed: of a decoder that draws.
        first_index: number of the first clip; what is drawn for clip i depends only on the seed and on i.
        batch_size: clips that a decoder that draws computes at once; each is what it would be alone.

    Raises `InputError` if the tokenizer does not know the speaker, or a clip is not a wave.
    """
    check_value("batch_size", batch_size, BatchSize)
    if not all(isinstance(wave, torch.Tensor) and wave.ndim == 1 and wave.is_floating_point() for wave in waves):
        raise InputError(
            "`waves`: each must be a tensor (T,) of floats in [-1, 1]: give samples.images[0, 0] and so on"
        )
    label, converted = number_of(tokenizer, speaker), list[torch.Tensor]()
    for rows in in_batches(range(len(waves)), batch_size):
        some = [waves[number].to(tokenizer.device) for number in rows]
        codes = [tokenizer.encode(wave.expand(1, 1, -1)) for wave in some]
        noise = Noise(seed, first_index + rows[0], len(rows), tokenizer.device)
        lengths, given = [len(wave) for wave in some], Condition(torch.full((len(rows),), label))
        converted += [wave[0, 0].cpu() for wave in decode_clips(tokenizer, codes, lengths, given, noise)]
    return converted


def number_of(tokenizer: Any, speaker: str) -> int:
    """Return the label of a speaker. Raises `InputError` if a tokenizer does not know the name."""
    if tokenizer.signal.kind != "sound":
        raise InputError(f"`tokenizer` is one of {tokenizer.signal.kind}s: give one of sound")
    names = tokenizer.provenance.get("classes", [])
    if not tokenizer.num_classes or not names:
        raise InputError("`tokenizer` knows no speakers: give one that was trained on a folder for each speaker")
    if speaker not in names:
        known = ", ".join(map(printable, names[:NAMED])) + ", ..." * (len(names) > NAMED)
        raise InputError(f"`speaker` {short(speaker)}: this tokenizer knows only {known}: give one of these")
    return int(names.index(speaker))


@releasing()
def convert(settings: Convert) -> None:
    """Write the converted recordings, their names, and a sheet of spectrograms into `settings.output`."""
    tokenizer: Any = load_tokenizer(settings.tokenizer, choose_device(settings))
    number_of(tokenizer, settings.speaker)  # before anything is read
    rate = tokenizer.signal.rate
    clips = load_clips(Path(settings.input), round(rate), settings.skip_unreadable)
    found = digest_of([[clip.name, sha256(clip.wave)] for clip in clips])
    run = Run(settings.output, settings, tokenizer=tokenizer.fingerprint(), recordings=found)
    if run.finished:
        return print_once(f"{run.shown} is finished: nothing to do")
    minutes = sum(len(clip.wave) for clip in clips) / rate / 60
    if settings.dry_run:
        return print_plan(f"{len(clips):,} recordings of {minutes:,.1f} minutes to convert")
    stems = names_of_files(clip.name for clip in clips)
    lengths = [len(clip.wave) for clip in clips]
    files = ClipFiles(run.folder / "sounds", lengths, lambda rows: stems[rows.start : rows.stop], rate)
    run.start()
    missing = files.missing()
    with resume_bar(run.shown, missing, len(clips), "converting") as bar:
        for numbers in missing:
            files.write(numbers, _converted(tokenizer, clips, numbers, settings, bar))

    def write_results(folder: Path) -> None:
        again = files.read_first(SHOWN)[..., : round(SECONDS * rate)]
        before = torch.zeros_like(again)
        for row, clip in zip(before[:, 0], clips, strict=False):
            start = _wave_of(clip)[: len(row)]
            row[: len(start)] = start
        before, again = (as_pictures(tokenizer.signal, waves) for waves in (before, again))
        save_pairs(folder / "sounds.png", before, again, COLUMNS)
        write_json(folder / FILES_JSON, [clip.name for clip in clips])

    run.finish_with(write_results)
    print_once(f"{run.shown}: {len(clips):,} recordings of {minutes:,.1f} minutes as {printable(settings.speaker)}")


def _converted(
    tokenizer: Any, clips: Sequence[Clip], numbers: range, settings: Convert, bar: Any
) -> Iterator[list[torch.Tensor]]:
    """Yield some clips, each (1, T) int16, in the voice of the settings, batch by batch."""
    for rows in in_batches(numbers, settings.batch_size):
        waves = [_wave_of(clips[number]) for number in rows]
        drawn = convert_voice(tokenizer, waves, settings.speaker, settings.seed, rows[0], settings.batch_size)
        yield [to_stored("sound", wave[None]) for wave in drawn]
        bar.update(len(rows))


def _wave_of(clip: Clip) -> torch.Tensor:
    """Return the wave (T,) of a clip in [-1, 1]."""
    return to_float(torch.from_numpy(clip.wave))

"""Sound made from numbers, in files and packages, for the tests of sound."""

import io
import tarfile

import numpy as np
import soundfile

RATE = 16_000


def tone(pitch, seconds=0.1, rate=RATE, loudness=0.5):
    """A sine (T,) that starts at 0."""
    return loudness * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


def write_clip(path, wave, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, **options)
    return path


def write_speech(root, speakers=("ann", "bob"), texts=10, seconds=0.1):
    """Each speaker, a pitch, says each text, a rhythm: SPEAKER/TEXT.wav with a file of text beside it."""
    for number, speaker in enumerate(speakers):
        for text in range(texts):
            wave = tone(400 * (number + 1), seconds) * (1 + np.cos(np.arange(round(seconds * RATE)) * (text + 1) / 300))
            path = write_clip(root / speaker / f"{text}.wav", wave / 2)
            path.with_suffix(".txt").write_text(f"text {text}")
    return root


def content_of(wave, form="WAV"):
    """The bytes of a sound file."""
    content = io.BytesIO()
    soundfile.write(content, wave, RATE, format=form)
    return content.getvalue()


def write_package(path, files, name="data.tar.xz", mode="w:xz"):
    """A Debian package with these contents by path."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:
        for place, content in files.items():
            member = tarfile.TarInfo(place)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    archive = b"!<arch>\n"
    for member, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (name, data.getvalue())):
        header = f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        archive += header.encode() + content + b"\n" * (len(content) % 2)
    path.write_bytes(archive)
    return path

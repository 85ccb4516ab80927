"""Voices and phonemes: what codes of speech tell, and whether another voice is heard after a conversion.

python -m benchmarks.speech --voices gcin-voice.deb --phonemes festvox-ru.deb --output runs/speech

Both are Debian packages (`apt-get download gcin-voice festvox-ru`), read as they are. The syllables of gcin-voice by
two speakers train a tokenizer with transposed convolutions, and then a WaveNet on its frozen codes. Held-out syllables
are converted to the other speaker; the nearest mean cepstrum says who is heard, and the mel-cepstral distance, after a
warping of time, how near the result is to that speaker saying the syllable. The sentences of festvox-ru train a
tokenizer of 25 codes per second, which reads cepstra; its codes name phonemes, as do k-means of cepstra. Finished parts
are not computed again.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codegrid import load
from codegrid.data.images import evenly_spaced, to_float
from codegrid.data.sound import Clip
from codegrid.data.speech import load_speech
from codegrid.files import write_json
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.clip_codes import ClipCodes
from codegrid.pipelines.evaluation.phonemes import measure_phonemes
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.generation.voices import convert_voice
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.tokenizer import train_tokenizer
from codegrid.tensors import read_json

from .cepstra import cepstra, cepstral_distance, k_means, loud_cepstra, nearest_of

RATE, CODES_PER_SECOND, ENTRIES = 16_000, 25, 128
PAIRS = 60  # syllables by both speakers
STRIDES = (5, 4, 4, 4, 2)  # 640 samples
OF_PHONEMES = {"encoder_input": "cepstra", "cepstral_weight": 1.0}


def train(settings: TrainTokenizer) -> str:
    """Train a tokenizer, keep the minutes of processor time beside its folder, and say them."""
    place = Path(settings.output)
    note, start = place.with_name(f"{place.name}-minutes.json"), time.process_time()
    is_new = not (place / "model.safetensors").exists()
    train_tokenizer(settings)
    if is_new:
        write_json(note, {"minutes": (time.process_time() - start) / 60})
    minutes = read_json(note)["minutes"] if note.exists() else float("nan")
    print(f"{place.name}: {settings.steps:,} steps of {settings.batch_size} windows, {minutes:.1f} minutes of one core")
    return str(place)


def train_voices(output: Path, common: TrainTokenizer, steps: tuple[int, int]) -> tuple[str, str]:
    """Return the folders of the tokenizers: with transposed convolutions, and with a WaveNet on the same codes."""
    options = {"num_embeddings": 256, **common.options}
    weak = train(replace(common, output=str(output / "voices"), steps=steps[0], options=options))
    drawing = {**options, "decoder": "wavenet", "frozen_codes": True}
    drawing |= {"channels": 4, "skip_channels": 4} if "hidden_channels" in options else {}
    drawn = replace(common, output=str(output / "drawn"), steps=steps[1], options=drawing, init_from=weak)
    return weak, train(replace(drawn, window=2560 if drawn.window is None else drawn.window))


def judge_conversions(place: str, data_root: Path, num_pairs: int) -> None:
    """Print who is heard in converted clips, and how far they are from that speaker saying the same."""
    tokenizer = load(place)
    train_part, test_part = (load_speech([data_root], split, rate=RATE) for split in ("train", "test"))
    means = mean_cepstra(train_part.clips, train_part.classes)
    of_text: dict[str, dict[str, Clip]] = {}
    for clip in test_part.clips:
        of_text.setdefault(clip.text, {})[clip.speaker] = clip
    both = [pair for pair in of_text.values() if len(pair) == 2]
    pairs = [both[number] for number in evenly_spaced(len(both), num_pairs)]
    real = [clip for pair in pairs for clip in pair.values()]
    right = [name_speaker(loud_cepstra(wave_of(clip), RATE), means) == clip.speaker for clip in real]
    print(f"real held-out syllables named as their speaker: {100 * np.mean(right):.1f} % of {len(right)}")
    told: dict[str, list[float]] = {}
    for target in train_part.classes:
        sources = [next(clip for name, clip in pair.items() if name != target) for pair in pairs]
        goals = [loud_cepstra(wave_of(pair[target]), RATE) for pair in pairs]
        own = convert_voice(tokenizer, [wave_of(pair[target]) for pair in pairs], target, batch_size=64)
        heard = convert_voice(tokenizer, [wave_of(clip) for clip in sources], target, batch_size=64)
        found = [loud_cepstra(wave, RATE) for wave in heard]
        rows = {
            "converted": found,
            "decoded as the same speaker": [loud_cepstra(wave, RATE) for wave in own],
            "the other speaker, not converted": [loud_cepstra(wave_of(clip), RATE) for clip in sources],
            "the same speaker, another syllable": goals[len(goals) // 2 :] + goals[: len(goals) // 2],
        }
        for name, some in rows.items():
            told.setdefault(name, []).extend(map(cepstral_distance, some, goals))
        told.setdefault("named", []).extend(float(name_speaker(each, means) == target) for each in found)
    print(f"converted syllables named as the target speaker: {100 * np.mean(told.pop('named')):.1f} %")
    for name, distances in told.items():
        error = np.std(distances) / len(distances) ** 0.5
        print(f"{name:36} {np.mean(distances):5.2f} ± {error:.2f} dB from the target saying it")


def mean_cepstra(clips: list[Clip], speakers: list[str]) -> dict[str, np.ndarray]:
    """Return the mean over clips of the mean cepstrum (d,) of each speaker."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in speakers}
    for clip in clips:
        found[clip.speaker].append(loud_cepstra(wave_of(clip), RATE).mean(0))
    return {name: np.mean(each, axis=0) for name, each in found.items()}


def name_speaker(found: np.ndarray, means: dict[str, np.ndarray]) -> str:
    """Return the speaker whose mean cepstrum (d,) is nearest to that of a clip (f, d)."""
    return min(means, key=lambda name: float(np.square(found.mean(0) - means[name]).sum()))


def wave_of(clip: Clip) -> torch.Tensor:
    """Return the wave (T,) of a clip in [-1, 1]."""
    return to_float(torch.from_numpy(clip.wave))


def codes_of_cepstra(data_root: Path, entries: int) -> dict[str, Any]:
    """Return how often k-means of cepstra tell the phoneme: of 13 coefficients, the mean of three windows a code."""
    parts = [load_speech([data_root], split, rate=RATE).clips for split in ("train", "test")]
    features = [[frames_of(wave_of(clip)) for clip in part] for part in parts]
    everything = torch.cat(features[0])
    mean, spread = everything.mean(0), everything.std(0)
    centres = k_means((everything - mean) / spread, entries)
    found = []
    for part, each in zip(parts, features, strict=True):
        codes = [nearest_of((own - mean) / spread, centres)[:, None] for own in each]
        found.append([ClipCodes(clip, own) for clip, own in zip(part, codes, strict=True)])
    return measure_phonemes(*found, CODES_PER_SECOND)


def frames_of(wave: torch.Tensor) -> torch.Tensor:
    """Return 13 coefficients (t, 13) of each 40 ms of a wave: the mean of the windows at 10, 20 and 30 ms."""
    of_window = cepstra(wave, RATE, 0.01, 13)
    whole = of_window[: len(of_window) // 4 * 4].unflatten(0, (-1, 4))
    return whole[:, 1:].mean(1)


def print_phonemes(name: str, found: dict[str, Any]) -> None:
    """Print how often the phoneme is told, each figure beside that of the commonest one."""
    for ending, what in (("", "of all frames"), ("_without_pauses", "without pauses")):
        right, commonest = (100 * found[f"{kind}{ending}"] for kind in ("phoneme_accuracy", "commonest_phoneme"))
        print(f"{name:28} {right:5.1f} % {what} (the commonest phoneme: {commonest:.1f} %)")


def write_toys(folder: Path) -> tuple[Path, Path]:
    """Write recordings of two voices that are tones, and of sentences of two phones, and return their folders."""
    import soundfile

    random = np.random.default_rng(0)
    voices, phonemes = folder / "voices", folder / "phonemes"
    times = np.arange(RATE // 5) / RATE
    for place in (voices / "ann", voices / "bob", phonemes):
        place.mkdir(parents=True, exist_ok=True)
    for text in range(20):
        for name, pitch in (("ann", 200), ("bob", 500)):
            wave = np.sin(2 * np.pi * (pitch + 10 * text) * times) / 3 + random.normal(0, 0.01, len(times))
            soundfile.write(voices / name / f"{text}.wav", wave, RATE)
        wave = np.concatenate([np.sin(2 * np.pi * pitch * times) / 3 for pitch in (300 + text, 2000 + text)])
        soundfile.write(phonemes / f"{text}.wav", wave, RATE)
        (phonemes / f"{text}.lab").write_text("#\n0.2 100 u\n0.4 100 i\n")
    return voices, phonemes


def main() -> None:
    """Train what is missing, then print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voices", type=Path, help="gcin-voice, or recordings of the same texts by two speakers")
    parser.add_argument("--phonemes", type=Path, help="festvox-ru, or recordings with label files")
    parser.add_argument("--output", type=Path, default=Path("runs/speech"), help="folder of the runs")
    parser.add_argument("--toy", action="store_true", help="tones, a few steps and narrow networks: only to see it run")
    flags = parser.parse_args()
    common = TrainTokenizer(output="", model="wave", dataset="speech", steps=1, batch_size=16, lr=1e-3)
    steps, voices, phonemes = (800, 600, 1600), flags.voices, flags.phonemes
    if flags.toy:
        voices, phonemes = write_toys(flags.output / "toys")
        small = {"hidden_channels": 8, "num_residual_blocks": 1, "embedding_dim": 4}
        common, steps = replace(common, options=small, window=1280), (3, 3, 3)
    if voices is not None:
        tokenizers = train_voices(flags.output, replace(common, data_root=str(voices)), steps[:2])
        for place in tokenizers:
            data = {"dataset": "speech", "data_root": str(voices), "output": f"{place}-figures"}
            evaluate(Evaluate(tokenizer=(place,), **data))
            judge_conversions(place, voices, 4 if flags.toy else PAIRS)
    if phonemes is not None:
        entries = 8 if flags.toy else ENTRIES
        print_phonemes(f"k-means of cepstra, K {entries}", codes_of_cepstra(phonemes, entries))
        options = {
            "num_residual_blocks": 1,
            **common.options,
            **OF_PHONEMES,
            "num_embeddings": entries,
            "strides": STRIDES,
        }
        window = {"window": common.window or 10_240}
        settings = replace(common, data_root=str(phonemes), steps=steps[2], options=options, **window)
        place = train(replace(settings, output=str(flags.output / "phonemes")))
        data = {"dataset": "speech", "data_root": str(phonemes), "output": f"{place}-figures"}
        print_phonemes(f"learnt codes, K {entries}", evaluate(Evaluate(tokenizer=(place,), phonemes=True, **data)))


if __name__ == "__main__":
    main()

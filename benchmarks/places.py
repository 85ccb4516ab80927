"""Three codes for a frame of a maze: do they tell where the walker stands, and which way it looks?

python -m benchmarks.places --output runs/places

Trains a tokenizer of vizdoom's frames and a second one over its codes, for `--minutes` each. A linear classifier is
fitted to the codes of the training walk and scored on another walk: the square of 160 units that the walker stands in,
and the eighth of the circle that it looks into. Beside it the share of the commonest answer, and the same classifier on
how often each code of the first tokenizer occurs in a frame. Finished parts are not computed again.
"""

import argparse
from pathlib import Path

import torch

from codegrid import CodeDataset
from codegrid.data.videos import POSITION
from codegrid.pipelines.evaluation.speaker_probe import fit_linear, histogram, with_bias
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import export_codes
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.tokenizer import train_tokenizer

from .minutes import train_for

SQUARE, SECTORS = 160, 8  # units of the maze, which its walls follow; directions
TOY = {"hidden_channels": 8, "num_embeddings": 16}
TOY_SECOND = {"channels": 8, "num_layers": 1, "num_embeddings": 16}


def read_part(folder: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return how often each code occurs in each frame, (n, V) float64 square roots of shares, and what to tell."""
    batch = (codes := CodeDataset(folder)).batch(range(len(codes)))
    frames = zip(*(grid.flatten(1) for grid in batch.codes), strict=True)
    shares = torch.stack([histogram(sites, codes.layout) for sites in frames])
    x, y, angle = torch.as_tensor(batch.columns[POSITION]).double().unbind(1)
    row, column = (y / SQUARE).floor().long(), (x / SQUARE).floor().long()
    sector = ((angle * SECTORS / 360).round() % SECTORS).long()
    return shares, {"square": 1000 * row + column, "direction": sector}


def probe(folder: Path) -> dict[str, tuple[float, float]]:
    """Return for each question the share told right on the test walk, and that of the commonest training answer."""
    (x, known), (others, wanted) = (read_part(folder / name) for name in ("codes", "codes_test"))
    found = {}
    for question, answers in known.items():
        names, labels = answers.unique(return_inverse=True)
        told = names[(with_bias(others) @ fit_linear(x, labels, len(names))).argmax(1)]
        commonest = names[labels.bincount().argmax()]
        found[question] = tuple(float((wanted[question] == each).double().mean()) for each in (told, commonest))
    return found


def export(tokenizers: tuple[str, ...], folder: Path) -> None:
    """Write the codes of both walks."""
    for split, name in (("train", "codes"), ("test", "codes_test")):
        export_codes(ExportCodes(tokenizer=tokenizers, dataset="vizdoom", split=split, output=str(folder / name)))


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/places"), help="folder of the runs")
    parser.add_argument("--minutes", type=float, nargs=2, default=(4.0, 20.0), help="of the two trainings")
    parser.add_argument("--toy", action="store_true", help="a few steps of narrow networks, to check that it runs")
    flags = parser.parse_args()
    minutes, least = ((0.0, 0.0), 12) if flags.toy else (flags.minutes, 100)
    frames, triples = flags.output / "frames", flags.output / "triples"
    first = TrainTokenizer(
        output=str(frames / "tokenizer"), dataset="vizdoom", image_size=(16,) if flags.toy else (64,), batch_size=32,
        steps=100, options=TOY if flags.toy else {"hidden_channels": 64, "num_embeddings": 256},
    )  # fmt: skip
    train_for(minutes[0], first, least, train_tokenizer)
    export((first.output,), frames)
    second = TrainTokenizer(
        output=str(triples / "tokenizer"), model="codes", over=str(frames / "codes"), batch_size=64, steps=100,
        options=TOY_SECOND if flags.toy else {},
    )  # fmt: skip
    trained = train_for(minutes[1], second, least, train_tokenizer)
    export((first.output, second.output), triples)
    print(f"second tokenizer: {trained['steps']:,} steps of 64 frames")
    print(f"{'told by':24}{'square':>10}{'direction':>12}")
    for words, folder in {"three codes": triples, "codes of the first": frames}.items():
        shares = probe(folder)
        print(f"{words:24}{shares['square'][0]:10.1%}{shares['direction'][0]:12.1%}")
    print(f"{'commonest':24}{shares['square'][1]:10.1%}{shares['direction'][1]:12.1%}")


if __name__ == "__main__":
    main()

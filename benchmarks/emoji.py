"""Emoji asked for in words: does a prior over texts draw a role in a skin tone that it has not seen together?

python -m benchmarks.emoji --data-root EMOJI --output runs/emoji
python -m benchmarks.emoji --data-root EMOJI --steps-tokenizer 6000 --steps-prior 12000 --channels 256 --num-layers 8

EMOJI holds the two packages of docs/how-to/text.md. Trains a tokenizer, a prior over texts, and three judges on real
pictures of the training part: of the category, the skin tone and the role. Prints how often a held-out picture's
own caption is the likeliest of 100, and its own tone the likeliest of those of its role; how often judges see in
samples what their prompts asked for, beside real pictures and reconstructions; and how many samples are copies.
Each judge only sees pictures whose answer is known: tones of a single person, roles of the held-out part. Leaves
prompts.png: held-out prompts, and the real picture, its reconstruction and samples of each. Finished parts are not
computed again. Training lasts for given minutes, or given steps.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from codegrid import load, load_images
from codegrid.codes import Codes
from codegrid.data.augmentation import move
from codegrid.data.code_files import open_codes
from codegrid.data.images import ImageDataset, evenly_spaced, to_float, to_uint8
from codegrid.devices import find_device
from codegrid.files import write_json
from codegrid.pipelines.drawing.blocks import Block, draw_blocks
from codegrid.pipelines.drawing.letters import in_figures
from codegrid.pipelines.evaluation import classifier as small
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import export_codes
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.generation.ranking import nats_of_texts
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.prior import train_prior
from codegrid.pipelines.training.tokenizer import train_tokenizer
from codegrid.tensors import read_json

from .minutes import train_for

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TONE = re.compile(f"({'|'.join(sorted(TONES, key=len, reverse=True))}) skin tone")
TONE_FILE = re.compile("-(1f3f[b-f]|fe0f)")  # what tells the tone in the name of a file, and a sign without meaning
VIEWS, SHIFT = 8, 2
CAPTIONS = 100  # ranked for a picture
ON_PAGE, BESIDE = 12, 4  # prompts, and samples of each
UNKNOWN = -1
Answers = dict[str, torch.Tensor]  # by judge: the class of each picture, or UNKNOWN


class Part(NamedTuple):
    """Pictures with what judges should see in them."""

    images: ImageDataset
    captions: list[str]  # the first of each
    answers: Answers


def read_parts(data_root: str, most: int | None) -> tuple[Part, Part, dict[str, list[str]]]:
    """Return the training and the held-out part, and the classes that each judge tells apart."""
    train, test = (load_images("emoji", data_root, split) for split in ("train", "test"))
    roles = sorted({_role(file) for file in test.files or ()})
    classes = {"category": list(train.classes), "tone": ["none", *TONES], "role": roles}
    parts = []
    for images in (train, test):
        chosen = evenly_spaced(len(images), most or len(images))
        batch, files = images.batch(chosen), [(images.files or [])[number] for number in chosen]
        captions = [(images.captions or [])[number] for number in chosen]
        kept = ImageDataset(batch.images, batch.labels, images.classes, files, captions=captions)
        first = [texts[0] for texts in captions]
        tones = [TONE.findall(text) for text in first]
        answers = {
            "category": batch.labels,
            "tone": torch.tensor([0 if not told else TONES.index(told[0]) + 1 if len(told) == 1 else UNKNOWN
                                  for told in tones]),
            "role": torch.tensor([roles.index(role) if (role := _role(file)) in roles else UNKNOWN for file in files]),
        }  # fmt: skip
        parts.append(Part(kept, first, answers))
    return parts[0], parts[1], classes


def _role(file: str) -> str:
    """Return the name of a picture's file without its tone: the same for all tones of a role."""
    return TONE_FILE.sub("", Path(file).name)


def train_models(flags: argparse.Namespace) -> dict[str, str]:
    """Train the tokenizer and the prior, unless this is done, and return their folders and those of the codes."""
    names = ("tokenizer", "codes", "codes_test", flags.model)
    places = {name: str(flags.output / name) for name in names}
    data: dict[str, Any] = {"dataset": "emoji", "data_root": flags.data_root}
    narrow = {"hidden_channels": 16} if flags.toy else {"hidden_channels": flags.hidden_channels}
    tokenizer = TrainTokenizer(
        **data, output=places["tokenizer"], quantizer="ema", batch_size=64, flip=True, shift=SHIFT, steps=1,
        options={"num_embeddings": flags.num_embeddings, "downsampling": flags.downsampling, **narrow},
    )  # fmt: skip
    _train(tokenizer, flags.steps_tokenizer, flags.minutes[0], train_tokenizer)
    for split, name in (("train", "codes"), ("test", "codes_test")):
        several = {"views": 2 if flags.toy else VIEWS, "shift": SHIFT} if split == "train" else {}
        export_codes(ExportCodes(**data, tokenizer=(places["tokenizer"],), split=split, output=places[name], **several))
    prior = TrainPrior(
        codes=places["codes"], validation_codes=places["codes_test"], model=flags.model, output=places[flags.model],
        batch_size=4 if flags.toy else flags.batch_size, keep=flags.keep, steps=1, text_length=48,
        ignore_labels=True,  # the categories are for judging
        options={"channels": 8 if flags.toy else flags.channels, "num_layers": 1 if flags.toy else flags.num_layers},
    )  # fmt: skip
    _train(prior, flags.steps_prior, flags.minutes[1], train_prior)
    return places


def _train(settings: Any, steps: int | None, minutes: float, train: Callable[[Any], object]) -> None:
    if steps is None:
        train_for(minutes, settings, train=train)
    else:
        train(replace(settings, steps=steps))


def train_judges(folder: Path, part: Part, classes: dict[str, list[str]]) -> dict[str, small.SmallClassifier]:
    """Return a classifier for each kind of answer, trained on real pictures at five places each, unless it is there."""
    device, judges = find_device("auto"), {}
    for name, names in classes.items():
        if not (folder / name / "config.json").exists():
            rows = (part.answers[name] != UNKNOWN).nonzero().flatten()
            images, labels = part.images.images[rows], part.answers[name][rows]
            shifts = [(0, 0), (-SHIFT, 0), (SHIFT, 0), (0, -SHIFT), (0, SHIFT)]
            stays = torch.zeros(len(images), dtype=torch.bool)
            moved = [move(images, torch.tensor(shift)[:, None].expand(2, len(images)), stays) for shift in shifts]
            shown = ImageDataset(torch.cat(moved), labels.repeat(len(shifts)), names)
            small.train_classifier(shown, 0, device).save_pretrained(folder / name)
        judges[name] = load(folder / name, device).eval()
    return judges


@torch.no_grad()
def agreement(judges: dict[str, Any], images: torch.Tensor, answers: Answers) -> dict[str, float]:
    """Return the share of pictures (n, c, H, W) uint8 in which each judge sees the right answer, of those known."""
    found = {}
    for name, judge in judges.items():
        seen = torch.cat([judge.name_classes(judge(some.to(judge.device))).cpu() for some in images.split(256)])
        known = answers[name] != UNKNOWN
        found[name] = float((seen == answers[name])[known].double().mean())
    return found


def rank(pipeline: TwoStagePipeline, part: Part, codes: Codes) -> dict[str, float]:
    """Return how well the prior knows captions: the own one's place among those of up to 100 held-out pictures.

    Also the share of pictures of a single person whose own tone is the likeliest of all five, for the same role.
    """
    rows = evenly_spaced(len(part.captions), CAPTIONS)
    some = tuple(grid[rows] for grid in codes)
    words = pipeline.conditions.given(None, [part.captions[row] for row in rows]).text
    nats = nats_of_texts(pipeline.priors, some, words)
    places = (nats < nats.diagonal()[:, None]).sum(1) + 1
    figures = {"captions": len(rows), "first": float((places == 1).double().mean()),
               "mean_rank": float(places.double().mean())}  # fmt: skip
    toned = [row for row in rows if part.answers["tone"][row] > 0]
    right = 0
    for row in toned:
        texts = [TONE.sub(f"{tone} skin tone", part.captions[row]) for tone in TONES]
        words = pipeline.conditions.given(None, texts).text
        of_one = nats_of_texts(pipeline.priors, tuple(grid[row : row + 1] for grid in codes), words)
        right += int(of_one.argmin()) == int(part.answers["tone"][row]) - 1
    return {**figures, "toned": len(toned), "own_tone_first": right / max(1, len(toned))}


def draw(
    pipeline: TwoStagePipeline, part: Part, rows: Sequence[int], each: int, scale: float
) -> tuple[torch.Tensor, Codes, Answers]:
    """Draw samples for the captions of pictures, `each` for one: images uint8, codes, and what should be seen."""
    rows = [row for row in rows for _ in range(each)]
    prompts = [part.captions[row] for row in rows]
    drawn = pipeline.sample(len(rows), seed=0, prompts=prompts, guidance_scale=scale, progress=False)
    return to_uint8(drawn.images), drawn.codes, {name: told[rows] for name, told in part.answers.items()}


def count_copies(codes: Codes, training: Any) -> dict[str, float]:
    """Return the share of samples with all codes of a training picture, and that of codes unlike the nearest one."""
    flat = _flat(codes)
    nearest = torch.full((len(flat),), flat.shape[1])
    for view in range(training.views):
        others = _flat(training.batch(range(len(training)), view).codes)
        nearest = torch.minimum(nearest, torch.stack([(others != row).sum(1).min() for row in flat]).cpu())
    return {"copies": float((nearest == 0).double().mean()), "unlike": float(nearest.double().mean() / flat.shape[1])}


def _flat(codes: Codes) -> torch.Tensor:
    return torch.cat([grid.flatten(1) for grid in codes], dim=1).to(find_device("auto"), torch.int32)


def save_page(path: Path, pipeline: TwoStagePipeline, part: Part, scale: float) -> None:
    """Draw the page of held-out prompts: of each the real picture, its reconstruction, and samples."""
    rows = evenly_spaced(len(part.captions), ON_PAGE)
    images, _, _ = draw(pipeline, part, rows, BESIDE, scale)
    real = to_float(part.images.images[rows])
    again, samples = pipeline.reconstruct(real), to_float(images).unflatten(0, (len(rows), BESIDE))
    blocks = [
        Block(
            in_figures(part.captions[row], 90), torch.cat([real[[place]], again[[place]], samples[place]]), 2 + BESIDE
        )
        for place, row in enumerate(rows)
    ]
    note = f"of each: a held-out picture, its reconstruction, and samples at guidance scale {scale:g}"
    draw_blocks([blocks[first : first + 2] for first in range(0, len(blocks), 2)], note=note).save(path, "PNG")


def kept(path: Path, models: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return figures from a file if they are of these models, or else compute and keep them."""
    if not path.exists() or read_json(path)["models"] != models:
        write_json(path, {"models": models, **compute()})
    return read_json(path)


def main() -> None:
    """Compute what is missing, then print the figures and leave the page."""
    flags = read_flags()
    train, test, classes = read_parts(flags.data_root, 40 if flags.toy else None)
    places = train_models(flags)
    judges = train_judges(flags.output / "judges", train, classes)
    pipeline = TwoStagePipeline.from_parts(places["tokenizer"], places[flags.model], find_device("auto"))
    models = [pipeline.tokenizer.fingerprint(), pipeline.priors[0].fingerprint()]
    folder = flags.output / f"{flags.model}-figures"
    folder.mkdir(exist_ok=True)
    codes = pipeline.encode(to_float(test.images.images))
    ranked = kept(folder / "ranks.json", models, lambda: rank(pipeline, test, codes))
    print(f"own caption first of {ranked['captions']}: {ranked['first']:.1%}, mean rank {ranked['mean_rank']:.1f}")
    print(f"own tone first of five, for the same role ({ranked['toned']} pictures): {ranked['own_tone_first']:.1%}\n")
    print(f"{'':34}", *(f"{name:>10}" for name in (*classes, "copies", "unlike")), sep="")
    training: Any = open_codes(places["codes"], pipeline.tokenizer)
    rows = {"held out": (test, range(len(test.captions))),
            "learnt": (train, evenly_spaced(len(train.captions), len(test.captions)))}  # fmt: skip
    for words, (part, chosen) in rows.items():
        real, answers = part.images.images[chosen], {name: told[chosen] for name, told in part.answers.items()}
        found = pipeline.encode(to_float(real))
        again = to_uint8(pipeline.reconstruct(to_float(real)))
        print_row(f"{words}: real pictures", {**agreement(judges, real, answers), **count_copies(found, training)})
        print_row(f"{words}: reconstructions", agreement(judges, again, answers))
        for scale in flags.guidance:

            def judge(part: Part = part, chosen: Any = chosen, scale: float = scale) -> dict[str, float]:
                images, drawn, wanted = draw(pipeline, part, chosen, flags.each, scale)
                return {**agreement(judges, images, wanted), **count_copies(drawn, training)}

            figures = kept(folder / f"{words.replace(' ', '-')}-{scale:g}-{flags.each}.json", models, judge)
            print_row(f"{words}: samples, scale {scale:g}", figures)
    save_page(folder / "prompts.png", pipeline, test, flags.guidance[-1])
    print(f"{folder / 'prompts.png'}: held-out prompts and samples")


def print_row(words: str, figures: dict[str, Any]) -> None:
    """Print shares in a row of the table."""
    names = ("category", "tone", "role", "copies", "unlike")
    cells = (f"{figures[name]:10.1%}" if name in figures else " " * 10 for name in names)
    print(f"{words:34}", *cells, sep="", flush=True)


def read_flags() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder of both packages, unpacked")
    parser.add_argument("--output", type=Path, default=Path("runs/emoji"), help="folder of the runs")
    parser.add_argument("--minutes", type=float, nargs=2, default=[10.0, 20.0], help="of training: tokenizer and prior")
    parser.add_argument("--steps-tokenizer", type=int, help="steps of the tokenizer, in place of minutes")
    parser.add_argument("--steps-prior", type=int, help="steps of the prior, in place of minutes")
    parser.add_argument("--model", default="transformer", choices=("transformer", "maskgit"), help="kind of prior")
    parser.add_argument("--hidden-channels", type=int, default=128, help="of the tokenizer")
    parser.add_argument("--num-embeddings", type=int, default=512, help="codes of the tokenizer")
    parser.add_argument("--downsampling", type=int, default=4, help="4: grids of 16×16 codes; 8: of 8×8")
    parser.add_argument("--channels", type=int, default=128, help="of the prior")
    parser.add_argument("--num-layers", type=int, default=6, help="of the prior")
    parser.add_argument("--batch-size", type=int, default=64, help="of the prior")
    parser.add_argument("--keep", default="best", choices=("best", "last"), help="which prior to keep, as train-prior")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0], help="guidance scales of the samples")
    parser.add_argument("--each", type=int, default=4, help="samples of a prompt that are judged")
    parser.add_argument("--toy", action="store_true", help="a few steps of narrow networks, to check that it runs")
    flags = parser.parse_args()
    if flags.toy:
        small.STEPS, flags.each, flags.guidance = 10, 1, [2.0]
        flags.steps_tokenizer, flags.steps_prior = 20, 5
    return flags


if __name__ == "__main__":
    main()

"""How far does a video stay with what really follows, and do the actions count?

python -m benchmarks.video --output runs/video

Trains a tokenizer of frames and a prior over the next frame, each for its own `--minutes`, continues test videos by ten
frames, and prints a table: PSNR and share of equal codes some frames ahead, beside a copy of the last given frame, and
under the actions of other videos. Leaves films and strips in `futures/`, under the true actions, and in `forward/` and
so on, under one action that is held. `--dataset frames --data-root FOLDER` takes videos of your own. Minutes are those
of two cores. Finished parts are not computed again.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.futures import AHEAD
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import export_codes
from codegrid.pipelines.generation.sampling import sample
from codegrid.pipelines.sample import Sample
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.tokenizer import train_tokenizer

from .minutes import train_for

ROWS = {"future": "drawn", "copied": "last frame", "shuffled": "other actions", "decoded": "real codes"}
TOY = {"hidden_channels": 8, "num_embeddings": 16}
TOY_PRIOR = {"channels": 8, "num_layers": 2, "condition_channels": 8, "condition_blocks": 1}


def write_toy_world(folder: Path, episodes: int = 4, length: int = 24) -> None:
    """Write videos of a square that actions move to the left or to the right."""
    random = np.random.default_rng(0)
    for episode in range(episodes):
        place, own = 8, folder / str(episode)
        own.mkdir(parents=True, exist_ok=True)
        actions = random.integers(0, 2, length)
        for number, action in enumerate(actions):
            picture = np.zeros((16, 16, 3), np.uint8)
            picture[6:10, place % 16] = 255
            Image.fromarray(picture).save(own / f"{number:03d}.png")
            place += 2 * int(action) - 1
        (own / "actions.csv").write_text("\n".join(["action", *(("left", "right")[action] for action in actions)]))


def main() -> None:
    """Train what is missing, print the table, and leave the films."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="vizdoom", help="vizdoom, or frames")
    parser.add_argument("--data-root", help="folder of videos, with --dataset frames")
    parser.add_argument("--output", type=Path, default=Path("runs/video"), help="folder of the runs")
    parser.add_argument("--minutes", type=float, nargs=2, default=(5.0, 15.0), help="of each training")
    parser.add_argument("--image-size", type=int, nargs="+", default=[], help="resize frames to this size")
    parser.add_argument("--downsampling", type=int, default=4, help="pixels of a code in each direction")
    parser.add_argument("--toy", action="store_true", help="a few steps on a toy world, to check that it runs")
    flags = parser.parse_args()
    out, root = flags.output, flags.data_root or ()
    if flags.toy:
        flags.dataset, root = "frames", str(out / "world")
        write_toy_world(out / "world")
    places = {"tokenizer": str(out / "tokenizer"), "prior": (str(out / "prior"),)}
    minutes, least = ((0.0, 0.0), 12) if flags.toy else (flags.minutes, 100)
    options = TOY if flags.toy else {"hidden_channels": 64, "num_embeddings": 256}
    common = TrainTokenizer(
        output=places["tokenizer"], dataset=flags.dataset, data_root=root, image_size=tuple(flags.image_size),
        batch_size=32, steps=100, options={**options, "downsampling": flags.downsampling},
    )  # fmt: skip
    train_for(minutes[0], common, least, train_tokenizer)
    for split, name in (("train", "codes"), ("test", "codes_test")):
        export_codes(ExportCodes(
            tokenizer=places["tokenizer"], dataset=flags.dataset, data_root=root, split=split, output=str(out / name)
        ))  # fmt: skip
    settings = TrainPrior(
        model="video", codes=str(out / "codes"), validation_codes=str(out / "codes_test"), output=places["prior"][0],
        tokenizer=places["tokenizer"], batch_size=32, steps=100, ema_decay=0.99, options=TOY_PRIOR if flags.toy else {},
    )  # fmt: skip
    train_for(minutes[1], settings, least)
    found = evaluate(Evaluate(**places, dataset=flags.dataset, data_root=root, output=str(out / "figures")))
    gain = f"{found['action_gain']:.4f} ± {found['action_gain_error']:.4f}"
    print(f"{found['bits_per_code']:.3f} bits per code, and {gain} more under the actions of other frames")
    heads = [f"{what}, {ahead}" for what in ("PSNR", "equal") for ahead in AHEAD]
    print(f"{'frames ahead':16}", *(f"{head:>10}" for head in heads))
    for name, words in ROWS.items():
        cells = [found.get(f"{name}_{what}_{ahead}") for what in ("psnr", "agreement") for ahead in AHEAD]
        print(f"{words:16}", *("" if cell is None else f"{cell:10.3f}" for cell in cells))
    start = {**places, "start": str(out / "codes_test")}
    sample(Sample(**start, output=str(out / "futures")))
    for action in ("0", "1") if flags.toy else ("forward", "turn left", "turn right"):
        sample(Sample(**start, actions=(action,), output=str(out / action.replace(" ", "-"))))


if __name__ == "__main__":
    main()

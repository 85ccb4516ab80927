"""Stage 2, train a prior on exported codes: `codegrid train-prior --run runs/digits`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from codegrid.errors import InputError
from codegrid.limits import MAX_STEPS, MAX_TEXT, MAX_WORDS, BatchSize, Range
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.places import PARTS, find_part, prior_of
from codegrid.pipelines.running.settings import Flag, Folder, Folders, HasCaptions, MakesViews, Training
from codegrid.registry import NameOf


@dataclass(frozen=True, kw_only=True)
class TrainPrior(HasCaptions, MakesViews, Training):
    """Stage 2: train a prior on exported codes. Writes a model folder.

    codegrid train-prior --codes runs/digits/codes --output runs/digits/prior
    """

    needs: ClassVar[tuple[str, ...]] = ("codes",)
    uses: ClassVar[tuple[str, ...]] = ("validation_codes",)
    place: ClassVar[str] = "prior"

    run: Folder | None = None
    """Folder that holds tokenizer/ or codes/; the model goes into its prior/, or with --grid N into prior-N/. If it has
    no codes/, the images that its tokenizer was trained on are encoded first, into codes/ (with --views of each) and
    codes_test/."""
    codes: Folder = ""
    """Folder of exported codes, or an .npz, .npy or .parquet file of codes and, if there are any, labels."""
    output: Folder = ""
    """Folder for the model. Run the same command again to continue a stopped run."""
    model: Annotated[str, NameOf("prior")] = "pixelcnn"
    """Kind of prior."""
    grid: Annotated[tuple[int, ...], Range(0, 999), tyro.conf.arg(metavar="N [N ...]")] = ()
    """Numbers of the grids that this prior learns, 0 for the coarsest; coarser grids are its condition. By default
    all."""
    tokenizer: Folders = ()
    """Folder of the tokenizer that made the codes, or hf:owner/name; or of several, each over the codes of the one
    before. Files that do not name it need this, so that samples can be decoded."""
    validation_codes: Folder | None = None
    """Folder or file of codes to validate on. By default a tenth of --codes is held out, or more if there are few."""
    steps: Annotated[int, Range(1, MAX_STEPS)] = 20_000
    """Optimizer steps."""
    batch_size: BatchSize = 128
    """Grids per step, over all processes together."""
    lr: Annotated[float, Range(above=0)] = 1e-3
    """Peak learning rate."""
    views_until: Annotated[float, Range(0, 1)] = 1.0
    """Share of the steps after which the prior learns from the images themselves alone, if there are several views of
    each. With 1 it learns from all views to the end, and its samples are shifted as these are."""
    weight_decay: Annotated[float, Range(0)] | None = None
    """Weight decay, as in AdamW, of the weights of linear layers and convolutions. By default that of the kind of
    prior: 0.05 for those made of transformer layers, 0 for the others."""
    ema_decay: Annotated[float, Range(above=0, below=1)] = 0.999
    """Decay of the moving average of the weights. The model that is kept is this average."""
    keep: Literal["best", "last"] = "best"
    """Average to keep. best: the one with the fewest bits per code on held-out codes; last: the one at the end, whose
    samples can be better."""
    max_norm: Annotated[float, Range(above=0)] = 1.0
    """Clip the gradient to this norm."""
    unconditional: Flag = False
    """Ignore labels and captions of the codes. Otherwise the prior is conditioned on the labels, if there are any, and
    on the captions, if there are any and this kind of prior can be asked in words."""
    ignore_captions: Flag = False
    """Ignore the captions of the codes."""
    ignore_labels: Flag = False
    """Ignore the labels of the codes."""
    num_words: Annotated[int, Range(258, MAX_WORDS)] = 1024
    """Most words that the prior knows: the pieces that are most frequent in the captions that it learns. Every byte is
    one, so that all texts can be read."""
    text_length: Annotated[int, Range(1, MAX_TEXT)] = 32
    """Most words of a text. Longer captions are cut, and longer prompts refused."""
    shard: Flag = False
    """Split the weights, and all training state that goes with them, over the processes (FSDP): for priors that do not
    fit on one GPU."""

    def __post_init__(self) -> None:
        if self.run is not None and not self.codes:
            tokenizer = self.tokenizer or find_part(self.run, "tokenizer")
            codes = find_part(self.run, "codes")
            if not tokenizer and not codes:
                raise self.lacks("tokenizer")  # which makes the codes
            object.__setattr__(self, "tokenizer", tokenizer)
            object.__setattr__(self, "codes", codes or str(Path(self.run) / PARTS["codes"]))
        if self.run is not None and not self.output:
            object.__setattr__(self, "output", str(Path(self.run) / prior_of(self.grid)))
        super().__post_init__()
        if self.shard and self.compile:
            raise InputError("`shard` splits the networks that `compile` would compile whole: give only one of them")


def main() -> None:
    """Run the command line."""
    run_command(TrainPrior, "codegrid.pipelines.training.prior:train_prior")


if __name__ == "__main__":
    main()

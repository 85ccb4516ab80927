"""Draw new images: `codegrid sample --run runs/demo --num-samples 100`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from codegrid.errors import InputError
from codegrid.limits import MAX_SIDE, MAX_STEPS, BatchSize, NumSamples, Range, Seed
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.drawing import Rejecting
from codegrid.pipelines.running.settings import Flag, Folder, Folders, Leaves, TakesPretrained


@dataclass(frozen=True, kw_only=True)
class Sample(Rejecting, TakesPretrained, Leaves):
    """Draw new codes from the prior and decode them.

    Writes samples.png, a sheet with each class below its name, and samples.npz (or several such files, or with --format
    png the folder samples/, or with --format codegrid a code dataset). With --complete they are called completions.

    codegrid sample --run runs/demo --output runs/sevens --labels 7

    codegrid sample --pretrained digits
    """

    needs: ClassVar[tuple[str, ...]] = ("tokenizer", "prior")
    place: ClassVar[str] = "samples"

    run: Folder | None = None
    """Folder that holds tokenizer/ and prior/ (or prior-0/, prior-1/, ...), for whichever is not given."""
    tokenizer: Folders = ()
    """Folder of a trained tokenizer, or hf:owner/name; or of several, each over the codes of the one before."""
    prior: Folders = ()
    """Folder of a prior trained on this tokenizer's codes, or hf:owner/name, or several of these, coarse to fine."""
    output: Folder = ""
    """Folder for the samples. By default samples/ in --run or runs/, or samples-2/ and so on. Run the same command
    again to continue a stopped run."""
    num_samples: NumSamples | None = None
    """Number of images. By default one per label if there are several labels, else 100; with --prompts 8 per prompt
    (per prompt and label if both are given), and with --complete 4 per picture. With --start the number of videos, 4 by
    default."""
    labels: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LABEL [LABEL ...]")] = ()
    """Class numbers or names, or the word none for no class: one for each sample, or one for all. If a class is called
    3 or none, write :3 for class number 3, and :none for no class. By default all classes in turn. With --prompts each
    prompt is drawn with each label, by default none. With --complete one for each picture, by default none."""
    prompts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT [TEXT ...]")] = ()
    """Texts that say what to draw, for priors that learnt captions, such as "a red heart" "a cat"; --num-samples of
    each. With --complete one for each picture, or one for all."""
    complete: Folder | None = None
    """Folder of pictures to complete: their upper rows of codes are kept, the rest is drawn."""
    keep_rows: Annotated[int, Range(1, MAX_SIDE)] | None = None
    """Rows of codes that --complete keeps, counted in the finest grid. By default half of them."""
    mask: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PICTURE|FOLDER|TOP LEFT HEIGHT WIDTH")] = ()
    """Pixels that --complete hides and draws anew, in place of lower rows: the white ones of a black and white picture,
    or of one for each picture, in a folder, called like it; or a box, in pixels of the tokenizer's images (8 8 16 16)
    or in shares of them (0.25 0.25 0.5 0.5)."""
    paste: Flag = False
    """Put the pixels that --mask leaves into the completions, with a soft seam. By default these are all decoded."""
    start: Folder | None = None
    """Videos to continue, with a prior over frames: exported codes of frames, or one video, a file or a folder of
    pictures. Writes a film (.gif, and with --format mp4 also .mp4) and a strip of stills for each, and futures.npz."""
    start_at: Annotated[tuple[int, ...], Range(0), tyro.conf.arg(metavar="N [N ...]")] = ()
    """Numbers of the frames in the codes of --start after which new ones are drawn. By default some, evenly spaced."""
    frames: Annotated[int, Range(1, MAX_STEPS)] | None = None
    """New frames of each video. By default as many as there are --actions if these are several, else 10."""
    actions: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ACTION [ACTION ...]|FILE")] = ()
    """Names or numbers of the actions that lead to the new frames, one for each or one for all, or a .txt or .csv file
    of them. By default those that follow in the codes of --start, whose frames are then shown above the drawn ones."""
    seed: Seed = 0
    """Sample i depends only on the seed and on i, whatever the batch size and the number of processes."""
    batch_size: BatchSize = 128
    """Images drawn at once, in each process."""
    format: Literal["npz", "png", "wav", "codegrid", "mp4"] | None = None
    """npz: images as arrays; png: a file for each image; wav: a file for each window of sound; codegrid: only codes, as
    a code dataset that decode-codes and train-prior read. By default npz, and wav for sound. mp4: of --start, films in
    this form, too."""
    shard_size: Annotated[int, Range(1, MAX_STEPS)] = 10_000
    """Images per .npz file; more are split over several files."""
    compile: Flag = False
    """Short for --backend compiled: compile the prior first, on a GPU into CUDA graphs. It takes up to a minute, and
    on a CPU sampling gets no faster."""

    dry_run: Flag = False
    """Print what would be drawn, and the memory for it, and stop before anything is written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start_at", "frames", "actions"):
            if getattr(self, name) and self.start is None:
                raise InputError(f"`{name}` needs `start`: give it exported codes of frames, or a folder of frames")
        for name in ("complete", "prompts", "labels", "reject_with", *["format"] * (self.format != "mp4")):
            if getattr(self, name) and self.start is not None:
                raise InputError(f"`{name}` and `start` do not go together: leave one of them out")
        if self.format == "mp4" and self.start is None:
            raise InputError("`format` mp4 needs `start`: choose another one")
        for name in ("keep_rows", "mask"):
            if getattr(self, name) and self.complete is None:
                raise InputError(f"`{name}` needs `complete`: give it a folder of pictures")
        if self.keep_rows is not None and self.mask:
            raise InputError("`keep_rows` and `mask` both say what is kept: give only one of them")
        if self.paste and (not self.mask or self.format == "codegrid"):
            needs = "a `mask`, which says what is known" if not self.mask else "images: choose another `format`"
            raise InputError(f"`paste` needs {needs}")
        if self.compile:
            if self.backend not in ("auto", "compiled"):
                raise InputError(f"`compile` means `backend` compiled, not {self.backend}: give only one of them")
            object.__setattr__(self, "backend", "compiled")


def main() -> None:
    """Run the command line."""
    run_command(Sample, "codegrid.pipelines.generation.sampling:sample")


if __name__ == "__main__":
    main()

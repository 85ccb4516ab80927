"""Settings of Razavi, van den Oord and Vinyals (arXiv 1906.00446), at the size of small pictures.

From the paper: K 512, D 64, β 0.25 and averages with a decay of 0.99 at every level, 128 hidden units and residual
blocks of 64, Adam at a constant 3e-4, batches of 128 images; a finest grid of a quarter of the image's sides, and a
coarser one of half of those; a top prior with attention, 8 heads in 4 layers, another prior without attention for the
finer grid, and a dropout of 0.1 in both.

Our own, because the paper's images are 256×256 and its priors have 20 layers of 512 channels: the steps, the sizes of
the priors, a gated PixelCNN for the finer grid, and the option that keeps the top grid in use (`finer_dropout`, at its
default). The average that was best on the codes of the test part is kept.
"""

from pathlib import Path
from typing import Any

from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.sample import Sample
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer

from .whole_run import WholeRun


def hierarchy(output: str = "runs/hierarchy", data_root: str | None = None) -> WholeRun:
    """CIFAR-10, 32×32 → 4×4 and 8×8 codes of a VQ-VAE-2, with a PixelSNAIL over the one and a PixelCNN over the other.

    `data_root` is where torchvision finds it, or downloads it to.

    Command: codegrid recipe hierarchy
    Machine, minutes and figures: not measured
    """
    place = Path(output)
    images: dict[str, Any] = {"dataset": "cifar10", "data_root": data_root}
    tokenizer, top, bottom = (str(place / name) for name in ("tokenizer", "prior-0", "prior-1"))
    codes, codes_test = str(place / "codes"), str(place / "codes_test")
    learns: dict[str, Any] = {"codes": codes, "validation_codes": codes_test, "tokenizer": (tokenizer,), "lr": 3e-4}
    return WholeRun(
        TrainTokenizer(
            **images, output=tokenizer, model="vqvae2", steps=100_000, batch_size=128, lr=3e-4, lr_schedule="constant",
            options={
                "levels": (4, 2), "num_embeddings": 512, "embedding_dim": 64, "commitment_cost": 0.25, "decay": 0.99,
                "hidden_channels": 128, "residual_channels": 64, "num_residual_blocks": 2,
            },
        ),
        ExportCodes(**images, tokenizer=(tokenizer,), output=codes),
        ExportCodes(**images, tokenizer=(tokenizer,), output=codes_test, split="test"),
        (
            TrainPrior(
                **learns, output=top, grid=(0,), model="pixelsnail", steps=50_000, batch_size=1024,
                options={
                    "channels": 128, "num_blocks": 4, "layers_per_block": 2, "num_heads": 8, "feature_dropout": 0.1,
                },
            ),
            TrainPrior(
                **learns, output=bottom, grid=(1,), steps=100_000, batch_size=512,
                options={"channels": 128, "num_layers": 15, "dropout": 0.1, "condition_channels": 128},
            ),
        ),
        Sample(tokenizer=(tokenizer,), prior=(top, bottom), output=str(place / "samples")),
        Evaluate(**images, tokenizer=(tokenizer,), prior=(top, bottom), output=str(place / "figures")),
    )  # fmt: skip

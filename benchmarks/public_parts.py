"""The usual assembly of public parts, trained by plain loops: the yardstick of `benchmarks.fidelity`.

An EMA tokenizer as in the notebooks and a masked gated PixelCNN, in float32, with constant learning rates. Only at the
end do they become models of Codegrid, so that `evaluate` judges both contenders in the same way.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from codegrid import VQVAE, CodeDataset, SequentialPrior, register
from codegrid.codes import Codes, Condition
from codegrid.data.images import to_float
from codegrid.data.sources import Images
from codegrid.drawn_priors import Steps
from codegrid.progress import progress_bar
from codegrid.protocols import NO_CONDITION
from codegrid.stage1_vqvae.notebook import NotebookNetwork
from codegrid.stage2_prior.sampling.backends import choose_backend
from codegrid.stage2_prior.sampling.sequential import PlainSteps, site_by_site

from .minutes import CORES
from .plain import PlainPrior, PlainQuantizer, PlainVQVAE

LR_TOKENIZER, LR_PRIOR = 1e-3, 3e-4  # as in the notebooks, and in public code for the prior
SAVED = 200  # steps between two states on the disk


@dataclass(frozen=True)
class PublicOptions:
    """Sizes of the masked PixelCNN."""

    channels: int = 64
    num_layers: int = 15


class PublicPrior(SequentialPrior):
    """The masked gated PixelCNN of `benchmarks.plain` as a prior of Codegrid: it has no cache to draw with."""

    options = PublicOptions

    def __init__(self, layout: Any, grids: Any = None, num_classes: int = 0, **options: Any) -> None:
        super().__init__(layout, grids, num_classes, **options)
        self.network = PlainPrior(
            self.layout[0].num_embeddings, self.chosen.channels, self.chosen.num_layers, max(1, num_classes)
        )

    def logits(self, codes: Codes, given: Condition = NO_CONDITION) -> Codes:
        """Return the logits (b, K, h, w) of codes (b, h, w)."""
        return (self.network(codes[0], self.label_rows(given, len(codes[0]))),)

    def steps(self, given: Condition, batch_size: int, backend: str = "auto") -> Steps:
        """Return steps with a forward pass for each code, of the rows down to its own."""
        choose_backend(backend, self)
        return RowsSoFar(self, given, batch_size, site_by_site(self.layout))


class RowsSoFar(PlainSteps):
    """Steps of a prior of one grid of two axes, whose passes leave out the rows below: a causal network sees none."""

    def next_logits(self) -> torch.Tensor:
        """Return the logits (b, 1, K) of the next step."""
        row, column = divmod(self.position, self.codes[0].shape[-1])
        return self.prior.logits((self.codes[0][:, : row + 1],), self.given)[0][:, None, :, row, column]


register("prior", "public", PublicPrior)


def train_for_minutes(
    model: nn.Module, lr: float, loss: Callable[[torch.Generator], torch.Tensor], minutes: float, state: Path
) -> int:
    """Take steps until the processor time of `minutes` on two cores is over; return their number. A stop costs little.

    Args:
        loss: given the noise that chooses a batch, returns its loss.
        state: file of the unfinished training.
    """
    optimizer, noise = torch.optim.Adam(model.parameters(), lr=lr), torch.Generator().manual_seed(0)
    spent, steps = 0.0, 0
    if state.exists():
        kept = torch.load(state, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        noise.set_state(kept["noise"])
        spent, steps = kept["seconds"], kept["steps"]
    before = time.process_time() - spent
    with progress_bar(None, state.stem) as bar:
        while steps < 3 or spent < 60 * CORES * minutes:
            optimizer.zero_grad()
            loss(noise).backward()
            optimizer.step()
            steps, spent = steps + 1, time.process_time() - before
            bar.update()
            if steps % SAVED == 0:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                            "noise": noise.get_state(), "seconds": spent, "steps": steps}, state)  # fmt: skip
    return steps


def train_public_tokenizer(images: Images, folder: Path, minutes: float, hidden_channels: int, dataset: str) -> int:
    """Train a tokenizer, and save it as a VQVAE; return its steps."""
    torch.manual_seed(0)
    signal, variance = images.signal, float(images.variance())
    model = PlainVQVAE(PlainQuantizer(), NotebookNetwork(hidden_channels), signal.channels, variance).train()

    def loss(noise: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(images), (32,), generator=noise)
        return model(to_float(images.batch(rows.numpy()).images))

    steps = train_for_minutes(model, LR_TOKENIZER, loss, minutes, folder.with_suffix(".pt"))
    ours = VQVAE(signal, data_variance=variance, network="notebook", hidden_channels=hidden_channels)
    for part in ("encoder", "decoder"):
        getattr(ours, part).load_state_dict(getattr(model, part).state_dict())
    ours.quantizer.codebook.copy_(model.quantizer.codebook)
    ours.provenance = {"dataset": dataset, "steps": steps}
    ours.save_pretrained(folder)
    return steps


def train_public_prior(codes: CodeDataset, folder: Path, minutes: float, small: dict[str, int]) -> int:
    """Train a masked PixelCNN on exported codes, and save it; return its steps."""
    torch.manual_seed(0)
    prior = PublicPrior(codes.layout, num_classes=len(codes.classes), **small).train()
    every = codes.batch(range(len(codes)))
    (grids,), labels = every.codes, torch.as_tensor(every.labels)

    def loss(noise: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(grids), (32,), generator=noise)
        return F.cross_entropy(prior.network(grids[rows], labels[rows]), grids[rows])

    steps = train_for_minutes(prior.network, LR_PRIOR, loss, minutes, folder.with_suffix(".pt"))
    prior.provenance = {
        "tokenizer_fingerprint": codes.header.tokenizer_fingerprint,
        "layout": [grid.as_json() for grid in codes.layout],
        "split": codes.header.split,
        "classes": list(codes.classes),
        "steps": steps,
    }
    prior.save_pretrained(folder)
    return steps

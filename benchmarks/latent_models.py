"""The contenders of `benchmarks.bound`: our VQ-VAE's networks around another bottleneck, and how they are trained.

Shapes: b batch, c channels, h w code grid, n latents a site, q codes a site, K codes to choose from, m samples.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from codegrid import load, register
from codegrid.codes import Losses, Moment, Signal
from codegrid.data.images import ImageBatch, evenly_spaced, to_float
from codegrid.data.loading import in_batches, load_batches
from codegrid.data.sources import Images
from codegrid.limits import Range, make_options
from codegrid.locks import releasing
from codegrid.model_folder import ModelFolder
from codegrid.noise import Noise
from codegrid.pipelines.running.device import channels_last, choose_compute, place, start_accelerator
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.loop import finish, open_run, train
from codegrid.pipelines.training.objective import Metrics, Pages, Player
from codegrid.pipelines.training.trainer import fused_adam, seed_torch
from codegrid.stage1_vqvae.networks import PaperNetwork
from codegrid.stage1_vqvae.options import VQVAEOptions
from codegrid.stage1_vqvae.reconstruction import RECONSTRUCTIONS

BATCH, VALIDATED = 100, 1000  # images measured at once, and while training


@dataclass(frozen=True)
class GaussianOptions(VQVAEOptions):
    """Options of the Gaussian VAE."""

    num_latents: Annotated[int, Range(1, 1024)] = 64
    """Latents at each site."""


@dataclass(frozen=True)
class CategoricalOptions(VQVAEOptions):
    """Options of the categorical VAE."""

    codes_per_site: Annotated[int, Range(1, 64)] = 10
    """Codes at each site."""
    num_categories: Annotated[int, Range(2, 2**14)] = 512
    """Codes to choose from."""
    num_samples: Annotated[int, Range(2, 1000)] = 50
    """Samples of a bound."""
    width: Annotated[int, Range(1, 4096)] = 64
    """Numbers that stand for a code."""


class LatentModel(ModelFolder, nn.Module):
    """The VQ-VAE's encoder and decoder with a likelihood, around some bottleneck."""

    kind: ClassVar[str] = "tokenizer"  # the table in which models of images stand
    options: ClassVar[type]

    def __init__(self, signal: Signal | dict[str, Any], data_variance: float, **options: Any) -> None:
        super().__init__()
        self.signal = signal if isinstance(signal, Signal) else Signal(**signal)
        self.chosen: Any = make_options(self.options, options, type(self).__name__)
        self.config = {"signal": self.signal.as_json(), "data_variance": data_variance, **asdict(self.chosen)}
        self.provenance: dict[str, Any] = {}
        self.likelihood: Any = RECONSTRUCTIONS[self.chosen.reconstruction](self.signal.channels, data_variance)
        wide, narrow = self.channels()
        network = PaperNetwork(self.chosen.hidden_channels)
        self.encoder = network.encoder(self.signal.channels, wide, self.chosen.downsampling)
        self.decoder = network.decoder(narrow, self.likelihood.outputs, self.chosen.downsampling)

    def channels(self) -> tuple[int, int]:
        """Channels of the encoder's outputs, and of the decoder's inputs."""
        raise NotImplementedError

    @torch.no_grad()
    def measure(self, x: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats (b,) of the latents and of the images given them, whose sum is a bound."""
        raise NotImplementedError

    @property
    def dimensions(self) -> int:
        """Values of an image."""
        return math.prod(self.signal.shape)


class GaussianVAE(LatentModel):
    """A VAE (Kingma, Welling 2014) with a diagonal Gaussian posterior and a standard normal prior."""

    options = GaussianOptions

    def channels(self) -> tuple[int, int]:
        return 2 * self.chosen.num_latents, self.chosen.num_latents

    def forward(self, x: torch.Tensor, moment: Moment) -> Losses:
        """Nats per value of the two parts of −ELBO, with one sample of each image."""
        rate, distortion = self._parts(x, moment.noise)
        parts = {"reconstruction_loss": distortion, "kl_loss": rate}
        return Losses({name: part.mean() / self.dimensions for name, part in parts.items()}, {})

    @torch.no_grad()
    def measure(self, x: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, torch.Tensor]:
        return self._parts(x, noise)

    def _parts(self, x: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, torch.Tensor]:
        means, log_variances = self.encoder(x).float().chunk(2, dim=1)
        log_variances = log_variances.clamp(-20, 20)
        drawn = means + (log_variances / 2).exp() * noise.normals("latents", *means.shape[1:]).float()
        divergence = (means.square() + log_variances.exp() - 1 - log_variances) / 2  # KL(q ‖ N(0, 1))
        return divergence.flatten(1).sum(1), self.likelihood.nll(self.decoder(drawn), x)


class CategoricalVAE(LatentModel):
    """Categorical latents learnt by VIMCO (Mnih, Rezende 2016), with a uniform prior.

    f_j = p(x, h_j) / q(h_j | x);   L = log (1/m) Σ_j f_j;   ∇L = Σ_j (L − L_{−j}) ∇log q(h_j | x) + Σ_j w_j ∇log f_j

    with w_j = f_j / Σ f, and L_{−j} as L, but with the geometric mean of the other f in the place of f_j.
    """

    options = CategoricalOptions

    def channels(self) -> tuple[int, int]:
        chosen = self.chosen
        return chosen.codes_per_site * chosen.num_categories, chosen.width

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.vectors = nn.Embedding(self.channels()[0], self.chosen.width)

    def forward(self, x: torch.Tensor, moment: Moment) -> Losses:
        """Minus what has the gradient above, per value."""
        log_f, log_q, _ = self._draw(x, moment.noise)
        bound, gain = vimco(log_f)
        surrogate = (bound + (gain * log_q).sum(1)).mean() / self.dimensions
        nats = -bound.detach().mean() / self.dimensions
        return Losses({"bound_loss": -surrogate}, {"bits_per_dim": nats / math.log(2)})

    @torch.no_grad()
    def measure(self, x: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, torch.Tensor]:
        log_f, _, nats = self._draw(x, noise)
        distortion = (log_f.softmax(1) * nats).sum(1)
        return -vimco(log_f)[0] - distortion, distortion

    def _draw(self, x: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """log f, log q(h | x) and −log p(x | h), (b, m) each."""
        q, k, m = self.chosen.codes_per_site, self.chosen.num_categories, self.chosen.num_samples
        logits = self.encoder(x).float().unflatten(1, (q, k)).movedim(2, -1).log_softmax(-1)  # (b, q, h, w, K)
        sites = logits.shape[1:4]
        below = logits.detach().exp().cumsum(-1)
        uniforms = noise.uniforms("codes", *sites, m).float() * below[..., -1:]
        codes = torch.searchsorted(below, uniforms, right=True).clamp(max=k - 1)  # (b, q, h, w, m)
        log_q = logits.gather(-1, codes).flatten(1, 3).sum(1)
        rows = codes + k * torch.arange(q, device=x.device).view(q, 1, 1, 1)
        latents = self.vectors(rows.movedim(-1, 1).flatten(0, 1)).sum(1).movedim(-1, 1)  # (b·m, width, h, w)
        again = x.repeat_interleave(m, 0)
        nats = self.likelihood.nll(self.decoder(latents), again).view(-1, m)
        return -nats - math.prod(sites) * math.log(k) - log_q, log_q, nats


def vimco(log_f: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log f (b, m) → the bound L (b,), with gradient, and each sample's gain L − L_{−j} (b, m), without."""
    m = log_f.shape[1]
    bound = log_f.logsumexp(1) - math.log(m)
    with torch.no_grad():
        others = (log_f.sum(1, keepdim=True) - log_f) / (m - 1)
        replaced = torch.where(torch.eye(m, dtype=torch.bool, device=log_f.device), others[:, :, None], log_f[:, None])
        gain = bound[:, None] - (replaced.logsumexp(2) - math.log(m))
    return bound, gain


MODELS = {"gaussian-vae": GaussianVAE, "categorical-vae": CategoricalVAE}


class BoundObjective:
    """A latent model's own losses, for the training loop."""

    items, criterion, keep_best = "images", "bits_per_dim", False

    def __init__(self, model: LatentModel, images: Images, validation: Images, settings: TrainTokenizer) -> None:
        self.model, self.dataset, self.validation = model, images, validation
        self.num_workers, self.buffers = settings.num_workers, dict[str, torch.Tensor]()
        self.players = {"model": Player(model, fused_adam, settings.lr)}

    def losses(self, player: str, wrapped: nn.Module, batch: ImageBatch, moment: Moment) -> Losses:
        return wrapped(channels_last(to_float(batch.images.to(self.model.device))), moment)

    def after_step(self, step: int, seed: int) -> None:
        pass

    def validate(self) -> dict[str, Any]:
        rate, distortion = measure(self.model, self.validation, evenly_spaced(len(self.validation), VALIDATED))
        return {"bits_per_dim": rate + distortion, "rate": rate, "distortion": distortion}

    def draw(self) -> Pages:
        return {}

    def save(self, folder: Path, history: list[Metrics]) -> None:
        self.model.provenance |= {"step": history[-1]["step"], "history": history}
        self.model.save_pretrained(folder)


@torch.no_grad()
def measure(model: LatentModel, images: Images, chosen: Sequence[int]) -> tuple[float, float]:
    """Return rate and distortion in bits per value, means over some images."""
    sums, first = torch.zeros(2, dtype=torch.float64), 0
    for batch in load_batches(images, in_batches(chosen, BATCH)):
        x = to_float(batch.images.to(model.device))
        parts = model.measure(x, Noise(0, first, len(x), model.device))
        sums += torch.stack([part.double().sum().cpu() for part in parts])
        first += len(x)
    rate, distortion = (sums / first / model.dimensions / math.log(2)).tolist()
    return rate, distortion


@releasing()
def train_latent_model(settings: TrainTokenizer, images: Images, validation: Images) -> LatentModel:
    """Train one of `MODELS`, `settings.model`, as a tokenizer is trained, or go on with it, and load it."""
    for name, kind in MODELS.items():
        register("tokenizer", name, kind)
    accelerator = start_accelerator(settings)
    compute = choose_compute(settings, accelerator.device)
    run = open_run(settings, compute, accelerator, None, data=images.fingerprint())
    if not run.finished:
        seed_torch(settings.seed, "weights")
        made = MODELS[settings.model](images.signal, images.variance(), **settings.options)
        model = place(made, accelerator.device)
        objective = BoundObjective(model, images, validation, settings)
        objective.save(run.folder, train(objective, settings, compute, run, accelerator))
        finish(run)
    return load(run.folder, accelerator.device)

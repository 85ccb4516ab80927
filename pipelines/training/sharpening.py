"""Training for sharp pictures: a perceptual distance, and a discriminator as the second player (VQ-GAN).

    L = L_tokenizer + w_p · perceptual(x̂, x) + w · ramp(t) · λ · L_adversarial(D(x̂))
    λ = ‖∇_W (L_reconstruction + w_p · perceptual)‖ / ‖∇_W L_adversarial‖,   W the weights of the decoder's last layer

The gradient of each term at the image x̂ is computed by itself; from there on, one backward pass is that of all terms.
So λ costs no further pass through a network: the two gradients of W follow from those at x̂. It is computed from the
sums over all pieces and processes, and therefore used one step later.

Shapes: b batch, c channels, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from codegrid.codes import Losses, Moment
from codegrid.data.images import to_float
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.pipelines.evaluation.perceptual import PERCEPTUAL, Perceptual
from codegrid.pipelines.evaluation.reconstruction import Reconstruction
from codegrid.pipelines.running.device import channels_last, place
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.protocols import Tokenizer
from codegrid.stage1_vqvae.diff_augment import diff_augment
from codegrid.stage1_vqvae.discriminator import ADVERSARIAL_LOSSES, PatchDiscriminator, lecam_loss
from codegrid.stage1_vqvae.quantizers.collective import all_gather

from .objective import Player
from .trainer import UncompiledAdam, seed_torch

DISCRIMINATOR = "discriminator"  # the player
ADVERSARIAL = "adversarial"  # in the provenance of a tokenizer
BETAS = (0.5, 0.9)  # of its Adam, as in VQ-GAN: the other player changes what it has to learn
EPSILON = 1e-6
LECAM_DECAY = 0.99


class Schedule(NamedTuple):
    """Steps at which the discriminator begins to learn, and at which the tokenizer begins to listen to it."""

    start: int
    warmup: int  # steps in which it learns alone, and then as many in which its weight grows

    @property
    def joins(self) -> int:
        """The first step at which the tokenizer's loss has the term, with a weight of 0."""
        return self.start + self.warmup

    def ramp(self, step: int) -> float:
        """Return the factor of the weight, 0 ... 1."""
        return min(1.0, max(0.0, (step - self.joins) / max(1, self.warmup)))


class Sharpening:
    """The perceptual term and the adversarial one, and the discriminator behind it.

    Args:
        tokenizer: a tokenizer of images, on its device; its provenance records what it is trained by.
        settings: of the run.
        perceptual: the network, if `perceptual_weight` is above 0.

    Raises `InputError` if the tokenizer does not name its `last_layer`, or images are too small for the discriminator.
    """

    def __init__(self, tokenizer: Tokenizer, settings: TrainTokenizer, perceptual: Perceptual | None) -> None:
        self.tokenizer, self.settings, self.perceptual = tokenizer, settings, perceptual
        self.schedule = schedule_of(settings)
        self.players: dict[str, Player] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        self.loss = ADVERSARIAL_LOSSES[settings.adversarial_loss]
        # real and reconstructed images of a piece, and the noise that changes both
        self._pair: tuple[torch.Tensor, torch.Tensor, Noise] | None = None
        self._gradients: list[torch.Tensor] = []  # of W by both terms, (2, *W) for each piece
        self._logits: list[torch.Tensor] = []  # means of real and reconstructed, (2,) for each piece
        if perceptual is not None:
            tokenizer.provenance[PERCEPTUAL] = {**perceptual.description, "weight": settings.perceptual_weight}
        if self.schedule is not None:
            self._add_discriminator()

    def _add_discriminator(self) -> None:
        settings, device = self.settings, torch.device(self.tokenizer.device)
        self.last_layer = getattr(self.tokenizer, "last_layer", None)
        if self.last_layer is None and not settings.fixed_weight:
            words = "has no `last_layer`, whose gradients are compared"
            raise InputError(f"`adversarial_weight`: this tokenizer {words}: give it one, or give `fixed_weight`")
        channels, *size = self.tokenizer.signal.shape
        seed_torch(settings.seed, "weights", DISCRIMINATOR)
        network = PatchDiscriminator(
            channels, tuple(size), settings.discriminator_channels, settings.discriminator_layers
        )
        assert self.schedule is not None
        self.players[DISCRIMINATOR] = Player(
            place(network, device), _make_adam, settings.discriminator_lr, first_step=self.schedule.start
        )
        if not settings.fixed_weight:
            self.buffers["adaptive_weight"] = torch.zeros((), device=device)
        if settings.lecam_weight:
            self.buffers["mean_logits"] = torch.zeros(2, device=device)
        self.tokenizer.provenance[ADVERSARIAL] = {
            "loss": settings.adversarial_loss, "weight": settings.adversarial_weight, "start": self.schedule.start,
            "layers": network.num_layers, "diff_augment": list(settings.diff_augment),
        }  # fmt: skip

    def compilable(self) -> list[nn.Module]:
        """Return the parts of the tokenizer that can be compiled.

        That with the last layer cannot, if gradients are compared there: compiled, it computes all of its gradients or
        none.
        """
        module, quantizer = cast(nn.Module, self.tokenizer), cast(nn.Module, self.tokenizer.quantizer)
        parts = [
            part
            for child in module.children()
            if child is not quantizer
            for part in (child if isinstance(child, nn.ModuleList) else [child])
        ]
        if "adaptive_weight" not in self.buffers:
            return parts
        return [part for part in parts if all(layer is not self.last_layer for layer in part.modules())]

    def add(self, losses: Losses, output: torch.Tensor, x: torch.Tensor, moment: Moment) -> Losses:
        """Return the tokenizer's losses with the terms of sharpness.

        Args:
            losses: its own, with `reconstruction_loss`.
            output: reconstructions (b, c, H, W), with gradient.
            x: images (b, c, H, W) in [-1, 1].
            moment: of the piece.
        """
        output = output.float()
        image = output.detach().requires_grad_()
        terms, figures = dict(losses.terms), dict(losses.figures)
        of_distance = torch.zeros_like(image)
        if self.perceptual is not None:
            distance = self.settings.perceptual_weight * self.perceptual(in_range(image), x).mean()
            of_distance = _gradient(distance, image)
            terms["perceptual_loss"] = KnownGradient.apply(output, distance.detach(), of_distance)
        if self.schedule is None or moment.step < self.schedule.start:
            return Losses(terms, figures)
        self._pair = x, in_range(image.detach()), moment.noise
        if moment.step >= self.schedule.joins:
            shown = self._change(in_range(image), moment.noise)
            logits = self.players[DISCRIMINATOR].module(shown).float()
            displeasure = self.loss.of_tokenizer(logits)
            of_displeasure = _gradient(displeasure, image)
            weight = torch.tensor(self.settings.adversarial_weight * self.schedule.ramp(moment.step))
            if "adaptive_weight" in self.buffers:
                self._compare(terms["reconstruction_loss"], output, of_distance, of_displeasure)
                figures["adaptive_weight"] = self.buffers["adaptive_weight"].clone()
                weight = weight * figures["adaptive_weight"]
            terms["adversarial_loss"] = KnownGradient.apply(
                output, weight * displeasure.detach(), weight * of_displeasure
            )
        return Losses(terms, figures)

    def _compare(
        self, reconstruction: torch.Tensor, output: torch.Tensor, perceptual: torch.Tensor, adversarial: torch.Tensor
    ) -> None:
        """Note the gradients of W by what the image should be, and by what the discriminator says."""
        last = cast(torch.Tensor, self.last_layer.weight)  # type: ignore[union-attr]
        with torch.autocast(output.device.type, enabled=False):
            ones = torch.ones_like(reconstruction)
            (wanted,) = torch.autograd.grad([reconstruction, output], last, [ones, perceptual], retain_graph=True)
            (judged,) = torch.autograd.grad(output, last, adversarial, retain_graph=True)
        self._gradients.append(torch.stack([wanted, judged]).detach())

    def _change(self, images: torch.Tensor, noise: Noise) -> torch.Tensor:
        """Return images as the discriminator sees them."""
        return diff_augment(images, self.settings.diff_augment, noise)

    def watch(self, distances: list[torch.Tensor]) -> Callable[[Reconstruction], None]:
        """Return a function that adds the perceptual distances (b,) of reconstructions to a list, if there are any."""

        def add(batch: Reconstruction) -> None:
            if self.perceptual is not None:
                distances.append(self.perceptual(in_range(batch.output), to_float(batch.images)).cpu())

        return add

    def judge(self, wrapped: nn.Module) -> Losses:
        """Return the discriminator's losses for the piece that the tokenizer has just reconstructed."""
        assert self._pair is not None
        (real, drawn, noise), self._pair = self._pair, None
        real, drawn = (self._change(images, noise) for images in (real, drawn))  # both in the same way
        # in one pass: several processes must not begin a second one before the gradient of the first
        of_real, of_drawn = wrapped(channels_last(torch.cat([real, drawn]))).float().split(len(real))
        terms = {"adversarial_loss": self.loss.of_discriminator(of_real, of_drawn)}
        means = torch.stack([of_real.detach().mean(), of_drawn.detach().mean()])
        if "mean_logits" in self.buffers:
            self._logits.append(means)
            penalty = lecam_loss(of_real, of_drawn, *self.buffers["mean_logits"])
            terms["lecam_loss"] = self.settings.lecam_weight * penalty
        return Losses(terms, {"real_logit": means[0], "reconstructed_logit": means[1]})

    def after_step(self, step: int) -> None:
        """Compute the adaptive weight and the mean logits for the next step, from all pieces and processes."""
        if self._gradients:
            wanted, judged = _joint_mean(self._gradients).flatten(1).norm(dim=1)
            weight = (wanted / (judged + EPSILON)).clamp(max=self.settings.max_adaptive_weight)
            self.buffers["adaptive_weight"].copy_(weight)
        if self._logits and self.schedule is not None:
            seen = step - self.schedule.start  # the average of the first steps is the mean of them all
            self.buffers["mean_logits"].lerp_(_joint_mean(self._logits), max(1 - LECAM_DECAY, 1 / (1 + seen)))
        self._gradients, self._logits = [], []


class KnownGradient(torch.autograd.Function):
    """A value () whose gradient at the image is known: the backward pass begins there."""

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the value."""
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient, times that of the value."""
        return outer[0] * ctx.saved_tensors[0], None, None


def in_range(images: torch.Tensor) -> torch.Tensor:
    """Return reconstructions in the range of images, [-1, 1]: values beyond would give them away."""
    return images.clamp(-1, 1)


def schedule_of(settings: TrainTokenizer) -> Schedule | None:
    """Return when the discriminator takes part, with defaults filled in; None if it never does."""
    if not settings.adversarial_weight:
        return None
    return Schedule(*settings.discriminator_steps(settings.steps))


def _gradient(value: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the gradient (b, c, H, W) of a value () at images; what it was computed from is freed."""
    with torch.autocast(images.device.type, enabled=False):
        return torch.autograd.grad(value, images)[0].float()


def _joint_mean(of_pieces: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over the pieces and processes."""
    return all_gather(torch.stack(of_pieces).mean(0)).mean(0)


def _make_adam(parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    return UncompiledAdam(parameters, fused=True, betas=BETAS)

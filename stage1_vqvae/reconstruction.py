"""Reconstruction terms by name: how the outputs of a decoder are compared with images.

`mse` and `l1` measure how far an image is off. The others are likelihoods of the 8-bit image: the
decoder gives a distribution for each value, cut into the 256 values a pixel can have, so their probabilities sum to 1.
What is trained is then what `nll` reports, in nats.

Each term is a mean over all values of an image. Mean squared error over variance is twice the nats per value of a
Gaussian as wide as the data, up to a constant, so apart from this factor, β weighs against a likelihood as it does
against `mse`, as long as the decoder knows nothing. As its scales fall, the likelihood's pull grows.

Shapes: b batch, c image channels, H W image, n decoder channels.
"""

import math

import torch
import torch.nn.functional as F

from codegrid.devices import widest
from codegrid.padding import counted, mean_of_counted

from .mu_law import CLASSES, from_classes, to_classes

SPECTRAL_WINDOWS, SPECTRAL_FLOOR = (256, 512, 1024), 1e-4  # samples; power, of the data's
STEPS = 4  # from a window to the next
LEVELS = 255  # the largest 8-bit value
MARGIN = 0.1  # ε of the logit-Laplace: [0, 1] is drawn in to [ε, 1 − ε]
# log scales: of a logistic in grey levels, of a Laplace in logits; sharper ones gain nothing, and punish surprises
LOGISTIC_RANGE, LAPLACE_RANGE = (math.log(0.1), math.log(1000)), (-7.0, 7.0)


class ReconstructionTerm:
    """How a decoder's outputs become a loss and an image.

    Args:
        channels: c.
        data_variance: of the training images, in the range [-1, 1].
    """

    def __init__(self, channels: int, data_variance: float) -> None:
        self.channels, self.data_variance = channels, data_variance

    @property
    def outputs(self) -> int:
        """The channels n that the decoder needs."""
        return self.channels

    def loss(self, outputs: torch.Tensor, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Return the term to minimise () for outputs (b, n, H, W) and images (b, c, H, W) in [-1, 1].

        Given `lengths` (b,) of sound (b, 1, T), what follows them does not count.
        """
        raise NotImplementedError

    def image(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the image (b, c, H, W), about in [-1, 1], that outputs (b, n, H, W) stand for."""
        return outputs


class SquaredError(ReconstructionTerm):
    """‖x − x̂‖² over the variance of the data."""

    def loss(self, outputs: torch.Tensor, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean over all values, as `ReconstructionTerm.loss`."""
        return mean_of_counted(F.mse_loss(outputs, x, reduction="none"), lengths) / self.data_variance


class AbsoluteError(ReconstructionTerm):
    """|x − x̂| over the standard deviation of the data."""

    def loss(self, outputs: torch.Tensor, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean over all values, as `ReconstructionTerm.loss`."""
        return mean_of_counted(F.l1_loss(outputs, x, reduction="none"), lengths) / math.sqrt(self.data_variance)


class PixelLikelihood(ReconstructionTerm):
    """A distribution of 8-bit images. What lies between two of their 256 values is rounded."""

    def nats(self, outputs: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return −log p (b, c, H, W) of each value, in float32 at least, of outputs and images as in `loss`."""
        raise NotImplementedError

    def loss(self, outputs: torch.Tensor, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean nats of a value, as `ReconstructionTerm.loss`."""
        return mean_of_counted(self.nats(outputs, x), lengths)

    def nll(self, outputs: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the nats (b,) of each image, of outputs and images as in `loss`."""
        return self.nats(outputs, x).to(widest(x.device)).flatten(1).sum(1)


class DiscretizedLogistic(PixelLikelihood):
    """A logistic distribution around each value (Salimans et al. 2017, PixelCNN++, with a single component).

    The outputs are the means, of which the image is made, and the log scales. Given the codes, a pixel's channels are
    independent.
    """

    @property
    def outputs(self) -> int:
        """Means and log scales."""
        return 2 * self.channels

    def image(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the means, as `ReconstructionTerm.image`."""
        return outputs[:, : self.channels]

    def nats(self, outputs: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return −log p of each value, as `PixelLikelihood.nats`."""
        values, c = to_values(x), self.channels
        means, log_scales, others = _exact(outputs).split([c, c, self.outputs - 2 * c], dim=1)
        # at 0 the scale is that of a logistic as wide as the data
        at_start = math.log(math.sqrt(3 * self.data_variance) / math.pi * LEVELS / 2)
        scales = _scales(log_scales + at_start, *LOGISTIC_RANGE)
        errors = self.unexplained(values.to(means.dtype) - (means + 1) * (LEVELS / 2), others)
        return logistic_nats(errors, scales, values == 0, values == LEVELS)

    def unexplained(self, errors: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Return what the other outputs (b, n - 2c, H, W) leave of the errors of the means (b, c, H, W)."""
        return errors


class CoupledLogistic(DiscretizedLogistic):
    """Logistic distributions in which each channel of a pixel knows the errors of those before it (PixelCNN++).

        p(x) = Π_i p(x_i | x_<i),   each around μ_i + Σ_{j<i} a_ij (x_j − μ_j)

    A pixel's red, green and blue mostly err together, so the second and the third error cost little once the first is
    known. Training has less reason to lower these common errors than with independent channels: the bits are fewer, the
    image is further off.

    The outputs are the means, of which the image is made, the log scales, and the coefficients a of each pair.
    """

    @property
    def outputs(self) -> int:
        """Means, log scales, and c (c − 1) / 2 coefficients."""
        return 2 * self.channels + self.channels * (self.channels - 1) // 2

    def unexplained(self, errors: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Return the errors (b, c, H, W) less what those of the channels before explain."""
        rows, coefficients = list(errors.unbind(1)), list(others.unbind(1))
        for channel in range(1, self.channels):
            for earlier in range(channel):
                rows[channel] = rows[channel] - coefficients.pop(0) * errors[:, earlier]
        return torch.stack(rows, dim=1)


class LogitLaplace(PixelLikelihood):
    """A Laplace distribution of logit(ε + (1 − 2ε) x), x in [0, 1] (Ramesh et al. 2021, appendix A.3).

    There it is a density, which can grow beyond all bounds at the 256 values. Here it is the probability of the bin
    around each value. Where bins are narrow, the nats differ from those of the density by the log of a bin's width.

    The outputs are the medians of the logits, of which the image is made, and their log scales.
    """

    @property
    def outputs(self) -> int:
        """Medians and log scales."""
        return 2 * self.channels

    def image(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the medians, as `ReconstructionTerm.image`."""
        return (2 * torch.sigmoid(outputs[:, : self.channels]) - 1) / (1 - 2 * MARGIN)

    def nats(self, outputs: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return −log p of each value, as `PixelLikelihood.nats`."""
        values = to_values(x)
        medians, log_scales = _exact(outputs).chunk(2, dim=1)
        scales = _scales(log_scales, *LAPLACE_RANGE)
        steps = torch.arange(LEVELS + 2, dtype=widest(x.device), device=x.device)
        ends = torch.logit(MARGIN + (1 - 2 * MARGIN) * (steps - 0.5) / LEVELS)  # of the 256 bins
        # not from the ends below: their difference would be lost beside a median that is far away
        width = ends.diff()[values].to(scales.dtype) / scales
        low, high = ((ends[values + side].to(medians.dtype) - medians) / scales for side in (0, 1))
        return laplace_nats(
            low.masked_fill(values == 0, -torch.inf), high.masked_fill(values == LEVELS, torch.inf), width
        )


class MuLaw(ReconstructionTerm):
    """A categorical distribution of the 256 µ-law classes of each value, as of sound.

    The outputs are the logits of the classes; the image is the mean.
    """

    @property
    def outputs(self) -> int:
        """Logits."""
        return CLASSES * self.channels

    def loss(self, outputs: torch.Tensor, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean nats of a value, as `ReconstructionTerm.loss`."""
        nats = F.cross_entropy(_exact(self._logits(outputs)), to_classes(x), reduction="none")
        return mean_of_counted(nats, lengths)

    def image(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the mean, as `ReconstructionTerm.image`."""
        values = from_classes(torch.arange(CLASSES, device=outputs.device)).to(outputs.dtype)
        return torch.einsum("bk...,k->b...", self._logits(outputs).softmax(1), values)

    def _logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the logits (b, 256, c, *size)."""
        return outputs.unflatten(1, (CLASSES, self.channels))


class SpectralDistance(AbsoluteError):
    """The absolute error, and the distance of spectrograms of several resolutions (Yamamoto et al. 2020, 1910.11480).

        |x − x̂| / σ + mean over windows of ‖S − Ŝ‖ / ‖S‖ + |ln S − ln Ŝ|

    S are the magnitudes of the spectra of x. A wave that is a little late is far off, but sounds the same, and its
    spectra are nearly equal. The spectra are those of the last axis.
    """

    def loss(self, outputs: torch.Tensor, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Return the sum of both, as `ReconstructionTerm.loss`."""
        total = super().loss(outputs, x, lengths)
        if lengths is not None:
            outputs = outputs * counted(lengths, x.shape[-1])[:, None]
        waves, targets = _exact(outputs).flatten(0, -2), _exact(x).flatten(0, -2)
        for window in SPECTRAL_WINDOWS:
            found, wanted = (self._magnitudes(each, window) for each in (waves, targets))
            if lengths is not None:  # as many times as of a wave of this length
                kept = counted(lengths // (window // STEPS) + 1, found.shape[-1])
                found, wanted = found.mT[kept], wanted.mT[kept]
            total = total + ((found - wanted).norm() / wanted.norm() + F.l1_loss(found.log(), wanted.log())) / len(
                SPECTRAL_WINDOWS
            )
        return total

    def _magnitudes(self, waves: torch.Tensor, window: int) -> torch.Tensor:
        """Return the magnitudes (n, frequencies, times) of the spectra of waves (n, T)."""
        shape = torch.hann_window(window, dtype=waves.dtype, device=waves.device)
        # a floor far below what can be heard: near 0 the logarithm would count silence most
        floor = SPECTRAL_FLOOR * self.data_variance * float(shape.square().sum())
        spectra = torch.stft(waves, window, window // STEPS, window=shape, pad_mode="constant", return_complex=True)
        return (spectra.real.square() + spectra.imag.square() + floor).sqrt()


RECONSTRUCTIONS: dict[str, type[ReconstructionTerm]] = {
    "mse": SquaredError,
    "l1": AbsoluteError,
    "logistic": DiscretizedLogistic,
    "coupled-logistic": CoupledLogistic,
    "logit-laplace": LogitLaplace,
    "mu-law": MuLaw,
    "spectral": SpectralDistance,
}


def to_values(x: torch.Tensor) -> torch.Tensor:
    """Return the 8-bit values 0 ... 255, int64, of images in [-1, 1]."""
    return ((_exact(x) + 1) * (LEVELS / 2)).round().clamp(0, LEVELS).long()


def logistic_nats(
    errors: torch.Tensor, scales: torch.Tensor, is_lowest: torch.Tensor, is_highest: torch.Tensor
) -> torch.Tensor:
    """Return −log p of 8-bit values x under a logistic distribution around μ.

        p = σ((x + ½ − μ) / s) − σ((x − ½ − μ) / s),   σ(∞) = 1 for x = 255,   σ(−∞) = 0 for x = 0

    Args:
        errors: x − μ, in grey levels.
        scales: s, in grey levels; broadcast against the errors.
        is_lowest, is_highest: whether x is 0, whether it is 255: the bins that are open.
    """
    # σ(a) − σ(b) = σ(a) σ(−b) (1 − exp(b − a)), and a − b = 1 / s: no small difference of large numbers
    below = torch.where(is_highest, 0.0, F.logsigmoid((errors + 0.5) / scales))
    above = torch.where(is_lowest, 0.0, F.logsigmoid((0.5 - errors) / scales))
    width = torch.where(is_lowest | is_highest, 0.0, torch.log(-torch.expm1(-1 / scales)))
    return -(below + above + width)


def laplace_nats(low: torch.Tensor, high: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Return −log p of bins under a Laplace distribution.

    Args:
        low, high: ends of the bins, as distances from the median, in scales; infinite where a bin is open.
        width: from the one to the other; it does not matter where a bin is open.
    """
    is_open = low.isinf() | high.isinf()
    beyond = torch.maximum(low, -high)  # from the median to a bin that does not hold it
    share = torch.where(is_open, 0.0, torch.log(-torch.expm1(-width)))
    outside = math.log(2) + beyond - share
    # 1 − ½ exp(−high) − ½ exp(low)
    inside = -torch.log(-0.5 * (torch.expm1(low.clamp(max=0)) + torch.expm1(-high.clamp(min=0))))
    return torch.where(beyond > 0, outside, inside)


def _scales(logs: torch.Tensor, least: float, largest: float) -> torch.Tensor:
    """Return scales of logs in a range. Near its lower end they still have a gradient, by which they can grow again."""
    return (least + F.softplus(logs - least)).clamp(max=largest).exp()


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    # under autocast, and in models of half precision, the outputs have too few digits for sums of logarithms
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

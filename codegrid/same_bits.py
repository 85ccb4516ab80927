"""Convolutions and linear layers whose results have the same bits on every processor, and in any batch.

Their inputs and weights are rounded to whole numbers so small that float64 adds up the products exactly: then it does
not matter in which order that happens. The results are about as exact as float32's.

Shapes: b batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

EXACT_BITS = 52  # of a whole number in float64
BIAS = 1023  # of the exponent of a float64
TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
# sums and functions whose bits depend on the processor, by name
INEXACT = {
    "batch_norm", "bmm", "cos", "einsum", "elu", "exp", "gelu", "group_norm", "instance_norm", "layer_norm", "log",
    "log_softmax", "matmul", "mean", "mish", "mm", "norm", "normalize", "rms_norm", "rsqrt",
    "scaled_dot_product_attention", "sigmoid", "silu", "sin", "softmax", "softplus", "sum", "tanh",
}  # fmt: skip
COMPUTED = {torch.conv1d, torch.conv2d, torch.conv3d, F.linear, *TRANSPOSED}


class SameBits(TorchFunctionMode):
    """A context in which convolutions and linear layers in float32 on a CPU have the same bits on every machine.

    Everything that only adds, multiplies, compares or moves numbers one by one has the same bits anyway. Other sums,
    as in attention and normalization, and functions such as exp do not: `holds` tells whether there were none.

    Examples:
        >>> layer, x = torch.nn.Conv2d(3, 8, 3), torch.randn(2, 3, 5, 5)
        >>> with torch.no_grad(), SameBits():
        ...     both, first = layer(x), layer(x[:1])
        >>> torch.equal(both[:1], first)
        True
    """

    holds = True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute a layer exactly, if it is one, and everything else as ever."""
        if func in COMPUTED and args[0].device.type == "cpu" and args[0].dtype == torch.float32:
            return _compute(func, *args, **(kwargs or {}))
        self.holds = self.holds and func not in COMPUTED and getattr(func, "__name__", "").strip("_") not in INEXACT
        return func(*args, **(kwargs or {}))


def _compute(
    func: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None = None, *others: Any, **named: Any
) -> Tensor:
    """Return a layer's output for x (b, ...), of exact sums of rounded products."""
    terms = weight[:, 0].numel() if func in TRANSPOSED else weight[0].numel()  # of a sum, at most
    bits = (EXACT_BITS - terms.bit_length()) // 2
    whole, scale = _round(x, bits, tuple(range(1, x.dim())))
    weights, of_weights = _round(weight, bits, tuple(range(weight.dim())))
    output = func(whole, weights, None, *others, **named) * (scale * of_weights.flatten())
    if bias is not None:
        output = output + (bias if func is F.linear else bias.view(-1, *[1] * (weight.dim() - 2)))
    return output.float()


def _round(x: Tensor, bits: int, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return x as whole numbers of up to `bits` bits, in float64, and the power of two to multiply them with."""
    _, exponent = torch.frexp(x.abs().amax(dims, keepdim=True).double())
    exponent = exponent.long()
    return (x.double() * _power(bits - exponent)).round(), _power(exponent - bits)


def _power(exponent: Tensor) -> Tensor:
    """Return 2 to whole exponents, exactly."""
    return ((exponent + BIAS) << EXACT_BITS).view(torch.float64)

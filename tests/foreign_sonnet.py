"""A re-statement of Sonnet's VQ-VAE example in NumPy, with the names, the order of axes and the padding of TensorFlow.

Shapes: b batch, c channels, h w sites, D codebook width.
"""

import numpy
import torch
from foreign_vqgans import nearest


class Sonnet:
    """Sonnet's example in NumPy's order of axes: images (b, H, W, c), kernels (h, w, inputs, outputs)."""

    def __init__(self, hidden=16, inside=6, blocks=2, entries=20, dim=5, seed=0):
        draw = numpy.random.default_rng(seed)

        def layer(side, inputs, outputs, transposed=False):
            shape = (side, side, outputs, inputs) if transposed else (side, side, inputs, outputs)
            return draw.normal(0, (side * side * inputs) ** -0.5, shape), draw.normal(0, 0.2, outputs)

        half, made = hidden // 2, {}
        made |= {"encoder/enc_1": layer(4, 3, half), "encoder/enc_2": layer(4, half, hidden)}
        made |= {"encoder/enc_3": layer(3, hidden, hidden), "to_vq": layer(1, hidden, dim)}
        for part in ("encoder", "decoder"):
            for block in range(blocks):
                made[f"{part}/residual_stack/res3x3_{block}"] = layer(3, hidden, inside)
                made[f"{part}/residual_stack/res1x1_{block}"] = layer(1, inside, hidden)
        made |= {"decoder/dec_1": layer(3, dim, hidden), "decoder/dec_2": layer(4, hidden, half, True)}
        made |= {"decoder/dec_3": layer(4, half, 3, True)}
        self.layers, self.blocks = made, blocks
        self.book = draw.normal(0, 1, (dim, entries))

    def variables(self):
        kinds = [
            (f"{name}/{kind}:0", each)
            for name, pair in self.layers.items()
            for kind, each in zip("wb", pair, strict=True)
        ]
        return {**dict(kinds), "vector_quantizer_ema/embeddings:0": self.book}

    def convolve(self, name, x, stride=1):
        """A sum over all taps, with TensorFlow's padding `SAME`: the larger part below and on the right."""
        weight, bias = self.layers[name]
        side, out = len(weight), [length // stride for length in x.shape[1:3]]
        missing = side - stride
        x = numpy.pad(x, ((0, 0), *[(missing // 2, missing - missing // 2)] * 2, (0, 0)))
        total = bias
        for row, column in numpy.ndindex(side, side):
            places = [
                slice(at, at + stride * (length - 1) + 1, stride) for at, length in zip((row, column), out, strict=True)
            ]
            total = total + x[:, places[0], places[1]] @ weight[row, column]
        return total

    def transpose(self, name, x):
        """Each site is added to the 4×4 outputs of twice the sides around it: the gradient of a convolution."""
        weight, bias = self.layers[name]
        b, h, w, _ = x.shape
        total = numpy.zeros((b, 2 * h + 2, 2 * w + 2, len(bias)))
        for row, column in numpy.ndindex(4, 4):
            total[:, row : row + 2 * h : 2, column : column + 2 * w : 2] += x @ weight[row, column].T
        return total[:, 1:-1, 1:-1] + bias

    def stack(self, part, x):
        for block in range(self.blocks):
            inner = self.convolve(f"{part}/residual_stack/res3x3_{block}", rectify(x))
            x = x + self.convolve(f"{part}/residual_stack/res1x1_{block}", rectify(inner))
        return rectify(x)

    def latents(self, x):
        x = x.double().numpy().transpose(0, 2, 3, 1) / 2
        for name, stride in (("enc_1", 2), ("enc_2", 2), ("enc_3", 1)):
            x = rectify(self.convolve(f"encoder/{name}", x, stride))
        return as_planes(self.convolve("to_vq", self.stack("encoder", x)))

    def codes(self, x):
        return (nearest(self.latents(x), torch.from_numpy(self.book.T).float()),)

    def pictures(self, codes):
        x = self.stack("decoder", self.convolve("decoder/dec_1", self.book.T[codes[0].numpy()]))
        return 2 * as_planes(self.transpose("decoder/dec_3", rectify(self.transpose("decoder/dec_2", x))))


def rectify(x):
    return numpy.maximum(x, 0)


def as_planes(x):
    return torch.from_numpy(x.transpose(0, 3, 1, 2)).float()

"""Re-statements of other projects' plain VQ-VAEs, with the names that their checkpoints have.

Shapes: b batch, c channels, h w sites, K entries, D codebook width.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from foreign_vqgans import named, nearest
from torch import nn


class OverwritingBlock(nn.Module):
    """A residual block of the notebooks: its first ReLU works in place, on the x that is added, too."""

    def __init__(self, channels, inside, name):
        super().__init__()
        layers = [nn.ReLU(True), nn.Conv2d(channels, inside, 3, 1, 1, bias=False), nn.ReLU(True)]
        setattr(self, name, nn.Sequential(*layers, nn.Conv2d(inside, channels, 1, bias=False)))
        self.inner = name

    def forward(self, x):
        return x + getattr(self, self.inner)(x)


class Stack(nn.Module):
    def __init__(self, blocks, name):
        super().__init__()
        setattr(self, name, nn.ModuleList(blocks))
        self.inner = name

    def forward(self, x):
        for block in getattr(self, self.inner):
            x = block(x)
        return F.relu(x)


class MishaLaskin(nn.Module):
    """Its decoder begins with a transposed convolution; with `first`, as in the first version, with a convolution."""

    def __init__(self, hidden=16, inside=6, blocks=2, entries=20, dim=5, first=False):
        super().__init__()
        half = hidden // 2

        def stack():  # one block, used several times
            return Stack([OverwritingBlock(hidden, inside, "res_block")] * blocks, "stack")

        def layer(inputs, outputs):
            return nn.Conv2d(inputs, outputs, 4, 2, 1)

        down = [layer(3, half), nn.ReLU(), layer(half, hidden), nn.ReLU(), nn.Conv2d(hidden, hidden, 3, 1, 1)]
        up = [nn.ConvTranspose2d(hidden, half, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(half, 3, 4, 2, 1)]
        self.encoder = named(conv_stack=nn.Sequential(*down, stack()))
        self.pre_quantization_conv = nn.Conv2d(hidden, dim, 1)
        self.vector_quantization = named(embedding=nn.Embedding(entries, dim))
        start = (nn.Conv2d if first else nn.ConvTranspose2d)(dim, hidden, 3, 1, 1)
        self.decoder = named(inverse_conv_stack=nn.Sequential(start, stack(), *up))

    def latents(self, x):
        return self.pre_quantization_conv(self.encoder.conv_stack(x))

    def codes(self, x):
        return (nearest(self.latents(x), self.vector_quantization.embedding.weight),)

    def pictures(self, codes):
        return self.decoder.inverse_conv_stack(self.vector_quantization.embedding(codes[0]).movedim(-1, 1))


class Zalando(nn.Module):
    """Takes and makes images in [-½, ½]: here they are converted, as its users must."""

    def __init__(self, hidden=16, inside=6, blocks=2, entries=20, dim=5, moves=True):
        super().__init__()
        half = hidden // 2

        def stack():
            return Stack([OverwritingBlock(hidden, inside, "_block") for _ in range(blocks)], "_layers")

        self._encoder = named(
            _conv_1=nn.Conv2d(3, half, 4, 2, 1), _conv_2=nn.Conv2d(half, hidden, 4, 2, 1),
            _conv_3=nn.Conv2d(hidden, hidden, 3, 1, 1), _residual_stack=stack(),
        )  # fmt: skip
        self._pre_vq_conv = nn.Conv2d(hidden, dim, 1)
        self._vq_vae = named(_embedding=nn.Embedding(entries, dim))
        if moves:
            self._vq_vae._ema_w = nn.Parameter(torch.zeros(entries, dim))
            self._vq_vae.register_buffer("_ema_cluster_size", torch.zeros(entries))
        self._decoder = named(
            _conv_1=nn.Conv2d(dim, hidden, 3, 1, 1), _residual_stack=stack(),
            _conv_trans_1=nn.ConvTranspose2d(hidden, half, 4, 2, 1), _conv_trans_2=nn.ConvTranspose2d(half, 3, 4, 2, 1),
        )  # fmt: skip

    def latents(self, x):
        part = self._encoder
        x = F.relu(part._conv_2(F.relu(part._conv_1(x / 2))))
        return self._pre_vq_conv(part._residual_stack(part._conv_3(x)))

    def codes(self, x):
        return (nearest(self.latents(x), self._vq_vae._embedding.weight),)

    def pictures(self, codes):
        part = self._decoder
        x = part._residual_stack(part._conv_1(self._vq_vae._embedding(codes[0]).movedim(-1, 1)))
        return 2 * part._conv_trans_2(F.relu(part._conv_trans_1(x)))


class PlainBlock(nn.Module):
    """A residual block of rosinality's: only the second ReLU works in place."""

    def __init__(self, channels, inside):
        super().__init__()
        layers = [nn.ReLU(), nn.Conv2d(channels, inside, 3, 1, 1), nn.ReLU(True), nn.Conv2d(inside, channels, 1)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        return self.conv(x) + x


class Rosinality(nn.Module):
    """VQ-VAE-2 of two levels."""

    def __init__(self, channel=16, inside=6, blocks=2, dim=5, entries=20):
        super().__init__()
        half = channel // 2

        def inner():
            return [*(PlainBlock(channel, inside) for _ in range(blocks)), nn.ReLU(True)]

        def halving(inputs, outputs):
            return [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU(True)]

        def up(*widths):
            layers = [nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in pairwise(widths)]
            return [each for layer in layers for each in (layer, nn.ReLU(True))][:-1]

        third = [nn.Conv2d(channel, channel, 3, 1, 1)]
        self.enc_b = named(blocks=nn.Sequential(*halving(3, half), *halving(half, channel), *third, *inner()))
        last = [nn.Conv2d(half, channel, 3, 1, 1)]
        self.enc_t = named(blocks=nn.Sequential(*halving(channel, half), *last, *inner()))
        self.quantize_conv_t, self.quantize_conv_b = nn.Conv2d(channel, dim, 1), nn.Conv2d(dim + channel, dim, 1)
        for name in ("quantize_t", "quantize_b"):
            setattr(self, name, nn.Module())
            for buffer, size in (("embed", (dim, entries)), ("cluster_size", entries), ("embed_avg", (dim, entries))):
                getattr(self, name).register_buffer(buffer, torch.ones(size))
        start = nn.Conv2d(dim, channel, 3, 1, 1)
        self.dec_t = named(blocks=nn.Sequential(start, *inner(), *up(channel, dim)))
        self.upsample_t = nn.ConvTranspose2d(dim, dim, 4, 2, 1)
        start = nn.Conv2d(2 * dim, channel, 3, 1, 1)
        self.dec = named(blocks=nn.Sequential(start, *inner(), *up(channel, half, 3)))

    def look_up(self, level, codes):
        return F.embedding(codes, getattr(self, f"quantize_{level}").embed.T).movedim(-1, 1)

    def both_latents(self, x):
        fine = self.enc_b.blocks(x)
        top = self.quantize_conv_t(self.enc_t.blocks(fine.clone()))
        above = self.dec_t.blocks(self.look_up("t", nearest(top, self.quantize_t.embed.T)))
        return top, self.quantize_conv_b(torch.cat([above, fine], 1))

    def codes(self, x):
        top, bottom = self.both_latents(x)
        return nearest(top, self.quantize_t.embed.T), nearest(bottom, self.quantize_b.embed.T)

    def pictures(self, codes):
        top, bottom = self.look_up("t", codes[0]), self.look_up("b", codes[1])
        return self.dec.blocks(torch.cat([self.upsample_t(top), bottom], 1))


class Convolution(nn.Module):
    """A convolution whose tensors are called `w` and `b`."""

    def __init__(self, inputs, outputs, side):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.zeros(outputs, inputs, side, side)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return F.conv2d(x, self.w, self.b, padding=(self.w.shape[2] - 1) // 2)


class DallEBlock(nn.Module):
    def __init__(self, inputs, outputs, sides, layers):
        super().__init__()
        self.post_gain, inner = 1 / layers**2, outputs // 4
        if inputs != outputs:
            self.id_path = Convolution(inputs, outputs, 1)
        widths = [inputs, inner, inner, inner, outputs]
        self.res_path = named(
            **{f"conv_{n + 1}": Convolution(*pair, sides[n]) for n, pair in enumerate(pairwise(widths))}
        )

    def forward(self, x):
        y = x
        for number in range(4):
            y = getattr(self.res_path, f"conv_{number + 1}")(F.relu(y))
        return (self.id_path(x) if hasattr(self, "id_path") else x) + self.post_gain * y


class DallEPart(nn.Module):
    """Encoder or decoder: `blocks` is pickled with the class."""

    def __init__(self, first, widths, sides, last, change, blocks=2):
        super().__init__()
        self.change, groups, before = change, {}, first[1]
        for number, width in enumerate(widths):
            made = {}
            for block in range(blocks):
                made[f"block_{block + 1}"] = DallEBlock(before, width, sides, len(widths) * blocks)
                before = width
            groups[f"group_{number + 1}"] = named(**made)
        self.blocks = named(input=Convolution(*first), **groups, output=named(conv=Convolution(before, last, 1)))

    def forward(self, x):
        x = self.blocks.input(x)
        groups = [part for name, part in self.blocks.named_children() if name.startswith("group")]
        for number, group in enumerate(groups):
            for block in group.children():
                x = block(x)
            if number < len(groups) - 1:
                x = F.max_pool2d(x, 2) if self.change == "pool" else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return self.blocks.output.conv(F.relu(x))


class DallE(nn.Module):
    """The discrete VAE, over images in [-1, 1] as its users make them of those in [0, 1]."""

    def __init__(self, hidden=8, entries=30, start=5):
        super().__init__()
        widths = [hidden, 2 * hidden, 4 * hidden, 8 * hidden]
        self.encoder = DallEPart((3, hidden, 7), widths, (3, 3, 3, 1), entries, "pool")
        self.decoder = DallEPart((entries, start, 1), widths[::-1], (1, 3, 3, 3), 6, "repeat")

    def logits(self, x):
        return self.encoder(0.8 * (x + 1) / 2 + 0.1)

    def codes(self, x):
        return (self.logits(x).argmax(1),)

    def pictures(self, codes):
        one_hot = F.one_hot(codes[0], self.decoder.blocks.input.w.shape[1]).movedim(-1, 1).float()
        medians = self.decoder(one_hot)[:, :3]
        return 2 * (torch.sigmoid(medians) - 0.1) / 0.8 - 1

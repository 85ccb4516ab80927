"""Re-statements of other projects' VQ-GANs, with the names that their checkpoints have: what imports must agree with.

Shapes: b batch, c channels, h w sites, n = h·w, D codebook width.
"""

import numpy
import torch
import torch.nn.functional as F
from torch import nn

GROUPS = 32
EPSILON = 1e-6
SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def norm(channels):
    return nn.GroupNorm(GROUPS, channels, EPSILON)


def swish(x):
    return x * torch.sigmoid(x)


class Residual(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.norm2, self.conv2 = norm(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        y = self.conv2(swish(self.norm2(self.conv1(swish(self.norm1(x))))))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """All pairs of sites by plain matrix products; `joint` is VAR's, with one convolution for all three."""

    def __init__(self, channels, joint=False):
        super().__init__()
        self.norm = norm(channels)
        if joint:
            self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        else:
            self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        y = self.norm(x)
        q, k, v = self.qkv(y).chunk(3, 1) if hasattr(self, "qkv") else (self.q(y), self.k(y), self.v(y))
        scores = torch.einsum("bcn,bcm->bnm", q.flatten(2), k.flatten(2)) / x.shape[1] ** 0.5
        found = torch.einsum("bnm,bcm->bcn", scores.softmax(2), v.flatten(2)).view_as(x)
        return x + self.proj_out(found)


class Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x):
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def named(**parts):
    module = nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def walk(sizes, order, change):
    """Return the function of the blocks of all sizes, in an order, with the change of sides after each but the last."""

    def run(x):
        for place, number in enumerate(order):
            size = sizes[number]
            blocks = getattr(size, "block", None) or size.res
            for index, block in enumerate(blocks):
                x = block(x)
                x = size.attn[index](x) if len(size.attn) else x
            x = getattr(size, change)(x) if place < len(order) - 1 else x
        return x

    return run


class Encoder(nn.Module):
    """Names are those of taming-transformers and VAR: `down.0.block.0`, `mid.block_1`."""

    def __init__(self, ch, mult, blocks, latents, attends=(), joint=False, channels=3):
        super().__init__()
        widths, width = [ch * number for number in mult], ch
        self.conv_in, self.down = nn.Conv2d(channels, ch, 3, 1, 1), nn.ModuleList()
        for number, wanted in enumerate(widths):
            made = nn.ModuleList(Residual(width if index == 0 else wanted, wanted) for index in range(blocks))
            looks = nn.ModuleList(Attention(wanted, joint) for _ in range(blocks if number in attends else 0))
            size = named(block=made, attn=looks)
            if number < len(mult) - 1:
                size.downsample = Down(wanted)
            self.down.append(size)
            width = wanted
        self.mid = named(block_1=Residual(width, width), attn_1=Attention(width, joint), block_2=Residual(width, width))
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, latents, 3, 1, 1)

    def forward(self, x):
        x = walk(self.down, range(len(self.down)), "downsample")(self.conv_in(x))
        return self.conv_out(swish(self.norm_out(self.mid.block_2(self.mid.attn_1(self.mid.block_1(x))))))


class Decoder(nn.Module):
    def __init__(self, ch, mult, blocks, latents, attends=(), joint=False, channels=3):
        super().__init__()
        widths = [ch * number for number in mult]
        width, made = widths[-1], {}
        self.conv_in = nn.Conv2d(latents, width, 3, 1, 1)
        self.mid = named(block_1=Residual(width, width), attn_1=Attention(width, joint), block_2=Residual(width, width))
        for number in range(len(mult) - 1, -1, -1):
            wanted = widths[number]
            row = nn.ModuleList(Residual(width if index == 0 else wanted, wanted) for index in range(blocks + 1))
            looks = nn.ModuleList(Attention(wanted, joint) for _ in range(blocks + 1 if number in attends else 0))
            made[number] = named(block=row, attn=looks)
            if number:
                made[number].upsample = Up(wanted)
            width = wanted
        self.up = nn.ModuleList(made[number] for number in range(len(mult)))
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, channels, 3, 1, 1)

    def forward(self, x):
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(self.conv_in(x))))
        x = walk(self.up, range(len(self.up) - 1, -1, -1), "upsample")(x)
        return self.conv_out(swish(self.norm_out(x)))


def nearest(latents, entries):
    """Numbers (b, h, w) of the nearest entries (K, D) to latents (b, D, h, w)."""
    return (latents.movedim(1, -1)[..., None, :] - entries).square().sum(-1).argmin(-1)


class Taming(nn.Module):
    """VQModel of taming-transformers. `latents`, `codes` and `pictures` are what an import must give."""

    joint, kernel = False, 1

    def __init__(self, ch=32, mult=(1, 1, 2), blocks=1, z=8, entries=20, dim=6, attends=(2,), channels=3):
        super().__init__()
        sizes = (ch, mult, blocks, z, attends, self.joint, channels)
        self.encoder, self.decoder = Encoder(*sizes), Decoder(*sizes)
        self.quantize = named(embedding=nn.Embedding(entries, dim))
        self.quant_conv = nn.Conv2d(z, dim, self.kernel, padding=self.kernel // 2)
        self.post_quant_conv = nn.Conv2d(dim, z, self.kernel, padding=self.kernel // 2)

    def latents(self, x):
        return self.quant_conv(self.encoder(x))

    def codes(self, x):
        return (nearest(self.latents(x), self.quantize.embedding.weight),)

    def pictures(self, codes):
        return self.decoder(self.post_quant_conv(self.quantize.embedding(codes[0]).movedim(-1, 1)))


class TamingGumbel(Taming):
    """Codes by the largest logit."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        entries, dim = self.quantize.embedding.weight.shape
        self.quantize = named(proj=nn.Conv2d(dim, entries, 1), embed=nn.Embedding(entries, dim))

    def codes(self, x):
        return (self.quantize.proj(self.latents(x)).argmax(1),)

    def pictures(self, codes):
        return self.decoder(self.post_quant_conv(self.quantize.embed(codes[0]).movedim(-1, 1)))


class LlamaGenEncoder(Encoder):
    """The same with other names: `conv_blocks.0.res.0`, `mid.0`."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.conv_blocks = nn.ModuleList(renamed(size, "downsample") for size in self.down)
        self.mid = nn.ModuleList([self.mid.block_1, self.mid.attn_1, self.mid.block_2])
        del self.down

    def forward(self, x):
        x = walk(self.conv_blocks, range(len(self.conv_blocks)), "downsample")(self.conv_in(x))
        for part in self.mid:
            x = part(x)
        return self.conv_out(swish(self.norm_out(x)))


class LlamaGenDecoder(Decoder):
    """Its sizes are counted from the code grid on."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.conv_blocks = nn.ModuleList(renamed(size, "upsample") for size in reversed(self.up))
        self.mid = nn.ModuleList([self.mid.block_1, self.mid.attn_1, self.mid.block_2])
        del self.up

    def forward(self, x):
        x = self.conv_in(x)
        for part in self.mid:
            x = part(x)
        x = walk(self.conv_blocks, range(len(self.conv_blocks)), "upsample")(x)
        return self.conv_out(swish(self.norm_out(x)))


def renamed(size, change):
    parts = {"res": size.block, "attn": size.attn}
    return named(**parts, **({change: getattr(size, change)} if hasattr(size, change) else {}))


class LlamaGen(Taming):
    def __init__(self, ch=32, mult=(1, 1, 2), blocks=1, z=8, entries=20, dim=6):
        super().__init__(ch, mult, blocks, z, entries, dim)
        sizes = (ch, mult, blocks, z, (len(mult) - 1,))
        self.encoder, self.decoder = LlamaGenEncoder(*sizes), LlamaGenDecoder(*sizes)
        self.quantize.register_buffer("codebook_used", torch.zeros(7))

    def codes(self, x):
        unit = F.normalize(self.quantize.embedding.weight, dim=-1)
        return (nearest(F.normalize(self.latents(x), dim=1), unit),)

    def pictures(self, codes):
        vectors = F.normalize(self.quantize.embedding.weight, dim=-1)[codes[0]].movedim(-1, 1)
        return self.decoder(self.post_quant_conv(vectors))


class VAR(Taming):
    """A VQ-GAN with a residual over scales; `phi` convolutions are shared by neighbouring scales."""

    joint, kernel = True, 3

    def __init__(self, ch=32, mult=(1, 2), blocks=1, entries=20, dim=6, phi=4, scales=SCALES):
        super().__init__(ch, mult, blocks, dim, entries, dim, (len(mult) - 1,))
        self.scales = scales
        self.quantize.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.scales), entries))
        self.phi = [nn.Conv2d(dim, dim, 3, padding=1) for _ in range(phi)]
        self.quantize.quant_resi = named(qresi=self.phi[0]) if phi == 1 else named(qresi_ls=nn.ModuleList(self.phi))

    def added(self, number, codes):
        last = len(self.scales) - 1
        vectors = self.quantize.embedding(codes).movedim(-1, 1)
        if number < last:
            vectors = F.interpolate(vectors, (self.scales[-1],) * 2, mode="bicubic")
        count = len(self.phi)
        edge = (1 / 3 if count == 4 else 1 / 2) / count
        ticks = numpy.linspace(edge, 1 - edge, count)
        phi = self.phi[int(numpy.abs(ticks - number / last).argmin())]
        return 0.5 * vectors + 0.5 * phi(vectors)

    def codes(self, x):
        rest, found = self.latents(x), []
        for number, side in enumerate(self.scales):
            small = F.interpolate(rest, (side, side), mode="area") if side < self.scales[-1] else rest
            found.append(nearest(small, self.quantize.embedding.weight))
            rest = rest - self.added(number, found[-1])
        return tuple(found)

    def pictures(self, codes):
        total = sum(self.added(number, each) for number, each in enumerate(codes))
        return self.decoder(self.post_quant_conv(total))

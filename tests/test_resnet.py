"""Networks of tokenizers by name: what all of them promise, and the residual ones with attention.

Shapes: b batch, c channels, h w sites, H W image.
"""

import json
from dataclasses import dataclass
from typing import Annotated

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from codegrid import VQVAE, HierarchicalVQVAE, InputError, Moment, Noise, Signal, TrainTokenizer, load, registry
from codegrid.limits import Range
from codegrid.pipelines.running.options import resolve_options
from codegrid.pipelines.training.initial import start_from, with_options_of
from codegrid.registry import BUILT_IN, TABLES
from codegrid.stage1_vqvae.resnet import MAX_GROUPS, Attention, ResNet, groups_of

every_network = pytest.mark.parametrize("name", BUILT_IN["network"])
BOOKS = {"num_embeddings": 16, "embedding_dim": 4}
FACTORS = [1, 2, 4, 16]


def make(name, hidden_channels=8):
    torch.manual_seed(0)
    return TABLES["network"][name](hidden_channels, num_residual_blocks=1)


def build(name, size=(13, 30), **options):
    torch.manual_seed(0)
    cls = HierarchicalVQVAE if "levels" in options else VQVAE
    options = {"hidden_channels": 8, "num_residual_blocks": 1, **BOOKS, **options}
    return cls(Signal(channels=3, size=size), network=name, **options).eval()


def draw(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Every network.


@every_network
@pytest.mark.parametrize("factor", FACTORS)
@torch.no_grad()
def test_networks_shrink_and_enlarge_by_any_power_of_two(name, factor):
    network, h, w = make(name), 2, 3
    images = draw(2, 3, factor * h, factor * w)
    assert network.encoder(3, 5, factor)(images).shape == (2, 5, h, w)
    assert network.encoder(3, None, factor)(images).shape == (2, network.hidden_channels, h, w)
    assert network.decoder(5, 6, factor)(draw(2, 5, h, w)).shape == (2, 6, factor * h, factor * w)
    assert network.enlarger(5, factor)(draw(2, 5, h, w)).shape == (2, 5, factor * h, factor * w)


@every_network
@pytest.mark.parametrize("options", [{"downsampling": 8}, {"downsampling": 1}, {"levels": (4, 2)}], ids=str)
def test_images_of_any_size_are_encoded_and_decoded_with_every_network(name, options):
    for size in ((13, 30), (1, 1))[: 1 if "levels" in options else 2]:
        tokenizer, images = build(name, size, **options), draw(2, 3, *size)
        with torch.no_grad():
            output = tokenizer(images).output
        assert output.shape == images.shape and torch.equal(tokenizer.reconstruct(images), output)
        assert tokenizer.reconstruct(draw(1, 3, 9, 21)).shape == (1, 3, 9, 21)


@every_network
@pytest.mark.parametrize("options", [{}, {"levels": (2, 2)}], ids=str)
def test_every_weight_of_a_network_learns(name, options):
    tokenizer = build(name, (8, 8), **options).train()
    tokenizer(draw(2, 3, 8, 8), moment=Moment(50, 100, Noise(0, 0, 2))).losses.total.backward()
    assert not [key for key, weight in tokenizer.named_parameters() if weight.grad is None]  # or DDP would wait


@every_network
@pytest.mark.parametrize("options", [{}, {"levels": (2, 2)}], ids=str)
@torch.no_grad()
def test_latents_of_an_image_do_not_depend_on_its_batch(name, options):
    tokenizer, images = build(name, (8, 8), **options).train(), draw(3, 3, 8, 8)
    whole, alone = (tokenizer.encode_latents(some) for some in (images, images[1:2]))
    for ours, theirs in zip(whole, alone, strict=True):
        torch.testing.assert_close(ours[1:2], theirs)


@every_network
@pytest.mark.parametrize("options", [{"downsampling": 2}, {"levels": (2, 2)}], ids=str)
def test_the_config_rebuilds_a_tokenizer_with_its_network(name, options):
    tokenizer, images = build(name, **options), draw(1, 3, 13, 30)
    again = type(tokenizer)(**json.loads(json.dumps(tokenizer.config))).eval()
    again.load_state_dict(tokenizer.state_dict())
    assert again.config == tokenizer.config and again.config["network"] == name
    assert torch.equal(again.reconstruct(images), tokenizer.reconstruct(images))


@every_network
@pytest.mark.parametrize("factor", FACTORS)
def test_a_network_tells_how_large_the_decoders_largest_layer_is(name, factor):
    network, largest = make(name, 32), 0

    def watch(module, given, output):
        nonlocal largest
        largest = max(largest, output.numel())

    decoder = network.decoder(5, 3, factor)
    for part in decoder.modules():
        part.register_forward_hook(watch)
    decoder(draw(1, 5, 4, 4))
    assert network.values_per_pixel(factor) == largest / (4 * factor) ** 2


@every_network
@pytest.mark.parametrize("options", [{}, {"downsampling": 1}, {"levels": (2, 2)}], ids=str)
def test_the_last_layer_of_a_tokenizer_makes_its_outputs(name, options):
    tokenizer, seen = build(name, (8, 8), **options), []
    tokenizer.last_layer.register_forward_hook(lambda module, given, output: seen.append(output))
    assert torch.equal(tokenizer(draw(1, 3, 8, 8)).output, seen[-1]) and tokenizer.last_layer.weight.requires_grad


@every_network
@torch.no_grad()
def test_networks_keep_channels_innermost_in_memory(name):
    network = make(name, 16)
    parts = [network.encoder(3, 6, 4), network.decoder(6, 3, 4), network.enlarger(3, 2)]
    seen, x = [], draw(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for part in parts:
        part.to(memory_format=torch.channels_last)
        for inner in part.modules():
            inner.register_forward_hook(lambda module, given, output: seen.append(output))
        x = part(x)
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in seen if each.ndim == 4)


@pytest.mark.slow
@every_network
def test_networks_can_be_compiled_as_a_whole(name):
    network, x = make(name), draw(1, 3, 8, 8)
    for part in (network.encoder(3, 6, 2), network.decoder(3, 6, 2)):
        compiled = torch.compile(part, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), part(x))


@every_network
def test_networks_compute_in_half_precision(name):
    tokenizer, images = build(name, (8, 8)), draw(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        losses = tokenizer(images).losses
    losses.total.backward()
    assert all(weight.grad.isfinite().all() for weight in tokenizer.parameters() if weight.grad is not None)
    tokenizer.half().encode(images)


def test_a_folder_that_names_no_network_holds_that_of_the_paper(tmp_path):
    tokenizer = build("paper")
    tokenizer.config = {key: value for key, value in tokenizer.config.items() if key != "network"}
    tokenizer.save_pretrained(tmp_path)
    again, images = load(tmp_path), draw(1, 3, 13, 30)
    assert again.fingerprint() == tokenizer.fingerprint() and "network" not in again.config
    assert torch.equal(again.reconstruct(images), tokenizer.reconstruct(images))


def test_options_belong_to_the_network_that_has_them():
    assert "residual_channels" in resolve_options(TrainTokenizer(output="o"))
    chosen = TrainTokenizer(output="o", options={"network": "resnet"})
    assert resolve_options(chosen)["num_residual_blocks"] == 2 and "residual_channels" not in resolve_options(chosen)
    for options, reason in [
        (
            {"network": "resnet", "residual_channels": 8},
            "the resnet network has no such option: choose `network` paper",
        ),
        ({"network": "resnet", "num_residual_blocks": 0}, "`num_residual_blocks` 0: it must be"),
        ({"network": "unet"}, "`network` 'unet': no network has this name: choose one of paper, resnet"),
    ]:
        with pytest.raises(InputError, match=reason):
            resolve_options(TrainTokenizer(output="o", options=options))
    with pytest.raises(InputError, match="no network has this name"):
        VQVAE(network="unet")


def test_a_tokenizer_starts_from_one_with_another_network_with_its_codebook():
    old, new = build("paper"), build("resnet")
    start_from(new, old, "old")
    assert torch.equal(new.quantizer.codebook, old.quantizer.codebook)
    copied = with_options_of(TrainTokenizer(output="o"), build("resnet", downsampling=8).config).options
    assert copied["network"] == "resnet" and copied["downsampling"] == 8 and "residual_channels" not in copied


@dataclass(frozen=True)
class FlatOptions:
    """Options of a network from outside."""

    taps: Annotated[int, Range(1, 9)] = 3
    """Sides of a kernel."""


class FlatNetwork:
    """A convolution behind a mean, and one before a repetition."""

    options = FlatOptions

    def __init__(self, hidden_channels, taps):
        self.hidden_channels, self.taps = hidden_channels, taps

    def encoder(self, in_channels, out_channels, factor):
        return nn.Sequential(nn.AvgPool2d(factor), self._convolution(in_channels, out_channels or self.hidden_channels))

    def decoder(self, in_channels, out_channels, factor):
        return nn.Sequential(nn.Upsample(scale_factor=factor), self._convolution(in_channels, out_channels))

    def enlarger(self, channels, factor):
        return nn.Upsample(scale_factor=factor)

    def values_per_pixel(self, factor):
        return 3

    def _convolution(self, inputs, outputs):
        return nn.Conv2d(inputs, outputs, self.taps, padding="same")


@pytest.mark.parametrize("options", [{}, {"levels": (2, 2)}], ids=str)
def test_a_network_from_outside_needs_nothing_but_a_name(options, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.BUILT_IN})
    registry.register("network", "flat", FlatNetwork)
    chosen = TrainTokenizer(output="o", options={"network": "flat", "taps": 5})
    assert resolve_options(chosen)["taps"] == 5 and "num_residual_blocks" not in resolve_options(chosen)
    tokenizer = (HierarchicalVQVAE if options else VQVAE)(network="flat", taps=1, **options, **BOOKS).eval()
    assert tokenizer.config["taps"] == 1 and tokenizer.reconstruct(draw(1, 3, 9, 14)).shape == (1, 3, 9, 14)


# The residual ones with attention.


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "factor"), [(3, 1), (3, 4), (3, 16), (32, 2)])
@torch.no_grad()
def test_its_weights_fit_the_autoencoders_of_diffusers_and_give_the_same(channels, factor):
    theirs = pytest.importorskip("diffusers.models.autoencoders.vae")
    torch.manual_seed(0)
    network = ResNet(32, num_residual_blocks=2)
    encoder, decoder = network.encoder(channels, 5, factor), network.decoder(5, channels, factor)
    widths = tuple(block.resnets[-1].conv2.out_channels for block in encoder.down_blocks)
    sizes = {"block_out_channels": widths, "layers_per_block": 2, "norm_num_groups": groups_of(widths)}
    down, up = (("DownEncoderBlock2D",) * len(widths), ("UpDecoderBlock2D",) * len(widths))
    their_encoder = theirs.Encoder(channels, 5, down, double_z=False, **sizes)
    their_decoder = theirs.Decoder(5, channels, up, **sizes)
    their_encoder.load_state_dict(encoder.state_dict())
    their_decoder.load_state_dict(decoder.state_dict())
    x = draw(2, channels, 2 * factor, 3 * factor)
    latents = encoder(x)
    torch.testing.assert_close(their_encoder(x), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(their_decoder(latents), decoder(latents), rtol=1e-5, atol=1e-5)


def test_equal_codes_give_a_flat_image_without_a_pattern_of_squares():
    with torch.no_grad():
        squares = {}
        for name in BUILT_IN["network"]:
            decoder = make(name).decoder(4, 3, 2).double()
            inside = decoder(torch.ones(1, 4, 30, 30, dtype=torch.float64))[..., 28:32, 28:32]  # far from the edges
            squares[name] = float(inside.std(dim=(2, 3)).max())
    assert squares["resnet"] < 1e-12 < 1e-3 < squares["paper"]


def test_an_enlarger_of_equal_sites_is_flat_inside():
    with torch.no_grad():
        found = {
            name: make(name).enlarger(4, 4)(torch.ones(1, 4, 6, 6))[..., 8:16, 8:16] for name in BUILT_IN["network"]
        }
    assert float(found["resnet"].std(dim=(2, 3)).max()) < 1e-6 < 1e-3 < float(found["paper"].std(dim=(2, 3)).max())


@torch.no_grad()
def test_every_code_sees_every_pixel_and_every_pixel_every_code():
    network = ResNet(32, num_residual_blocks=1)
    encoder, decoder = network.encoder(3, 4, 2).double(), network.decoder(4, 3, 2).double()
    image, vectors = draw(1, 3, 48, 48).double(), draw(1, 4, 24, 24).double()
    for part, x in ((encoder, image), (decoder, vectors)):
        other = x.clone()
        other[..., -1, -1] += 1
        assert (part(other) - part(x)).abs().amax(1).min() > 1e-12


def test_memory_of_attention_grows_with_the_sites_and_not_with_their_square():
    attention = Attention(8, 2)
    x = draw(1, 8, 48, 48).requires_grad_()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # refused where only the kernel with all pairs could do it
        y = attention(x)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.numel()) or each, lambda each: each):
        attention(x).sum().backward()
    assert y.shape == x.shape and max(kept) <= x.numel()


@pytest.mark.parametrize("hidden", [2, 3, 6, 8, 16, 24, 64, 128, 512])
def test_a_group_of_a_normalization_has_four_channels_at_least_where_there_are_so_many(hidden):
    widths = ResNet(hidden)._widths(1, 8)
    groups = groups_of(widths)
    assert widths[-1] == hidden and groups <= MAX_GROUPS and all(width % groups == 0 for width in widths)
    assert groups == 1 or min(widths) // groups >= 4
    assert ResNet(hidden)._widths(hidden, 8) == [hidden] * 4  # features are not squeezed

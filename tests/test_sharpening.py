"""Sharp pictures: the perceptual distance, the discriminator, and training with two players (VQ-GAN).

Shapes: b batch, c channels, H W image.
"""

import copy
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import draw_bars
from safetensors.torch import load_file, save_file
from small_quantizers import SMALL
from torch import nn

from codegrid import VQVAE, load
from codegrid.codes import Losses, Moment
from codegrid.data.images import ImageDataset, to_float
from codegrid.errors import InputError
from codegrid.files import write_json
from codegrid.locks import releasing
from codegrid.noise import Noise
from codegrid.pipelines.diagnosis.training import measure_training
from codegrid.pipelines.drawing.curves import panels_of
from codegrid.pipelines.evaluation import lite0
from codegrid.pipelines.evaluation.metrics import Metrics, mark_seen
from codegrid.pipelines.evaluation.perceptual import Perceptual, load_perceptual, networks_of, unit_length
from codegrid.pipelines.evaluation.two_sets import read_networks
from codegrid.pipelines.running.device import ComputeConfig, autocast
from codegrid.pipelines.running.run_folder import Run
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.loop import train
from codegrid.pipelines.training.plan import expected_memory
from codegrid.pipelines.training.sharpening import Schedule, Sharpening, schedule_of
from codegrid.pipelines.training.tokenizer import TokenizerObjective, facts_of, train_tokenizer
from codegrid.pipelines.training.trainer import Trainer
from codegrid.registry import BUILT_IN, TABLES
from codegrid.stage1_vqvae.diff_augment import diff_augment
from codegrid.stage1_vqvae.discriminator import (
    ADVERSARIAL_LOSSES,
    PatchDiscriminator,
    lecam_loss,
    map_size,
    most_layers,
)

FP32 = ComputeConfig("fp32")
OF_IMAGES = [name for name in BUILT_IN["tokenizer"] if hasattr(TABLES["tokenizer"][name], "last_layer")]
BATCH = 4


class Features(nn.Module):
    """A distance of random features, with all that a careless training would change or draw."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, ours, theirs):
        return (self.layers(ours) - self.layers(theirs)).square().mean((1, 2, 3), keepdim=True)


def settings_of(**settings):
    usual = {
        "perceptual_weight": 0.5, "perceptual": f"{__name__}:Features", "adversarial_weight": 0.5, "steps": 20,
        "discriminator_start": 1, "discriminator_warmup": 1, "discriminator_channels": 4, "discriminator_lr": 0.01,
        "batch_size": BATCH, "precision": "fp32", "lr": 0.01, "num_workers": 0,
    }  # fmt: skip
    return TrainTokenizer(**{"output": "", **usual, **settings})


def terms():
    return {"reconstruction_loss": torch.tensor(1.0)}


def bars(count=12, channels=1):
    images, labels = draw_bars(count, 16, 16, channels)
    return ImageDataset(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels), ["a", "b"])


def make_objective(settings, quantizer="ema", seed=0, hidden_channels=4):
    torch.manual_seed(seed)
    images, own = bars(), SMALL[quantizer]
    tokenizer = TABLES["tokenizer"][settings.model](
        signal=images.signal, data_variance=images.variance(), quantizer=quantizer,
        **{"hidden_channels": hidden_channels, "residual_channels": 2, "num_residual_blocks": 1, **own},
    )  # fmt: skip
    perceptual = load_perceptual(settings.perceptual, torch.device("cpu")) if settings.perceptual_weight else None
    return TokenizerObjective(tokenizer, images, images, settings, perceptual)


def make_trainer(settings, quantizer="ema", precision="fp32", accelerator=None):
    return Trainer(
        make_objective(settings, quantizer), settings, ComputeConfig(precision), accelerator or Accelerator(cpu=True)
    )


def take_steps(trainer, stop):
    """Take the steps of a training; returns the figures of each."""
    rows = []
    for step, batch in zip(range(stop), trainer.batches(0), strict=False):
        rows.append(trainer.find_gradients(batch, step) | trainer.limit_gradients(step))
        trainer.update(step)
    return rows


def moment(step, steps=20):
    return Moment(step, steps, Noise(0, 0, BATCH))


def gradients_of(module):
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


# The adaptive weight


def take_apart(objective, batch, step):
    """λ and the gradient of the whole loss, each term differentiated by itself through the whole tokenizer."""
    sharpening = objective.sharpening
    settings = sharpening.settings
    tokenizer = copy.deepcopy(objective.tokenizer).train()
    x = batch.images.float() / 127.5 - 1
    output, _, losses = tokenizer(x, moment=moment(step))
    drawn, last = output.clamp(-1, 1), tokenizer.last_layer.weight
    distance = settings.perceptual_weight * sharpening.perceptual(drawn, x).mean()
    displeasure = -objective.players["discriminator"].module(drawn).mean()
    wanted, judged = (
        torch.autograd.grad(each, last, retain_graph=True)[0].norm()
        for each in (losses.terms["reconstruction_loss"] + distance, displeasure)
    )
    weight = settings.adversarial_weight * sharpening.schedule.ramp(step) * objective.buffers["adaptive_weight"]
    (losses.total + distance + weight * displeasure).backward()
    return wanted / (judged + 1e-6), gradients_of(tokenizer)


@pytest.mark.parametrize(
    "model,quantizer", [*(("vqvae", name) for name in SMALL), *((name, "ema") for name in OF_IMAGES[1:])]
)
def test_one_pass_finds_the_adaptive_weight_and_the_gradient_of_several_passes(model, quantizer):
    objective = make_objective(settings_of(model=model, max_adaptive_weight=1e6), quantizer)
    objective.buffers["adaptive_weight"].fill_(0.7)
    batch, step = objective.dataset.batch(range(BATCH)), 5
    expected, gradients = take_apart(objective, batch, step)
    losses = objective.losses("tokenizer", objective.tokenizer.train(), batch, moment(step))
    losses.total.backward()
    objective.after_step(step, 0)
    assert float(expected) > 0
    torch.testing.assert_close(objective.buffers["adaptive_weight"], expected, rtol=1e-4, atol=1e-6)
    for name, gradient in gradients_of(objective.tokenizer).items():
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-6)


def test_the_adaptive_weight_has_a_limit_and_no_gradient():
    objective = make_objective(settings_of(max_adaptive_weight=0.25))
    with torch.no_grad():
        for parameter in objective.players["discriminator"].module.parameters():
            parameter.mul_(1e-3)  # one that hardly says anything
    losses = objective.losses("tokenizer", objective.tokenizer, objective.dataset.batch(range(BATCH)), moment(5))
    objective.after_step(5, 0)
    assert objective.buffers["adaptive_weight"] == 0.25
    assert not losses.figures["adaptive_weight"].requires_grad


def test_pieces_of_a_batch_find_the_adaptive_weight_of_the_whole():
    weights = []
    for accumulate in (1, 4):
        trainer = make_trainer(settings_of(accumulate=accumulate, max_adaptive_weight=1e6))
        trainer.find_gradients(trainer.objective.dataset.batch(range(BATCH)), 5)
        trainer.objective.after_step(5, 0)
        weights.append(trainer.objective.buffers["adaptive_weight"])
    assert weights[0] > 0
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=0)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("fixed", [False, True], ids=["adaptive", "fixed"])
def test_a_compiled_tokenizer_learns_the_same(fixed):
    settings, states = settings_of(fixed_weight=fixed), []
    for compiled in (False, True):
        compute = ComputeConfig("fp32", compiled)
        trainer = Trainer(make_objective(settings), settings, compute, Accelerator(cpu=True))
        take_steps(trainer, 4)
        states.append(state_of(trainer.objective))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-2, atol=1e-3)


def test_the_adaptive_weight_is_the_same_in_bfloat16_but_for_rounding():
    def find_weight(precision, seed):
        objective = make_objective(settings_of(max_adaptive_weight=1e6), seed=seed, hidden_channels=8)
        with autocast(precision, torch.device("cpu")):
            batch = objective.dataset.batch(range(BATCH))
            losses = objective.losses("tokenizer", objective.tokenizer.train(), batch, moment(5))
        losses.total.backward()
        objective.after_step(5, 0)
        return objective.buffers["adaptive_weight"]

    # of several networks: rounding moves some latent of one of them to another entry
    ratios = torch.stack([find_weight("bf16", seed) / find_weight("fp32", seed) for seed in range(7)])
    torch.testing.assert_close(ratios.median(), torch.ones(()), rtol=0.01, atol=0)


def test_in_bfloat16_both_players_stay_finite_over_many_steps_and_their_losses_are_in_float32():
    settings = settings_of(steps=40, lecam_weight=0.1, diff_augment=("color", "translation", "cutout"))
    trainer = make_trainer(settings, precision="bf16")
    rows = take_steps(trainer, 40)
    assert all(value.isfinite().all() for row in rows for value in row.values())
    assert all(tensor.isfinite().all() for tensor in state_of(trainer.objective).values())
    with autocast("bf16", torch.device("cpu")):
        batch = trainer.objective.dataset.batch(range(BATCH))
        for name, player in trainer.objective.players.items():
            losses = trainer.objective.losses(name, player.module, batch, moment(9))
            assert {term.dtype for term in losses.terms.values()} == {torch.float32}


def test_with_a_fixed_weight_nothing_is_compared():
    objective = make_objective(settings_of(fixed_weight=True))
    batch = objective.dataset.batch(range(BATCH))
    losses = objective.losses("tokenizer", objective.tokenizer, batch, moment(19))
    assert objective.buffers == {} and "adaptive_weight" not in losses.figures
    x = batch.images / 127.5 - 1
    drawn = objective.tokenizer(x, moment=moment(19)).output.clamp(-1, 1)
    expected = -0.5 * objective.players["discriminator"].module(drawn).mean()
    torch.testing.assert_close(losses.terms["adversarial_loss"].detach(), expected.detach())


# The two players


def test_before_it_joins_the_discriminator_costs_the_tokenizer_nothing_and_learns_alone():
    trainer = make_trainer(settings_of(discriminator_warmup=2))
    discriminator, calls = trainer.objective.players["discriminator"].module, []
    discriminator.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    figures, weights = [], [copy.deepcopy(discriminator.state_dict())]
    for step, batch in zip(range(5), trainer.batches(0), strict=False):
        figures.append(trainer.find_gradients(batch, step))
        trainer.update(step)
        weights.append(copy.deepcopy(discriminator.state_dict()))
    # nobody asks it, then it sees real and reconstructed images together, then the tokenizer asks it too
    assert calls == [2 * BATCH] * 2 + [BATCH, 2 * BATCH] * 2
    moved = [any(not torch.equal(a[key], b[key]) for key in a) for a, b in pairwise(weights)]
    assert moved == [False, True, True, True, True]
    assert ["adversarial_loss" in row for row in figures] == [False] * 3 + [True] * 2
    assert figures[3]["adversarial_loss"] == 0 != figures[4]["adversarial_loss"], "its weight grows from 0"


def test_the_weight_grows_once_the_discriminator_has_learnt_alone():
    schedule = Schedule(start=10, warmup=4)
    assert [schedule.ramp(step) for step in (0, 10, 14, 15, 16, 18, 30)] == [0, 0, 0, 0.25, 0.5, 1, 1]
    assert schedule_of(settings_of(steps=1000, discriminator_start=None, discriminator_warmup=None)) == (250, 75)
    assert schedule_of(settings_of(steps=100_000, discriminator_start=0, discriminator_warmup=None)) == (0, 1000)
    assert schedule_of(settings_of(adversarial_weight=0.0, **NO_DISCRIMINATOR)) is None


NO_DISCRIMINATOR = {
    "discriminator_start": None, "discriminator_warmup": None, "discriminator_channels": 64, "discriminator_lr": 2e-4
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [False, True], ids=["adaptive", "broken: a fixed weight that is far too large"])
def test_pictures_do_not_break_when_the_discriminator_joins(fixed):
    late = {"discriminator_start": 100, "discriminator_warmup": 20, "lr": 0.003, "lr_schedule": "constant"}
    settings = settings_of(steps=240, fixed_weight=fixed, perceptual_weight=0.0, perceptual="lite0", **late)
    errors = torch.stack([row["reconstruction_loss"] for row in take_steps(make_trainer(settings), 240)])
    means = errors.unfold(0, 20, 10).mean(1)
    before, after = means[8], means[12:].max()
    assert (after > 1.2 * before) == fixed


def test_no_player_gets_a_gradient_from_the_loss_of_the_other():
    objective = make_objective(settings_of())
    batch, discriminator = objective.dataset.batch(range(BATCH)), objective.players["discriminator"].module
    losses = objective.losses("tokenizer", objective.tokenizer.train(), batch, moment(9))
    objective.losses("discriminator", discriminator, batch, moment(9)).total.backward()
    assert all(gradient is None for gradient in gradients_of(objective.tokenizer).values())
    discriminator.zero_grad()
    losses.total.backward()
    assert all(gradient is None for gradient in gradients_of(discriminator).values())
    assert any(gradient is not None and gradient.any() for gradient in gradients_of(objective.tokenizer).values())


@pytest.mark.parametrize("model", OF_IMAGES)
def test_a_step_reconstructs_each_piece_once_and_moves_the_codebooks_once(model, monkeypatch):
    trainer = make_trainer(settings_of(model=model, accumulate=2))
    passes, updates = [], []
    tokenizer = trainer.objective.tokenizer
    tokenizer.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    after_step = tokenizer.quantizer.after_step
    monkeypatch.setattr(tokenizer.quantizer, "after_step", lambda *a: (updates.append(a[0]), after_step(*a)))
    trainer.find_gradients(next(iter(trainer.batches(5))), 5)
    trainer.update(5)
    assert passes == [BATCH // 2] * 2 and updates == [5]


def test_both_networks_see_images_in_the_range_of_real_ones():
    objective, seen = make_objective(settings_of()), []
    with torch.no_grad():
        objective.tokenizer.last_layer.bias.fill_(3.0)
    for network in (objective.players["discriminator"].module, objective.sharpening.perceptual.network):
        network.register_forward_hook(lambda module, inputs, output: seen.append(max(map(torch.max, inputs))))
    batch = objective.dataset.batch(range(BATCH))
    losses = objective.losses("tokenizer", objective.tokenizer, batch, moment(9))
    objective.losses("discriminator", objective.players["discriminator"].module, batch, moment(9))
    assert len(seen) == 3 and max(seen) == 1
    (gradient,) = torch.autograd.grad(losses.terms["adversarial_loss"], objective.tokenizer.last_layer.bias)
    assert not gradient.any(), "what is clipped stays as it is"


@pytest.mark.parametrize(
    "options",
    [
        {"adversarial_loss": "non-saturating"}, {"lecam_weight": 0.1}, {"fixed_weight": True}, {"accumulate": 2},
        {"diff_augment": ("color", "translation", "cutout")},
        {"perceptual_weight": 0.0, "perceptual": "lite0"}, {"adversarial_weight": 0.0, **NO_DISCRIMINATOR},
        {"discriminator_layers": 1, "discriminator_warmup": 0, "discriminator_start": 0},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_trains(options):
    trainer = make_trainer(settings_of(**options))
    before = copy.deepcopy(trainer.objective.tokenizer.state_dict())
    figures = take_steps(trainer, 3)[-1]
    assert all(value.isfinite() for value in figures.values())
    assert any(not torch.equal(before[key], value) for key, value in trainer.objective.tokenizer.state_dict().items())
    asked = {"adversarial_loss": "adversarial_weight", "perceptual_loss": "perceptual_weight"}
    for name, weight in asked.items():
        assert (name in figures) == bool(getattr(trainer.settings, weight))
    assert ("discriminator_lecam_loss" in figures) == bool(trainer.settings.lecam_weight)


# Changes of the images that the discriminator sees

POLICY = ("color", "translation", "cutout")


def test_real_and_reconstructed_images_are_changed_alike_and_differently_at_each_step():
    objective, seen = make_objective(settings_of(diff_augment=POLICY)), []
    discriminator = objective.players["discriminator"].module
    discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    batch = objective.dataset.batch(range(BATCH))
    objective.sharpening.buffers.pop("adaptive_weight")  # which needs the true last layer
    for step in (9, 10):
        of_step = Moment(step, 20, Noise(0, 0, BATCH, purpose=("step", step)))
        x = objective.augment(batch.images, of_step.noise)
        objective.sharpening.add(Losses(terms(), {}), x.clone().requires_grad_(), x, of_step)
        objective.sharpening.judge(discriminator)
    (first, pair), (second, _) = seen[:2], seen[2:]
    assert torch.equal(pair[:BATCH], pair[BATCH:]), "equal images stay equal"
    assert torch.equal(first, pair[:BATCH]), "the tokenizer's step sees them as the discriminator's does"
    assert not torch.equal(first, second) and not torch.equal(first, to_float(batch.images))


@pytest.mark.parametrize("name", POLICY)
def test_each_change_is_of_its_kind_follows_from_the_noise_of_a_sample_and_passes_gradients_on(name):
    images = 0.2 + 0.5 * torch.rand(BATCH, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    images.requires_grad_()
    changed = diff_augment(images, [name], Noise(0, 0, BATCH))
    assert changed.shape == images.shape and not torch.equal(changed, images)
    alone = diff_augment(images[2:3], [name], Noise(0, 2, 1))
    assert torch.allclose(alone, changed[2:3], atol=1e-6)
    (gradient,) = torch.autograd.grad(changed.sum(), images)
    blank = changed.detach() == 0
    if name == "color":
        assert gradient.any(dim=(1, 2, 3)).all() and not blank.any()
    else:  # pixels stay as they are, or are lost
        assert torch.isin(changed.detach(), torch.cat([images.detach().flatten(), torch.zeros(1)])).all()
        assert gradient.sum() == (~blank).sum() and set(gradient.unique().tolist()) <= {0.0, 1.0}
        shares = blank.float().mean(dim=(1, 2, 3))
        assert shares.max() <= (0.25 if name == "cutout" else 1 - (14 / 16) * (21 / 24)) and shares.any()


# Losses and network of the discriminator


def test_a_discriminator_that_is_right_and_sure_has_nothing_to_learn_and_the_tokenizer_has():
    sure = torch.full((5,), 9.0)
    for name, losses in ADVERSARIAL_LOSSES.items():
        logits = [sure.clone().requires_grad_(), (-sure).requires_grad_()]
        for gradient in torch.autograd.grad(losses.of_discriminator(*logits), logits):
            assert gradient.abs().max() < 1e-4, name
        wrong = [(-sure).requires_grad_(), sure.clone().requires_grad_()]
        real, fake = torch.autograd.grad(losses.of_discriminator(*wrong), wrong)
        assert (real < -0.09).all() and (fake > 0.09).all(), name
        (gradient,) = torch.autograd.grad(losses.of_tokenizer(logits[1]), logits[1])
        assert (gradient < -0.19).all(), f"{name}: it must not vanish where the discriminator wins"


def test_the_losses_of_even_logits_are_known():
    even = torch.zeros(3)
    assert ADVERSARIAL_LOSSES["hinge"].of_discriminator(even, even) == 1
    torch.testing.assert_close(
        ADVERSARIAL_LOSSES["non-saturating"].of_discriminator(even, even), torch.tensor(2.0).log()
    )


def test_lecam_punishes_logits_beyond_the_average_of_the_other_side():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    found = lecam_loss(real, fake, torch.tensor(1.0), torch.tensor(-1.0))
    assert found == (3**2 + 1**2) / 2 + (4**2 + 0**2) / 2


def test_the_averages_of_lecam_are_those_of_all_pieces():
    trainer = make_trainer(settings_of(lecam_weight=0.1, accumulate=2))
    rows = take_steps(trainer, 4)[1:]
    seen = [[row["discriminator_real_logit"], row["discriminator_reconstructed_logit"]] for row in rows]
    torch.testing.assert_close(trainer.objective.buffers["mean_logits"], torch.tensor(seen).mean(0))


@pytest.mark.parametrize("size,layers,patches", [((32, 32), 2, (6, 6)), ((28, 28), 2, (5, 5)), ((64, 96), 3, (6, 10)),
                                                 ((256, 256), 3, (30, 30)), ((12, 20), 1, (4, 8))])  # fmt: skip
def test_a_discriminator_has_as_many_layers_as_leave_four_patches_a_side(size, layers, patches):
    network = PatchDiscriminator(1, size, 2)
    assert network.num_layers == most_layers(size) == layers
    assert tuple(network(torch.zeros(1, 1, *size)).shape[2:]) == map_size(size, layers) == patches


@pytest.mark.parametrize(
    "size,layers,words",
    [
        ((32, 32), 3, "`discriminator_layers` 3: with images of 32×32 they leave 2×2 patches: at least 4×4 are needed"),
        ((8, 40), None, "`adversarial_weight`: images of 8×40 are too small for a discriminator"),
    ],
    ids=str,
)
def test_a_map_of_fewer_patches_is_refused(size, layers, words):
    with pytest.raises(InputError, match=words):
        PatchDiscriminator(3, size, 8, layers)


@pytest.mark.parametrize("channels", [1, 6, 8, 64])
def test_the_logits_of_an_image_do_not_depend_on_what_else_is_judged(channels):
    torch.manual_seed(0)
    network = PatchDiscriminator(3, (32, 32), channels).train()
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(network(images)[:1], network(images[:1]))
    torch.testing.assert_close(network(torch.cat([images, -images])), torch.cat([network(images), network(-images)]))


# The perceptual distance


def test_a_perceptual_network_neither_learns_nor_draws_nor_counts():
    trainer = make_trainer(settings_of())
    perceptual = trainer.objective.sharpening.perceptual
    before = copy.deepcopy(perceptual.network.state_dict())
    take_steps(trainer, 4)
    assert not perceptual.network.training and trainer.objective.tokenizer.training
    assert all(torch.equal(value, before[name]) for name, value in perceptual.network.state_dict().items())
    assert not any(each.requires_grad or each.grad is not None for each in perceptual.network.parameters())
    pair = torch.rand(2, 3, 1, 16, 16)
    assert torch.equal(perceptual(*pair), perceptual(*pair))
    assert "Features" not in str(trainer.objective.tokenizer)


@pytest.fixture(scope="module")
def by_lite0():
    return load_perceptual("lite0", torch.device("cpu"))


def draw_scenes():
    """Pictures (b, 3, 32, 32) in [-1, 1] with edges and texture."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    shapes = [(x - 16) ** 2 + (y - 14) ** 2 < 70, x > y, (x // 4 + y // 4) % 2 == 0, (x * 2 + y) % 13 < 4]
    texture = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return (torch.stack(shapes).float()[:, None] * 1.2 - 0.6) + 0.5 * (texture - 0.5)


def test_lite0_tells_blur_from_a_shift_of_brightness_and_random_features_do_not(by_lite0):
    images = draw_scenes()
    blurred = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, 1)
    error = (blurred - images).square().mean((1, 2, 3), keepdim=True).sqrt()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    distances = {
        "blur": by_lite0(blurred, images).mean(),
        "brightness": by_lite0(images + error, images).mean(),
        "noise": by_lite0(images + error * noise, images).mean(),
    }
    assert distances["blur"] > 4 * distances["brightness"] and distances["noise"] > 4 * distances["brightness"]
    assert (by_lite0(images, images) == 0).all()


def test_grey_images_are_seen_as_colour_images_of_three_equal_channels(by_lite0):
    grey = draw_scenes()[:, :1]
    torch.testing.assert_close(by_lite0(grey, -grey), by_lite0(grey.repeat(1, 3, 1, 1), -grey.repeat(1, 3, 1, 1)))


def test_lite0_sees_images_in_the_range_of_its_training(by_lite0):
    seen = []
    hook = by_lite0.network.network._conv_stem.register_forward_hook(lambda module, inputs, _: seen.append(inputs[0]))
    by_lite0(torch.full((1, 3, 8, 8), -1.0), torch.full((1, 3, 8, 8), 1.0))
    hook.remove()
    assert [float(each.unique()) for each in seen] == [-127 / 128, 1.0]


def test_black_images_have_a_finite_gradient(by_lite0):
    black = torch.full((1, 3, 16, 16), -1.0, requires_grad=True)
    for other in (black.detach(), -black.detach()):
        (gradient,) = torch.autograd.grad(by_lite0(black, other).sum(), black)
        assert gradient.isfinite().all()
    empty = torch.zeros(1, 8, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad((unit_length(empty) - 1).square().sum(), empty)
    assert gradient.isfinite().all(), "features that are all zero"


def test_weights_of_lite0_that_are_not_the_known_ones_are_refused(monkeypatch):
    monkeypatch.setattr(lite0, "SHA256", "0")
    with pytest.raises(InputError, match=r"`perceptual` lite0: .* does not hold the known weights"):
        load_perceptual("lite0", torch.device("cpu"))


def no_network():
    return 7


class ByPixel(nn.Module):
    def forward(self, ours, theirs):
        return (ours - theirs).square()


class OfTheBatch(nn.Module):
    def forward(self, ours, theirs):
        return (ours - theirs).square().mean()


@pytest.mark.parametrize(
    "name,words",
    [
        ("vgg", "`perceptual` vgg: choose lite0, or module:function"),
        ("no_such_module:f", "`perceptual` no_such_module:f: it cannot be imported"),
        (f"{__name__}:no_network", "it returned a int, not a torch.nn.Module"),
    ],
)
def test_a_perceptual_network_that_is_none_is_refused(name, words):
    with pytest.raises(InputError, match=words):
        load_perceptual(name, torch.device("cpu"))


def test_a_distance_is_one_for_each_pair_or_one_for_all():
    ours, theirs = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    assert Perceptual(OfTheBatch(), {"name": "mine"})(ours, theirs).tolist() == [1, 1]
    with pytest.raises(InputError, match=r"`perceptual` mine: it returned \(2, 3, 4, 4\) for 2 pairs of images"):
        Perceptual(ByPixel(), {"name": "mine"})(ours, theirs)


# Runs


def train_objective(folder, settings):
    objective = make_objective(settings)
    with releasing():
        history = train(objective, settings, FP32, Run(folder, settings), Accelerator(cpu=True))
    return objective, history


def state_of(objective):
    parts = {name: player.module.state_dict() for name, player in objective.players.items()}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()} | objective.buffers


class Killed(Exception):
    pass


def test_a_killed_run_ends_with_the_bits_of_both_players_of_one_that_never_stopped(tmp_path, monkeypatch):
    settings = settings_of(steps=6, save_every=3, validate_every=6, lecam_weight=0.1, diff_augment=("color", "cutout"))
    whole, history = train_objective(tmp_path / "whole", settings)
    update = Trainer.update

    def update_or_die(trainer, step):
        if step == 4:
            raise Killed
        update(trainer, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "update", update_or_die)
        train_objective(tmp_path / "killed", settings)
    again, its_history = train_objective(tmp_path / "killed", settings)
    assert its_history == history
    expected = state_of(whole)
    assert {"adaptive_weight", "mean_logits"} < expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state_of(again).items())
    states = [tmp_path / name / "state" / "step-00000006" / "state.safetensors" for name in ("whole", "killed")]
    ends = [load_file(state) for state in states]
    assert any(name.startswith("discriminator.optimizer") for name in ends[0])
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    # the model of the lowest error is that from before the discriminator: none is called the best
    assert (tmp_path / "whole" / "last").is_dir() and not (tmp_path / "whole" / "best").exists()
    assert "perceptual_distance" in history[0] and whole.criterion == ""


@pytest.fixture(scope="module")
def bars_of_16(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharp") / "bars.npz"
    np.savez(path, *draw_bars(24, 16, 16))
    return {"dataset": "npz", "data_root": str(path)}


def test_the_model_folder_holds_the_tokenizer_alone_and_names_what_it_was_trained_by(bars_of_16, tmp_path):
    options = {"hidden_channels": 4, "embedding_dim": 4, "num_embeddings": 8}
    settings = settings_of(**bars_of_16, output=str(tmp_path / "out"), steps=6, options=options, validate_every=8)
    folder = train_tokenizer(settings).folder
    tokenizer, plain = load(folder), VQVAE(bars().signal, **options)
    assert load_file(folder / "model.safetensors").keys() == plain.state_dict().keys()
    assert tokenizer.config.keys() == plain.config.keys()
    (network,) = networks_of(tokenizer)
    assert network["name"] == settings.perceptual and network["weight"] == 0.5 and len(network["weights"]) == 64
    found = {"loss": "hinge", "weight": 0.5, "start": 1, "layers": 1, "diff_augment": []}
    assert tokenizer.provenance["adversarial"] == found
    assert "perceptual" in (folder / "README.md").read_text()
    with pytest.raises(InputError, match="discriminator_start 1, not 2"):
        train_tokenizer(replace(settings, discriminator_start=2))


def test_a_longer_run_is_another_one_unless_it_keeps_the_start_that_followed_from_the_steps():
    settings = settings_of(discriminator_start=None, discriminator_warmup=None, steps=100)
    begun = facts_of(settings, None)
    assert begun == {"discriminator_start": 25, "discriminator_warmup": 7}
    assert facts_of(replace(settings, steps=200), None) != begun
    assert facts_of(replace(settings, steps=200, discriminator_start=25, discriminator_warmup=7), None) == begun


def test_a_dry_run_counts_the_memory_of_both_players():
    one, two = (
        expected_memory(make_objective(settings), settings, FP32, Accelerator(cpu=True))
        for settings in (settings_of(adversarial_weight=0.0, **NO_DISCRIMINATOR), settings_of())
    )
    assert two[0] > one[0] > 0 and two[1] > one[1] > 0


def test_a_judge_that_was_seen_in_training_is_marked(tmp_path):
    seen = {"name": "lite0", "weights": "abc", "weight": 1.0}
    for judge, is_seen in (
        ({"name": "lite0", "weights": "abc"}, True),
        ({"name": "classifier", "weights": "d"}, False),
    ):
        metrics = Metrics()
        metrics.add({"rfid": 2.0}, extractor=judge, **mark_seen([seen], judge))
        assert metrics.measured_on["rfid"]["seen_in_training"] == is_seen
        assert any("the same network, which flatters it" in line for line in metrics.lines()) == is_seen
    assert mark_seen([], seen) == {}, "a tokenizer that went by no network"
    write_json(tmp_path / "run.json", {"command": "sample", "settings": {}, "perceptual": [seen, 7]})
    assert read_networks(tmp_path) == [seen]


def test_the_doctor_does_not_take_the_errors_rise_for_too_long_a_training():
    history = [{"step": step, "reconstruction_error": error} for step, error in ((1, 0.4), (2, 0.1), (4, 0.2))]
    assert "above_best" in measure_training({"history": history})
    assert "above_best" not in measure_training({"history": history, "adversarial": {"weight": 0.5}})


def test_curves_show_what_matters_of_both_players():
    trainer = make_trainer(settings_of())
    figures = {name: float(value) for name, value in take_steps(trainer, 4)[-1].items()}
    shown = {panel.title: names for panel, names in panels_of([{"step": 6, **figures}])}
    assert shown["Logits of the discriminator"] == ["discriminator_real_logit", "discriminator_reconstructed_logit"]
    assert shown["Adaptive weight of the adversarial loss"] == ["adaptive_weight"]
    assert {"discriminator_loss", "adversarial_loss", "perceptual_loss"} < set(shown["Losses"])


@pytest.mark.parametrize(
    "name,settings",
    [
        ("perceptual_weight", {"adversarial_weight": 0.0, **NO_DISCRIMINATOR}),
        ("adversarial_weight", {"perceptual_weight": 0.0, "perceptual": "lite0"}),
    ],
)
def test_a_tokenizer_of_codes_is_refused_by_name(name, settings):
    with pytest.raises(InputError, match=f"`{name}` is for images, but `over` trains on codes"):
        settings_of(model="codes", over="codes", **settings)


def test_a_tokenizer_that_names_no_last_layer_needs_a_fixed_weight():
    class Own(TABLES["tokenizer"]["vqvae"]):
        last_layer = None

    own = Own(signal=bars().signal, hidden_channels=4, embedding_dim=4, num_embeddings=8)
    assert Sharpening(own, settings_of(fixed_weight=True), None).players
    with pytest.raises(InputError, match=r"this tokenizer has no `last_layer`.*`fixed_weight`"):
        Sharpening(own, settings_of(), None)


# Two processes, bfloat16 and pieces


def train_together(folder):
    """Train with everything that must work together; as one of two processes, leave what came of it in a folder."""
    accelerator = Accelerator(cpu=True)
    trainer = make_trainer(settings_of(accumulate=2, lecam_weight=0.1, batch_size=8), "ema", "bf16", accelerator)
    assert all(value.isfinite() for row in take_steps(trainer, 3) for value in row.values())
    state = {key: value.clone() for key, value in state_of(trainer.objective).items()}
    if folder is None:
        return state
    save_file({key: value.contiguous() for key, value in state.items()}, f"{folder}/rank{accelerator.process_index}")
    dist.barrier()


@pytest.mark.xdist_group("two")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_two_processes_in_bfloat16_and_pieces_find_the_adaptive_weight_and_codebook_of_one(two, tmp_path):
    two.call(train_together, tmp_path)
    ours, theirs = (load_file(tmp_path / f"rank{rank}") for rank in range(2))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), "both processes hold the same"
    alone = train_together(None)
    assert 0 < alone["adaptive_weight"] < 1, "not at its limit"
    torch.testing.assert_close(ours["adaptive_weight"], alone["adaptive_weight"], rtol=0.02, atol=0)
    for name, value in alone.items():
        torch.testing.assert_close(ours[name], value, rtol=0.02, atol=0.01)

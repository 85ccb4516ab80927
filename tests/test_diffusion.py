"""Latent diffusion: standardised vectors of codes, levels of noise, drawing, what diffusers itself can load.

Shapes: b batch, h w code grid, D embedding_dim.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
from small_priors import SMALL, build_prior, random_codes

from codegrid import load, sample
from codegrid.codes import PAD, Condition, Grid, Known, Moment
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.registry import TABLES
from codegrid.sampling_config import SamplingConfig
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.stage2_prior.diffusion.vectors import CodeVectors
from codegrid.stage2_prior.likelihood import measure_error

diffusers = pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
ROOT = Path(__file__).parent.parent
PACKAGES = "codegrid", "data", "stage1_vqvae", "stage2_prior", "pipelines", "recipes"
LABELS = torch.tensor([0, 2, 1])


def build(shape=(4, 5), sizes=(8,), **options):
    return build_prior("diffusion", sizes, shape, **{"num_classes": 3, "label_dropout": 0.5, **options})


def same_tensors(ours, others):
    return ours.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in ours.items())


def tables_of(quantizer, grids):
    return {f"entries.{grid}": quantizer.entries(grid) for grid in range(grids)} | getattr(quantizer, "tables", dict)()


def quantized(name, **options):
    """The layout and tables of a quantizer, codes of random latents, and the vectors that it looks up for them."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name](**options)
    layout, codes = quantizer.layout((3, 4)), quantizer.encode(3 * torch.randn(6, quantizer.embedding_dim, 3, 4))
    return layout, tables_of(quantizer, len(layout)), codes, quantizer.look_up(codes).detach()


CODED = {
    "ema": {"num_embeddings": 9, "embedding_dim": 4},
    "residual": {"num_quantizers": 3, "num_embeddings": 9, "embedding_dim": 4},
    "product": {"num_quantizers": 2, "num_embeddings": 9, "embedding_dim": 4},
    "fsq": {"fsq_levels": (5, 3, 3)},
    "lfq": {"num_embeddings": 32},
}


@pytest.mark.parametrize("name", CODED)
@torch.no_grad()
def test_codes_become_the_vectors_that_the_decoder_sees_with_mean_0_and_deviation_1_in_each_channel(name):
    layout, tables, codes, vectors = quantized(name, **CODED[name])
    prior = TABLES["prior"]["diffusion"](layout, tables=tables, **SMALL["diffusion"])
    prior.prepare([tuple(grid[:4] for grid in codes), tuple(grid[4:] for grid in codes)])
    latents = prior.latents(codes)
    spread, mean = torch.std_mean(latents, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(spread, torch.ones_like(spread), atol=1e-4, rtol=0)
    back = latents * prior.vectors.spread[:, None, None] + prior.vectors.mean[:, None, None]
    torch.testing.assert_close(back, vectors)
    found = prior.vectors.look_up(prior.nearest(latents))
    torch.testing.assert_close(found, vectors, atol=1e-4 if name != "residual" else 4.0, rtol=0)


def test_a_channel_that_never_changes_is_only_shifted():
    vectors = CodeVectors([torch.tensor([[1.0, 5.0], [3.0, 5.0]])])
    vectors.standardise([(torch.tensor([[[0, 1]]]),)])
    assert vectors((torch.tensor([[[0, 1]]]),)).tolist() == [[[[-1.0, 1.0]], [[0.0, 0.0]]]]


def test_of_several_codes_a_site_each_is_nearest_to_what_those_before_it_leave_over():
    vectors = CodeVectors([torch.tensor([[0.0], [10.0]]), torch.tensor([[0.0], [1.0]])])
    codes = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 0, 1]]])
    assert all(map(torch.equal, vectors.nearest(vectors(codes)), codes))


def test_the_scales_are_saved_with_the_prior_and_stay_its_own_when_it_starts_from_another(tmp_path):
    layout, tables, codes, _ = quantized("ema", **CODED["ema"])
    prior = TABLES["prior"]["diffusion"](layout, tables=tables, **SMALL["diffusion"])
    prior.prepare([codes])
    prior.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert same_tensors(again.vectors.state_dict(), prior.vectors.state_dict())
    other = TABLES["prior"]["diffusion"](layout, embedding_dim=4, **SMALL["diffusion"])
    before = {name: tensor.clone() for name, tensor in other.vectors.state_dict().items()}
    assert other.inherit(prior) == [] and same_tensors(other.vectors.state_dict(), before)
    assert same_tensors(other.network.state_dict(), prior.network.state_dict())


@pytest.mark.parametrize(
    "layout,more,reason",
    [
        ((Grid((6,), 8),), {}, "`layout` of 6: a diffusion prior learns grids \\(h, w\\) of one shape"),
        ((Grid((2, 2), 8), Grid((4, 4), 8)), {}, "`layout` of 2×2, 4×4: a diffusion prior learns"),
        ((Grid((4, 4), 8),), {"tables": {}}, "the vectors .* of grid 0 are not known: give the `tokenizer`"),
        ((Grid((4, 4), 8),), {"tables": {"entries.0": torch.zeros(7, 4)}}, "do not fit each other"),
        ((Grid((4, 4), 8),), {"tables": {"phi.bias": torch.zeros(1, 4)}}, "scales of one another.*take next-scale"),
        ((Grid((4, 4), 8),), {"channels": 9, "num_levels": 1}, "`channels` 9: .* a multiple of `num_heads`, 4"),
        ((Grid((4, 4), 8),), {"channels": 5, "num_levels": 2}, "`channels` 5: the smallest size has 10, which must be"),
        ((Grid((4, 4), 8),), {"given_grids": (0,)}, "cannot be conditioned on coarser grids"),
    ],
)  # fmt: skip
def test_what_it_cannot_learn_is_refused_by_name(layout, more, reason):
    with pytest.raises(InputError, match=reason):
        TABLES["prior"]["diffusion"](layout, **more)


def test_without_diffusers_it_is_listed_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "diffusion" in TABLES["prior"] and TABLES["prior"].options("diffusion")().solver == "ddim"
    with pytest.raises(InputError, match=r'needs the diffusers package: pip install "codegrid\[diffusion\]"'):
        TABLES["prior"]["diffusion"]((Grid((4, 4), 8),))


def test_nothing_else_imports_diffusers():
    files = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    assert not [path for path in files if re.search(r"^\s*(import|from) diffusers", path.read_text(), re.MULTILINE)]


@torch.no_grad()
def test_the_last_level_is_nothing_but_noise_and_drawing_begins_there():
    prior = build()
    assert prior.scheduler.alphas_cumprod[-1] == 0 and not prior.scheduler.config.clip_sample
    for solver in ("ddim", "dpm-solver"):
        for steps in (1, 7, 50, 1000):
            made = prior.make_solver(solver)
            made.set_timesteps(steps)
            assert made.timesteps[0] == 999 and made.sigmas[0] > 4000 and made.sigmas[-1] == 0
    learnt, seen = prior.network.unet, []
    learnt.register_forward_pre_hook(lambda module, inputs: seen.append(int(inputs[1])))
    sample(prior, 2, labels=[0], num_inference_steps=4)
    assert seen == [999, 749, 499, 249]


def to_answer(prior, monkeypatch, answer):
    """Let the prior see through all noise to one answer (b, D, h, w)."""

    def denoiser(given, batch_size):
        def predict(noisy, timestep):
            alpha = prior.scheduler.alphas_cumprod[timestep].clamp_min(2.0**-24).sqrt()
            sigma = (1 - alpha**2).sqrt()
            return alpha * (noisy - alpha * answer) / sigma - sigma * answer

        return predict

    monkeypatch.setattr(prior, "denoiser", denoiser)


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver"])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_far_vectors_are_not_cut_and_the_nearest_code_comes_back(solver, steps, monkeypatch):
    prior = build((2, 3))
    codes = random_codes(prior, 5)
    prior.vectors.entries[0][:] *= 3  # beyond ±1, where `clip_sample` would cut
    answer = prior.latents(codes)
    assert answer.abs().max() > 3
    to_answer(prior, monkeypatch, answer)
    (drawn,) = sample(prior, 5, num_inference_steps=steps, solver=solver)
    assert torch.equal(drawn, codes[0])


@torch.no_grad()
def test_ddim_takes_the_steps_of_the_scheduler_of_that_name():
    prior = build()
    ours = prior.make_solver("ddim")
    theirs = diffusers.DDIMScheduler.from_config(prior.scheduler.config)
    ours.set_timesteps(10), theirs.set_timesteps(10)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    x, y = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    one, other = x, x
    for timestep in ours.timesteps:
        velocity = y * one.mean() - one
        one = ours.step(velocity, timestep, one).prev_sample
        other = theirs.step(velocity, int(timestep), other).prev_sample
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
        one = other


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (1, 1), (8, 8), (1, 6)])
def test_grids_of_any_sides_come_back_in_their_size(shape):
    prior = build(shape, num_levels=3)
    (drawn,) = sample(prior, 2, labels=[1], num_inference_steps=2)
    assert drawn.shape == (2, *shape)
    prior(random_codes(prior, 2), Condition(LABELS[:2])).total.backward()


def test_noise_is_each_samples_own_whatever_the_batch():
    prior = build()
    (whole,) = sample(prior, 6, seed=3)
    parts = [sample(prior, 2, seed=3, first_index=first, labels=[first % 3, (first + 1) % 3])[0] for first in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts)) and torch.equal(whole, sample(prior, 6, seed=3, batch_size=4)[0])
    assert not torch.equal(whole, sample(prior, 6, seed=4)[0])


def test_a_drawing_leaves_nothing_behind_for_the_next_one_and_weights_stay_if_it_fails():
    prior = build()
    before = {name: tensor.clone() for name, tensor in prior.state_dict().items()}
    config = SamplingConfig(num_inference_steps=5, solver="dpm-solver")
    first = [*prior.sample(Condition(LABELS), Noise(0, count=3), config)][-1].codes
    given_up = prior.sample(Condition(LABELS), Noise(1, count=3), config, watch=True)
    next(given_up), next(given_up)
    given_up.close()
    again = [*prior.sample(Condition(LABELS), Noise(0, count=3), config)][-1].codes
    assert torch.equal(*first, *again) and same_tensors(prior.state_dict(), before)


def test_each_step_shows_the_codes_nearest_to_its_guess_and_the_last_one_is_the_result():
    prior = build()
    seen = [*prior.sample(Condition(LABELS), Noise(0, count=3), SamplingConfig(num_inference_steps=4), watch=True)]
    assert [progress.done for progress in seen] == [0.25, 0.5, 0.75, 1.0]
    assert all(bool(mark.all()) for progress in seen for mark in progress.drawn)
    (alone,) = prior.sample(Condition(LABELS), Noise(0, count=3), SamplingConfig(num_inference_steps=4))
    assert torch.equal(*alone.codes, *seen[-1].codes)


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver"])
def test_any_codes_can_be_kept_and_the_network_sees_them_as_noisy_as_the_others(solver):
    prior = build(sizes=(8, 5))
    codes = random_codes(prior, 3)
    masks = tuple(torch.rand(grid.shape) < 0.5 for grid in codes)
    drawn = sample(prior, 3, labels=LABELS, known=Known(codes, masks), num_inference_steps=6, solver=solver)
    for grid, kept, mask in zip(drawn, codes, masks, strict=True):
        assert torch.equal(grid[mask], kept[mask]) and not torch.equal(grid, kept)
    seen = []
    prior.network.unet.register_forward_pre_hook(
        lambda module, inputs: seen.append((inputs[0].clone(), int(inputs[1])))
    )
    sample(prior, 3, labels=LABELS, known=Known(codes, masks), num_inference_steps=6, solver=solver)
    there, clean = (masks[0] & masks[1])[:, None].expand(-1, 8, -1, -1), prior.latents(codes)
    start = Noise(0, count=3).of("grid", 0).normals("start", *clean.shape[1:])
    for noisy, timestep in seen[1:]:
        expected = prior.scheduler.add_noise(clean, start, torch.tensor([timestep] * 3))
        torch.testing.assert_close(noisy[there], expected[there], atol=2e-3, rtol=1e-3)


def test_all_known_codes_come_back_and_settings_without_a_meaning_are_refused_by_name():
    prior = build()
    codes = random_codes(prior, 2)
    everywhere = tuple(torch.ones_like(grid, dtype=torch.bool) for grid in codes)
    assert torch.equal(*sample(prior, 2, known=Known(codes, everywhere)), *codes)
    for name, value in {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "unmask_order": "random"}.items():
        with pytest.raises(InputError, match=f"`{name}` has no effect on this prior"):
            sample(prior, 2, **{name: value})
    with pytest.raises(InputError, match="`num_inference_steps` 1001: this prior can take at most 1,000 steps"):
        sample(prior, 2, num_inference_steps=1001)
    with pytest.raises(InputError, match="`solver` 'euler': choose one of ddim, dpm-solver"):
        sample(prior, 2, solver="euler")


def test_guidance_is_on_the_prediction_and_no_class_is_a_class_of_its_own():
    prior = build()
    guided, halves = [sample(prior, 4, labels=[1], guidance_scale=scale)[0] for scale in (4.0, 0.0)]
    assert not torch.equal(guided, sample(prior, 4, labels=[1])[0])
    assert torch.equal(halves, sample(prior, 4, labels="none")[0])
    assert prior.network.unet.class_embedding.num_embeddings == 4
    rows = []
    prior.network.unet.class_embedding.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].tolist()))
    sample(prior, 2, labels=[1, 0], guidance_scale=2.0, num_inference_steps=1)
    assert rows == [[1, 0, 3, 3]]


@torch.no_grad()
def test_the_error_follows_from_seed_and_number_of_the_sample_and_that_of_a_new_prior_is_that_of_knowing_nothing():
    prior = build()
    (codes,), labels = random_codes(prior, 8), torch.arange(8) % 3
    whole, thirds = ([slice(0, 8)], [slice(0, 3), slice(3, 6), slice(6, 8)])
    errors = [
        measure_error(prior, (((codes[rows],), Condition(labels[rows])) for rows in parts)) for parts in (whole, thirds)
    ]
    assert list(errors[0]) == ["denoising_error"]
    assert errors[0]["denoising_error"] == pytest.approx(errors[1]["denoising_error"], rel=1e-12)
    new = TABLES["prior"]["diffusion"]((Grid((8, 8), 64),), **SMALL["diffusion"]).eval()
    some = random_codes(new, 64)
    new.prepare([some])
    assert new.errors(some).mean().item() == pytest.approx(1, abs=0.05) and prior.nll((codes,)) is None


def test_in_bfloat16_the_loss_is_in_float32_and_near_that_of_float32():
    prior = build().float()
    codes, given, moment = random_codes(prior, 3), Condition(LABELS), Moment(0, 10, Noise(0, count=3))
    with torch.autocast("cpu", torch.bfloat16):
        half = prior(codes, given, moment).total
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, prior(codes, given, moment).total, rtol=0.02, atol=0)


def asked(*rows):
    return Condition(text=torch.tensor([[*row, *[PAD] * (5 - len(row))] for row in rows]))


def reads_texts(shape=(5, 7), **options):
    """A prior over texts of up to 5 of 260 words, which it hears well."""
    prior = build(shape, num_classes=0, num_words=260, text_length=5, caption_dropout=0.5, **options)
    with torch.no_grad():
        prior.network.words.embedding.weight *= 50
    return prior


@torch.no_grad()
def test_every_word_of_a_text_matters_and_nothing_behind_its_end_and_no_text_is_learnt():
    prior = reads_texts()
    given = asked([7, 3, 9, 4], [8, 3, 9, 4], [7, 3, 9, 5], [3, 7, 9, 4], [7, 3], [7, 3, PAD, 9], [])
    noisy = torch.randn(1, 8, 5, 7, dtype=torch.float64).expand(7, -1, -1, -1)
    found = prior.denoiser(given, 7)(noisy, torch.tensor(500)).flatten(1)
    distances = torch.cdist(found, found)
    distances[4, 5] = distances[5, 4] = distances[4, 5] + 1
    assert (distances[4, 5] - 1).abs() < 1e-9 and (distances + torch.eye(7) > 1e-6).all()
    nothing = prior.denoiser(Condition(), 7)(noisy, torch.tensor(500)).flatten(1)
    torch.testing.assert_close(nothing, found[-1:].expand_as(nothing))


@torch.no_grad()
def test_texts_guide_are_encoded_once_for_all_steps_and_are_hidden_in_training_alone(tmp_path):
    prior, calls = reads_texts((3, 5)), []
    prior.network.words.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    config = SamplingConfig(num_inference_steps=3, guidance_scale=4.0)
    codes = [[*prior.sample(asked(word, word), Noise(0, count=2), config)][-1].codes for word in ([7, 3], [9])]
    assert calls == [4, 4] and not torch.equal(*codes[0], *codes[1])
    losses = {
        number: [float(prior(codes[0], asked(row, row), number and Moment(0, 9, Noise(number, count=2))).total)
                 for row in ([7, 3], [])]
        for number in (None, *range(1, 12))
    }  # fmt: skip
    assert losses.pop(None)[0] != float(prior(codes[0], asked([], [])).total)
    assert {one == other for one, other in losses.values()} == {True, False}
    prior.float().save_pretrained(tmp_path)
    drawn = [[*one.sample(asked([7]), Noise(0), config)][-1].codes for one in (prior, load(tmp_path))]
    assert torch.equal(*drawn[0], *drawn[1])
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
    assert same_tensors(unet.state_dict(), prior.network.unet.state_dict())


@pytest.mark.slow
def test_it_learns_where_there_is_something_to_learn():
    torch.manual_seed(0)
    prior = TABLES["prior"]["diffusion"]((Grid((3, 4), 6),), num_classes=2, **SMALL["diffusion"])
    codes = (torch.stack([torch.full((3, 4), 1), torch.full((3, 4), 4)]).repeat(8, 1, 1),)
    given = Condition(torch.arange(16) % 2)
    prior.prepare([codes])
    optimizer = torch.optim.Adam(prior.parameters(), lr=5e-3)
    for step in range(400):
        optimizer.zero_grad()
        prior(codes, given, Moment(step, 400, Noise(step, count=16))).total.backward()
        optimizer.step()
    (drawn,) = sample(prior.eval(), 8, labels=[0, 1] * 4, num_inference_steps=10, solver="dpm-solver")
    assert (drawn[::2] == 1).double().mean() > 0.9 and (drawn[1::2] == 4).double().mean() > 0.9


@torch.no_grad()
def test_diffusers_alone_loads_the_unet_and_the_scheduler_from_the_folder(tmp_path):
    prior = build().float()
    prior.save_pretrained(tmp_path)
    prior.save_pretrained(tmp_path)  # again: into folders that are there
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
    x, level = torch.randn(3, 8, 4, 5), torch.tensor(400)
    ours = prior.denoiser(Condition(LABELS), 3)(x, level)
    assert torch.equal(unet(x, level, None, class_labels=LABELS).sample, ours)
    for kind in (diffusers.DDPMScheduler, diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler):
        scheduler = kind.from_pretrained(tmp_path, subfolder="scheduler")
        assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.rescale_betas_zero_snr

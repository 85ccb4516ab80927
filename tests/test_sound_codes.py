"""Whether codes of sound are in danger of a collapse, and how many stay under a small shift.

Shapes: T samples.
"""

import json

import pytest
import torch
from small_quantizers import moment
from test_sound_run import TINY, call, data, recordings  # noqa: F401  (a fixture)
from test_waves import HOP, build, sound

from codegrid.codes import Condition
from codegrid.data.images import ImageBatch, to_int16
from codegrid.pipelines.evaluation.shifts import measure_shifts
from codegrid.stage1_vqvae.wave_networks import shift_at_random


def test_gradients_at_the_latents_are_those_of_each_term_and_are_measured_at_two_steps():
    tokenizer, x = build(commitment_cost=0.5).train(), sound(2, 24)
    found = {step: tokenizer(x, moment=moment(step, count=2)).losses.figures for step in (0, 1, 100)}
    names = {"reconstruction_gradient", "commitment_gradient"}
    assert names <= found[0].keys() and names <= found[100].keys() and not names & found[1].keys()
    assert not names & tokenizer(x).losses.figures.keys()
    latents = tokenizer.encode_latents(x)[0].detach().requires_grad_()
    vectors, _, losses = tokenizer.quantizer(latents)
    (gradient,) = torch.autograd.grad(losses.terms["commitment_loss"], latents)
    assert float(found[0]["commitment_gradient"]) == pytest.approx(float(gradient.norm()), rel=1e-4)
    term = tokenizer.reconstruction.loss(tokenizer.decoder(vectors), x)
    (gradient,) = torch.autograd.grad(term, latents)
    assert float(found[0]["reconstruction_gradient"]) == pytest.approx(float(gradient.norm()), rel=1e-4)


@pytest.mark.parametrize("quantizer,count", [("ema", 2), ("fsq", 1)])
def test_measuring_them_leaves_the_gradients_of_training_as_they_are(quantizer, count):
    gradients = []
    for step in (100, 101):
        tokenizer = build(quantizer=quantizer).train()
        losses = tokenizer(sound(2, 24), moment=moment(step, count=2)).losses
        losses.total.backward()
        gradients.append([parameter.grad for parameter in tokenizer.parameters() if parameter.grad is not None])
        assert sum(name.endswith("_gradient") for name in losses.figures) == (count if step == 100 else 0)
    assert len(gradients[0]) and all(map(torch.equal, *gradients))


@pytest.mark.parametrize("cost,warned", [("0.25", False), ("1e6", True)])
def test_a_run_whose_commitment_outweighs_all_else_says_so_by_name(cost, warned, recordings, tmp_path, capsys):  # noqa: F811
    output = tmp_path / "t"
    call("train_tokenizer", "--model", "wave", *data(recordings), *TINY, "--commitment-cost", cost, "--output", output)
    printed = capsys.readouterr().out
    assert ("commitment loss at the latents is over 100 times" in printed and "--commitment-cost" in printed) == warned
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 1 and rows[0]["reconstruction_gradient"] > 0 and rows[0]["commitment_gradient"] > 0


def test_codes_that_follow_a_shift_exactly_agree_and_others_count_by_their_share():
    class Level:
        """Codes are whether a stretch is loud: shifted by s samples, those at an edge change."""

        device = torch.device("cpu")

        def encode(self, x):
            return ((x.unfold(2, HOP, HOP).mean(-1)[:, 0] > 0.1).long(),)

    constant = to_int16(torch.full((2, 1, 10 * HOP + 8), 0.5))
    assert measure_shifts(Level(), [ImageBatch(constant, None)])["shift_agreement"] == 1
    edge = constant.clone()
    edge[:, :, : 5 * HOP] = 0
    found = measure_shifts(Level(), [ImageBatch(edge, None)])
    assert len(found["shift_agreement_by_samples"]) == 8 and 0.8 < found["shift_agreement"] < 1
    assert measure_shifts(Level(), [ImageBatch(constant[..., :8], None)]) == {}


def test_padding_does_not_count_as_codes_that_stay():
    tokenizer = build(40 * HOP)
    waves = to_int16(sound(3, 10 * HOP + 8))
    lengths = torch.full((3,), 10 * HOP + 8)
    padded = torch.cat([waves, torch.zeros(3, 1, 30 * HOP, dtype=torch.int16)], 2)
    longer = torch.cat([padded, torch.zeros_like(padded)], 2)
    found, more = (measure_shifts(tokenizer, [ImageBatch(each, None, lengths)]) for each in (padded, longer))
    assert found == more and found["shift_agreement"] < 1


def test_the_encoder_hears_a_shift_that_the_decoder_does_not_repeat():
    x = torch.arange(1, 21.0).view(1, 1, 20).expand(50, -1, -1) / 20
    shifted = shift_at_random(x, 3, moment(count=50))
    starts = {round(float(row[0, 10]) * 20) - 11 for row in shifted}
    assert starts == set(range(-3, 4)) and shifted.shape == x.shape
    assert shift_at_random(x, 3, None) is x and shift_at_random(x, 0, moment(count=50)) is x
    again = shift_at_random(x[:20], 3, moment(count=20))
    assert torch.equal(again, shifted[:20])  # of each item, whatever its batch
    tokenizer = build(encoder_shift=5).train()
    wave = sound(4, 24)
    _, codes, _ = tokenizer(wave, moment=moment(count=4))
    heard = shift_at_random(wave, 5, moment(count=4))
    assert torch.equal(codes[0], tokenizer.encode(heard)[0]) and not torch.equal(heard, wave)
    assert torch.equal(tokenizer(wave, Condition()).codes[0], tokenizer.encode(wave)[0])

"""Clips shorter than their window: what follows them is heard, but teaches nothing and counts for nothing.

Shapes: T samples, t codes.
"""

import pytest
import torch
from small_quantizers import SMALL as QUANTIZERS
from small_quantizers import moment
from test_waves import HOP, WAVENET, build, sound

from codegrid.codes import HIDDEN, Condition, Grid
from codegrid.data.images import ImageBatch, to_int16
from codegrid.noise import Noise
from codegrid.padding import counted, mean_of_counted
from codegrid.pipelines.evaluation.cross_entropy import measure_nats
from codegrid.pipelines.evaluation.reconstruction import measure_tokenizer
from codegrid.registry import TABLES
from codegrid.stage1_vqvae.usage import LayoutUsage, perplexities

LENGTHS = torch.tensor([13, 20])
PRIORS = {
    "wavenet": {"channels": 4, "skip_channels": 4, "layers_per_cycle": 2},
    "transformer": {"channels": 8, "num_heads": 2, "num_layers": 1},
}


def padded(length):
    """Two clips of 13 and 20 samples, followed by silence."""
    x = torch.zeros(2, 1, length)
    for row, wave, end in zip(x, sound(2, 20), LENGTHS.tolist(), strict=True):
        row[:, :end] = wave[:, :end]
    return x.double()


def learn(length, **options):
    """Run a training step; return its losses, the gradients, and the state afterwards."""
    tokenizer = build(**options).double().train()
    x = padded(length)
    _, codes, losses = tokenizer(x, Condition(lengths=LENGTHS), moment(count=2))
    losses.total.backward()
    tokenizer.after_step(0, 0)
    gradients = [parameter.grad for parameter in tokenizer.parameters() if parameter.grad is not None]
    return losses.terms, gradients, list(tokenizer.state_dict().values()), codes


@pytest.mark.parametrize(
    "options",
    [*({"quantizer": name} for name in QUANTIZERS if name != "multiscale"), {"reconstruction": "mu-law"},
     {"reconstruction": "l1"}, {"reconstruction": "mse"}, WAVENET],
    ids=lambda options: "-".join(map(str, options.values())),
)  # fmt: skip
def test_what_a_tokenizer_of_sound_learns_does_not_depend_on_how_much_a_clip_was_padded(options):
    # more than what the networks hear beyond the end
    some, more = learn(16 * HOP, **options), learn(30 * HOP, **options)
    torch.testing.assert_close(some[:3], more[:3], atol=1e-9, rtol=1e-7)
    for few, many in zip(some[3], more[3], strict=True):
        assert torch.equal(many[:, :16], few) and (many[0, 3:] == HIDDEN).all() and (many[1, 4:] == HIDDEN).all()
        assert (few[0, :3] >= 0).all() and (few[1, :4] >= 0).all()


def test_without_padding_lengths_change_nothing():
    tokenizer, x = build(), sound(2, 24)
    for lengths in (None, torch.tensor([24, 24]), torch.tensor([24, 20])):
        found = tokenizer(x, Condition(lengths=lengths), moment(count=2)).losses.terms
        if lengths is None:
            whole = found
        else:
            assert (found["commitment_loss"] == whole["commitment_loss"]) and (
                (found["reconstruction_loss"] == whole["reconstruction_loss"]) == bool((lengths == 24).all())
            )


@pytest.mark.parametrize("name", PRIORS)
def test_the_loss_of_a_prior_that_draws_samples_leaves_padding_out(name):
    torch.manual_seed(0)
    codes = torch.randint(0, 8, (2, 24))
    prior = TABLES["prior"][name](layout=(Grid((24,), 8),), **PRIORS[name])
    for parameter in prior.parameters():  # some begin at 0
        parameter.data.normal_(0, 0.3)
    loss = prior((codes,), Condition(lengths=LENGTHS)).total
    other = torch.where(counted(LENGTHS, 24), codes, 0)
    assert prior((other,), Condition(lengths=LENGTHS)).total == loss != prior((other,)).total
    (nats,) = prior.eval().nll((codes,))
    assert loss.item() == pytest.approx(float(nats[counted(LENGTHS, 24)].mean()), rel=1e-5)


def test_measurements_leave_padding_out():
    waves = to_int16(padded(24).float())
    longer = to_int16(padded(240).float())
    for options, measure in (({}, measure_tokenizer), (WAVENET, measure_nats)):
        found, with_more = (
            measure(build(**options), [ImageBatch(each, None, LENGTHS)])
            for each in (longer, torch.cat([longer] * 2, 2))
        )
        for name in found.keys() - {"grids"}:
            assert found[name] == pytest.approx(with_more[name], rel=1e-4), name
    usage = LayoutUsage(build().layout)
    measure_tokenizer(build(), [ImageBatch(waves, None, LENGTHS)], usage)
    assert int(usage.counts[0].sum()) == 3 + 4


def test_the_end_of_a_short_clip_is_no_worse_than_its_middle():
    """A decoder that learnt a tone in padded windows keeps to it until the clip's last sample."""
    tokenizer = build(16 * HOP, reconstruction="l1").train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=1e-2)
    wave = torch.sin(torch.arange(16 * HOP) * 0.7)[None, None] / 2
    x = torch.where(torch.arange(16 * HOP) < 40, wave, 0)
    for step in range(60):
        optimizer.zero_grad()
        tokenizer(x, Condition(lengths=torch.tensor([40])), moment(step, count=1)).losses.total.backward()
        optimizer.step()
        tokenizer.after_step(step, 0)
    errors = (tokenizer.eval().reconstruct(x) - x)[0, 0, :40].abs().view(5, 8).mean(1)
    assert errors.mean() < 0.15 and errors[-1] <= 2 * errors.median()


def test_codes_of_padding_count_nowhere():
    codes = (torch.tensor([[0, 1, HIDDEN], [HIDDEN, HIDDEN, HIDDEN]]),)
    usage = LayoutUsage((Grid((3,), 4),))
    usage.add(codes)
    assert usage.counts[0].tolist() == [1, 1, 0, 0]
    assert float(perplexities(codes, (Grid((3,), 4),))["batch_perplexity"]) == pytest.approx(2)


def test_coarser_codes_that_begin_after_the_end_are_padding():
    tokenizer = build(8 * HOP, quantizer="multiscale")
    codes = tokenizer.hide_padding(tokenizer.encode(sound(1, 8 * HOP)), torch.tensor([2 * HOP + 1]))
    for grid in codes:
        kept = [site * 8 // grid.shape[1] < 3 and site * 8 / grid.shape[1] < (2 * HOP + 1) / HOP for site in
                range(grid.shape[1])]  # fmt: skip
        assert (grid[0] != HIDDEN).tolist() == kept


def test_a_mean_counts_each_item_up_to_its_length():
    values = torch.tensor([[[1.0, 3.0, 50.0]], [[5.0, 70.0, 90.0]]])
    assert mean_of_counted(values, torch.tensor([2, 1])) == 3 and mean_of_counted(values, None) == values.mean()


def test_noise_of_sites_is_that_of_each_sites_own_and_does_not_depend_on_how_many_there_are():
    sites = torch.tensor([[True, False, True], [True, True, False]])
    wide = torch.cat([sites, torch.zeros(2, 4, dtype=torch.bool)], 1)
    noise = Noise(3, 5, 2)
    found = noise.of_sites(sites).uniforms("x", 4)
    assert found.shape == (4, 4) and torch.equal(found, noise.of_sites(wide).uniforms("x", 4))
    assert torch.equal(found[0], noise.of("site", 0).uniforms("x", 4)[0])
    assert not torch.equal(found[0], found[1])
    later = Noise(3, 6, 1).of_sites(sites[1:])
    assert torch.equal(later.uniforms("x", 4), found[2:])

"""Priors that are conditioned on features, as the decoder of a tokenizer over codes is.

Shapes: b batch, D channels of the features.
"""

import inspect
import json

import pytest
import torch
from small_priors import NAMES, SMALL, build_prior, random_codes

from codegrid.codes import Condition, Grid, Moment
from codegrid.noise import Noise
from codegrid.registry import TABLES
from codegrid.sampling_config import SamplingConfig
from codegrid.stage1_vqvae.code_tokenizer import CodeTokenizer

D = 3
TAKING = [name for name in NAMES if "given_features" in inspect.signature(TABLES["prior"][name]).parameters]
every_prior = pytest.mark.parametrize("name", TAKING)


def draw_features(prior, count, shape):
    return torch.randn(count, D, *shape, generator=torch.Generator().manual_seed(1)).to(prior.device, torch.float64)


def make(name, given=(), **options):
    if given:
        options |= {"grids": (1,), "given_grids": (0,), "given_layout": given, "coarse_dropout": 0.0}
    return build_prior(name, (8,), (3, 4), given_features=D, decided=5, **options)


@every_prior
@pytest.mark.parametrize("shape", [(1, 1), (3, 4)], ids=str)
@torch.no_grad()
def test_every_code_sees_the_features_and_earlier_codes_alone(name, shape):
    prior = make(name)
    codes, features = random_codes(prior), draw_features(prior, 2, shape)
    (logits,) = prior.logits(codes, Condition(features=(features,)))
    for channel in range(D):
        moved = features.clone()
        moved[:, channel] += 1
        (found,) = prior.logits(codes, Condition(features=(moved,)))
        assert (found != logits).any(1).all()
    last = codes[0].clone()
    last[:, -1, -1] = (last[:, -1, -1] + 1) % 8
    (found,) = prior.logits((last,), Condition(features=(features,)))
    assert torch.equal(found, logits)


@every_prior
@pytest.mark.parametrize("shape", [(1, 1), (3, 4)], ids=str)
@pytest.mark.parametrize("given", [(), (Grid((2, 2), 5),)], ids=["alone", "beside coarser grids"])
def test_the_cached_sampler_draws_the_codes_of_the_plain_one(name, shape, given):
    prior = make(name, given)
    coarser = tuple(torch.randint(0, 5, (4, 2, 2)) for _ in given)
    condition = Condition(codes=coarser, features=(draw_features(prior, 4, shape),))
    plain, cached = (
        list(prior.sample(condition, Noise(0, 0, 4), SamplingConfig(), backend=backend))[-1].codes[0]
        for backend in ("plain", "torch")
    )
    assert torch.equal(plain, cached)


@every_prior
def test_it_is_the_decoder_of_a_tokenizer_over_codes(name):
    options = {**SMALL[name], "hidden_channels": 6, "num_embeddings": 8, "embedding_dim": 2}
    tokenizer = CodeTokenizer([Grid((2, 3), 5)], decoder=name, num_latents=2, **options).eval()
    x = (torch.randint(0, 5, (4, 2, 3)),)
    losses = tokenizer(x, moment=Moment(0, 1, Noise(0, 0, 4))).losses
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in tokenizer.encoder.parameters())
    again = CodeTokenizer(**json.loads(json.dumps(tokenizer.config))).eval()
    again.load_state_dict(tokenizer.state_dict())
    assert again.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(again.reconstruct(x)[0], tokenizer.reconstruct(x)[0])

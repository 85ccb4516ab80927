"""Devices by name, and those on which some numbers cannot be."""

import os

import pytest
import torch
from torch.overrides import TorchFunctionMode
from untrained import make_pipeline

from codegrid.codes import Condition, Moment
from codegrid.devices import find_device
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.pipelines.running.device import choose_device
from codegrid.pipelines.running.settings import Compute
from codegrid.sampling_config import SamplingConfig
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.stage1_vqvae.usage import perplexity
from codegrid.stage2_prior.likelihood import measure


@pytest.mark.parametrize("name", ["cuda:77", "cpu:3", "gpu", "meta", "mps:9", "", "cuda:x"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(InputError, match=f"`device` {name}: torch .*use"):
        find_device(name)


def test_each_command_of_a_program_has_the_device_that_it_asks_for(monkeypatch):
    monkeypatch.setattr("codegrid.pipelines.running.device.find_device", torch.device)  # as if it were there
    names = ["cpu", "meta", "cuda:1", "cpu"]
    assert [str(choose_device(Compute(device=name))) for name in names] == names
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ


class WithoutFloat64(TorchFunctionMode):
    """Refuses all results in float64, but for numbers that are drawn on the CPU for whatever device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        is_drawing = function in (torch.rand, torch.from_numpy)
        assert is_drawing or not isinstance(made, torch.Tensor) or made.dtype != torch.float64, function
        return made


def test_training_drawing_and_measuring_need_no_float64_where_a_device_has_none(monkeypatch):
    """As on Apple's, which these tests never meet."""
    monkeypatch.setattr("codegrid.devices.NO_FLOAT64", {"cpu"})
    pipeline, moment = make_pipeline(), Moment(0, 9, noise := Noise(0, count=4))
    tokenizer, (prior,) = pipeline.tokenizer, pipeline.priors
    quantizer = QUANTIZERS["clustered"](num_embeddings=16, embedding_dim=4, anchors="probabilistic").train()
    assert noise.normals("n", 3).dtype == torch.float32
    with WithoutFloat64():
        quantizer(torch.randn(4, 4, 6), moment)
        quantizer.after_step(0, 0)
        codes = tokenizer(torch.zeros(4, 1, 12, 20), moment=moment).codes
        assert perplexity(torch.bincount(codes[0].flatten(), minlength=16)) >= 1
        prior(codes, Condition(torch.zeros(4, dtype=torch.int64)), moment).total.backward()
        *_, last = prior.sample(Condition(), noise, SamplingConfig(temperature=0.5, top_p=0.9))
    assert measure(prior, [(last.codes, Condition())]).at_sites[0].dtype == torch.float64, "what is told is, on the CPU"

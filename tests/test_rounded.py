"""Models whose weights are rounded to float16: folders of half the bytes, from which the same models are loaded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from untrained import make_pipeline

from codegrid import TwoStagePipeline, load
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import export_codes
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.prior import train_prior
from codegrid.pipelines.training.tokenizer import train_tokenizer


@pytest.mark.parametrize("part", [0, 1])
def test_a_rounded_model_is_saved_in_half_the_bytes_and_loads_to_the_same_numbers(tmp_path, part):
    pipeline = make_pipeline()
    model = (pipeline.tokenizer, *pipeline.priors)[part]
    model.save_pretrained(tmp_path / "whole")
    before = model.fingerprint()
    model.round_to_half()
    model.save_pretrained(tmp_path / "half")
    assert model.fingerprint() != before
    again = load(tmp_path / "half")
    assert again.fingerprint() == model.fingerprint()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    sizes = [sum(x.nbytes for x in load_file(tmp_path / it / "model.safetensors").values()) for it in ("whole", "half")]
    assert sizes[1] == sizes[0] / 2
    assert {x.dtype for x in again.state_dict().values()} == {torch.float32}


def test_numbers_that_float16_cannot_hold_stay_finite_when_a_model_is_rounded():
    model = make_pipeline().tokenizer
    with torch.no_grad():
        next(model.parameters()).fill_(1e6)
    model.round_to_half()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_models_that_are_rounded_in_training_belong_together(tmp_path, bars_file):
    tokenizer, codes, prior = (str(tmp_path / name) for name in ("tokenizer", "codes", "prior"))
    images = {"dataset": str(bars_file)}
    small = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 8}
    train_tokenizer(TrainTokenizer(**images, output=tokenizer, steps=2, batch_size=8, half=True, options=small))
    export_codes(ExportCodes(**images, tokenizer=(tokenizer,), output=codes))
    options = {"channels": 8, "num_layers": 2}
    train_prior(TrainPrior(codes=codes, tokenizer=(tokenizer,), output=prior, steps=2, half=True, options=options))
    pipeline = TwoStagePipeline.from_parts(tokenizer, prior)  # raises if the prior learnt other codes
    for folder in (tokenizer, prior):
        assert {x.dtype for x in load_file(Path(folder) / "model.safetensors").values()} == {torch.float16}
    assert pipeline.sample(1, seed=0, progress=False).images.isfinite().all()

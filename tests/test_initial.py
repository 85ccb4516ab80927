"""Models that start from the weights of another one: `init_from`."""

import pytest
import torch

from codegrid.codes import Grid, Moment, Signal
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.pipelines.running.options import resolve_options
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.initial import load_initial, start_from, with_options_of
from codegrid.pipelines.training.tokenizer import check_codebook
from codegrid.stage1_vqvae.tokenizer import VQVAE
from codegrid.stage2_prior.pixelcnn.network import GatedPixelCNN
from codegrid.tensors import inherit_tensors


def make_vqvae(quantizer="ema", num_embeddings=16, **options):
    sizes = {"hidden_channels": 8, "embedding_dim": 4, "num_embeddings": num_embeddings, **options}
    return VQVAE(Signal("image", 1, (8, 8)), quantizer=quantizer, **sizes)


@pytest.mark.parametrize("quantizer", ["ema", "gradient", "clustered", "residual"])
def test_a_larger_codebook_keeps_the_entries(quantizer, capsys):
    old, new = make_vqvae(quantizer), make_vqvae(quantizer, 24)
    before = new.quantizer.entries(0).clone()
    start_from(new, old, "old")
    for grid in range(len(old.layout)):
        assert torch.equal(new.quantizer.entries(grid)[:16], old.quantizer.entries(grid))
    assert torch.equal(new.quantizer.entries(0)[16:], before[16:])
    assert torch.equal(new.encoder[0].weight, old.encoder[0].weight)
    said = capsys.readouterr().out
    assert "other settings: num_embeddings; new weights: 8 of 24 rows of quantizer." in said
    assert new.provenance["init_from"] == old.fingerprint()


def test_entries_that_are_added_come_into_use():
    old, new = make_vqvae(), make_vqvae(num_embeddings=24)
    start_from(new, old, "old")
    added = new.quantizer.entries(0)[16:].clone()
    images = torch.randn(64, 1, 8, 8)
    for step in range(3):
        new(images, moment=Moment(step, 3, Noise(0, 0, 64)))
        new.after_step(step, 0)
    assert (new.quantizer.entries(0)[16:] != added).any(1).all()


def test_a_smaller_codebook_is_refused_and_one_of_another_kind_is_new():
    with pytest.raises(InputError, match="`init_from`: its codebook has 16 codes, more than 8"):
        check_codebook(make_vqvae(num_embeddings=8), make_vqvae())
    check_codebook(VQVAE(quantizer="fsq", hidden_channels=8, fsq_levels=[2, 2]), make_vqvae())


def test_options_that_are_not_given_are_those_of_the_model_but_for_the_start():
    config = make_vqvae("residual", codebook="clustered", kmeans_steps=5, anchors="random", decay=0.9).config
    wanted = TrainTokenizer(output="", quantizer="residual", options={"decay": 0.5})
    resolved = resolve_options(with_options_of(wanted, config))
    expected = {"codebook": "clustered", "anchors": "random", "decay": 0.5, "kmeans_steps": 0, "hidden_channels": 8}
    assert resolved.items() >= expected.items()


def make_prior(classes, num_embeddings=8, label_dropout=0.1):
    options = {"channels": 4, "num_layers": 2, "label_dropout": label_dropout}
    prior = GatedPixelCNN((Grid((2, 3), num_embeddings),), num_classes=len(classes), **options)
    prior.provenance["classes"] = list(classes)
    return prior


def test_a_prior_of_other_classes_keeps_those_of_the_same_name(capsys):
    old, new = make_prior(["ant", "bee"]), make_prior(["bee", "cat", "dog"], num_embeddings=10)
    before = [layer.condition.weight.clone() for layer in new.network.layers]
    start_from(new, old, "old")
    for layer, of_old, fresh in zip(new.network.layers, old.network.layers, before, strict=True):
        table, known = layer.condition.weight, of_old.condition.weight
        assert torch.equal(table[0], known[1]) and torch.equal(table[3], known[2]), "bee, and no particular one"
        assert torch.equal(table[1:3], fresh[1:3])
    assert torch.equal(new.network.embeddings[0].weight[:8], old.network.embeddings[0].weight)
    said = capsys.readouterr().out
    assert "2 of 4 rows of network.layers.0.condition.weight" in said and "2 of 10 rows of network.emb" in said


def test_a_prior_takes_the_layers_of_one_without_classes():
    old, new = make_prior([]), make_prior(["ant"])
    assert new.inherit(old) == [f"network.layers.{layer}.condition.weight" for layer in range(2)]
    assert torch.equal(new.network.layers[1].vertical.weight, old.network.layers[1].vertical.weight)
    assert make_prior([]).inherit(new) == []


def test_tensors_of_other_shapes_stay_as_they_are():
    new = {"wide": torch.zeros(3, 4), "short": torch.zeros(2, 2), "number": torch.zeros(()), "new": torch.zeros(1)}
    old = {"wide": torch.ones(3, 5), "short": torch.ones(3, 2), "number": torch.ones(())}
    assert inherit_tensors(new, old, {}) == ["wide", "short", "new"]
    assert new["number"] == 1 and not any(new[name].any() for name in ("wide", "short", "new"))


def test_a_model_of_another_class_is_no_start(tmp_path):
    make_prior([]).save_pretrained(tmp_path)
    settings = TrainPrior(output="o", codes="c", init_from=str(tmp_path))
    with pytest.raises(InputError, match=r"`init_from` .* is a pixelcnn prior: give `model` pixelcnn"):
        load_initial(settings, "prior", "another")
    with pytest.raises(InputError, match="holds a prior"):
        load_initial(settings, "tokenizer", "vqvae")

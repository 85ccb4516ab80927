"""A tokenizer over the codes of another one: three codes for all of an image's, and back by drawing.

Shapes: b batch, h w code grid below, K num_embeddings.
"""

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from written_codes import HEADER, LAYOUTS, draw_codes, export, shard_of

from codegrid import TwoStagePipeline, load
from codegrid.codes import HIDDEN, Condition, Grid, Signal
from codegrid.data.codes import CodeDataset
from codegrid.data.images import to_float
from codegrid.data.sources import load_images
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.pipelines.decode_codes import DecodeCodes
from codegrid.pipelines.diagnosis.run import examine
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.codes_of_codes import capacity_of, gradient_norms, measure_codes_of_codes
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.artifacts import find_artifacts
from codegrid.pipelines.generation.decoding import decode_codes
from codegrid.pipelines.generation.encoding import export_codes
from codegrid.pipelines.generation.sampling import sample
from codegrid.pipelines.generation.tokenizers import load_tokenizer
from codegrid.pipelines.sample import Sample
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.checkpoints import Checkpoints
from codegrid.pipelines.training.code_tokenizer import open_lower_codes
from codegrid.pipelines.training.prior import train_prior
from codegrid.pipelines.training.tokenizer import train_tokenizer
from codegrid.pipelines.view import View
from codegrid.pipelines.viewer.run import load_models
from codegrid.sampling_config import SamplingConfig
from codegrid.stage1_vqvae.code_tokenizer import CodeTokenizer
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.stage1_vqvae.stacked import StackedTokenizer
from codegrid.stage1_vqvae.tokenizer import VQVAE

SMALL = {"hidden_channels": 6, "channels": 6, "num_layers": 2, "condition_channels": 8}
BOOKS = {"num_embeddings": 8, "embedding_dim": 2}


def build(*grids, decided=5, **options):
    torch.manual_seed(0)
    tokenizer = CodeTokenizer(grids or [Grid((2, 3), 5)], **{**SMALL, **BOOKS, **options}).eval()
    with torch.no_grad():  # as decided as after training
        for head in tokenizer.decoder.network.heads:
            head[-1].weight *= decided
        for layer in tokenizer.decoder.network.layers:
            layer.of_map.weight *= 5
    return tokenizer


def codes_of(tokenizer, count=4):
    return draw_codes(tokenizer.over, count)


def same(*drawn):
    return all(torch.equal(*grids) for grids in zip(*drawn, strict=True))


def random_triples(tokenizer, count=4):
    return draw_codes(tokenizer.layout, count, seed=1)


@pytest.mark.parametrize("shape", [(7, 7), (21, 5), (1, 6), (2, 2)], ids=str)
def test_a_grid_of_any_size_becomes_three_codes_and_comes_back(shape):
    tokenizer = build(Grid(shape, 5))
    codes = tokenizer.encode(codes_of(tokenizer))
    assert [tuple(grid.shape) for grid in codes] == [(4, 1, 1)] * 3 and tokenizer.layout == (Grid((1, 1), 8),) * 3
    (again,) = tokenizer.decode(codes)
    assert again.shape == (4, *shape) and again.dtype == torch.int64 and 0 <= again.min() <= again.max() < 5
    assert tokenizer.signal == Signal("codes", 1, shape)


def test_several_codes_a_site_go_through_together():
    tokenizer = build(Grid((2, 3), 5), Grid((2, 3), 4))
    x = codes_of(tokenizer)
    assert [grid.shape for grid in tokenizer.reconstruct(x)] == [(4, 2, 3)] * 2
    assert tokenizer.nll(x, tokenizer.encode(x)).shape == (4,) and tokenizer.num_codes == 12


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_makes_codes_of_an_image_and_is_rebuilt(quantizer):
    options = {} if quantizer in ("product", "residual") else {"num_latents": 2}
    tokenizer = CodeTokenizer([Grid((2, 3), 5)], quantizer=quantizer, **SMALL, **options).eval()
    x = codes_of(tokenizer)
    assert {grid.shape for grid in tokenizer.layout} == {(1, 1)}
    again = CodeTokenizer(**json.loads(json.dumps(tokenizer.config))).eval()
    again.load_state_dict(tokenizer.state_dict())
    assert again.fingerprint() == tokenizer.fingerprint() and again.over == tokenizer.over
    assert same(again.encode(x), tokenizer.encode(x))


def test_each_latent_has_a_codebook_of_its_own():
    tokenizer = build()
    books = tokenizer.quantizer.books
    assert len(books) == 3 and sum(book.codebook.numel() for book in books) == 3 * 8 * 2
    codes = random_triples(tokenizer)
    before = tokenizer.decode(codes)
    order = torch.randperm(8)
    books[1].codebook.copy_(books[1].codebook[order].clone())
    assert not same(before, tokenizer.decode(codes))
    moved = order.argsort()[codes[1]]  # where its entries lie now
    assert same(before, tokenizer.decode((codes[0], moved, codes[2])))


@torch.no_grad()
def test_the_decoder_sees_earlier_codes_and_the_whole_triple_and_nothing_else():
    tokenizer = build(Grid((2, 3), 5), decided=1).double()
    (x,), vectors = codes_of(tokenizer, 1), torch.randn(1, 6, 1, 1, dtype=torch.float64)
    (logits,) = tokenizer.decoder.logits((x,), Condition(features=(vectors,)))
    flat = logits.flatten(2)
    for site in range(6):
        other = x.clone()
        other.view(-1)[site:] = (other.view(-1)[site:] + 1) % 5
        (found,) = tokenizer.decoder.logits((other,), Condition(features=(vectors,)))
        assert torch.equal(found.flatten(2)[..., : site + 1], flat[..., : site + 1])
    for number in range(6):
        moved = vectors + torch.eye(6, dtype=torch.float64)[number].view(1, 6, 1, 1)
        (found,) = tokenizer.decoder.logits((x,), Condition(features=(moved,)))
        assert (found != logits).any(1).all()


def test_every_backend_draws_the_same_codes_and_the_same_as_one_by_one():
    tokenizer = build(Grid((4, 3), 5))
    vectors = tokenizer.quantizer.look_up(random_triples(tokenizer))
    drawn = {}
    for backend in ("plain", "torch", "native"):
        given = Condition(features=(vectors,))
        *_, last = tokenizer.decoder.sample(given, Noise(0, 0, 4), SamplingConfig(), backend=backend)
        drawn[backend] = last.codes
    assert same(drawn["plain"], drawn["torch"]) and same(drawn["plain"], drawn["native"])


def test_decoding_draws_with_the_noise_that_it_is_given():
    tokenizer = build(Grid((4, 3), 5))
    codes = random_triples(tokenizer)
    drawn = tokenizer.decode(codes)
    assert same(drawn, tokenizer.decode(codes)) and same(drawn, tokenizer.decode(codes, noise=Noise(0, 0, 4)))
    assert not same(drawn, tokenizer.decode(codes, noise=Noise(1, 0, 4)))
    alone = tokenizer.decode(tuple(grid[2:3] for grid in codes), noise=Noise(0, 2, 1))
    assert same(alone, tuple(grid[2:3] for grid in drawn))


@torch.no_grad()
def test_the_likelihoods_of_all_grids_given_a_triple_add_up_to_one():
    tokenizer = build(Grid((2, 2), 3), decided=50)
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    triple = tuple(grid.expand(81, 1, 1) for grid in random_triples(tokenizer, 1))
    torch.testing.assert_close(tokenizer.nll((every,), triple).neg().exp().sum(), torch.tensor(1.0))


def test_the_weight_of_the_nats_is_one_setting_and_its_gradient_is_told():
    x = codes_of(build())
    once, thrice = (build(auxiliary_weight=1.0, reconstruction_weight=weight) for weight in (1.0, 3.0))
    terms, others = once(x).losses.terms, thrice(x).losses.terms
    for name in ("reconstruction_loss", "auxiliary_loss"):
        torch.testing.assert_close(others[name], 3 * terms[name])
    torch.testing.assert_close(others["commitment_loss"], terms["commitment_loss"])
    # Eq. 3, divided by D: nats summed over an image, squares as means
    torch.testing.assert_close(terms["reconstruction_loss"], once.nll(x, once.encode(x)).mean() / 6)
    norms = gradient_norms(once, x)
    assert set(norms) == {"reconstruction_gradient", "auxiliary_gradient", "commitment_gradient"}
    assert all(value > 0 for value in norms.values())


def test_by_default_there_is_no_auxiliary_head():
    tokenizer = build()
    assert tokenizer.auxiliary is None and "auxiliary_loss" not in tokenizer(codes_of(tokenizer)).losses.terms


def test_codes_in_use_are_counted_alone_and_together():
    tokenizer = build(Grid((2, 3), 5))
    x = codes_of(tokenizer, 6)
    triples = torch.stack([grid.flatten() for grid in tokenizer.encode(x)], 1)
    twice = tuple(torch.cat([grid, grid[:2]]) for grid in x)
    measured = measure_codes_of_codes(
        tokenizer, [tuple(grid[part] for grid in twice) for part in (slice(1), slice(1, 5), slice(5, 8))]
    )
    _, counts = torch.cat([triples, triples[:2]]).unique(dim=0, return_counts=True)
    shares = counts.double() / 8
    assert measured["distinct"] == len(counts) and capacity_of(tokenizer) == 9
    assert measured["joint_bits"] == pytest.approx(float(-(shares * shares.log2()).sum()))
    assert len(measured["grids"]) == 3 and 0 <= measured["accuracy"] <= 1
    assert measured["bits_per_code"] == pytest.approx(measured["bits_per_image"] / 6)
    others = tuple(grid.roll(1, 0) for grid in tokenizer.encode(twice))
    swapped = float(tokenizer.nll(twice, others).mean()) / np.log(2)
    assert measured["swapped_bits_per_image"] == pytest.approx(swapped, rel=1e-5)


def test_an_unfinished_draw_is_shown_by_what_its_first_codes_allow():
    tokenizer = build()
    codes = random_triples(tokenizer, 3)
    drawn = tuple(torch.tensor([True, number < 2, False]).view(3, 1, 1) for number in range(3))
    (shown,), (whole,) = tokenizer.preview(codes, drawn), tokenizer.decode(codes)
    assert torch.equal(shown[0], whole[0]) and (shown[1] != HIDDEN).all() and (shown[2] == HIDDEN).all()


BAD = [
    (
        lambda: build(Grid((2, 3), 5), Grid((4, 6), 5)),
        "`over` 2×3 codes out of 5, 4×6 codes out of 5: a tokenizer over",
    ),
    (
        lambda: build(Grid((7,), 5)),
        "`over` 7 codes out of 5: a tokenizer over codes needs grids \\(h, w\\) of one shape",
    ),
    (
        lambda: CodeTokenizer(decoder="toy-uniform"),
        "`decoder` toy-uniform: such a prior cannot be conditioned on",
    ),
    (lambda: build(quantizer="vq"), "`quantizer` 'vq': no quantizer has this name"),
    (lambda: build(depth=3), "`depth`: EMAQuantizer has no such option"),
    (lambda: build().encode(torch.zeros(1, 2, 3)), "`x` is one tensor: it must be a tuple of 1"),
    (lambda: build().encode((torch.zeros(1, 2, 3),)), "`x` of grid 0 are float32: they must be whole numbers"),
    (
        lambda: build().encode((torch.zeros(1, 3, 3).long(),)),
        r"`x` of grid 0 have the shape \(1, 3, 3\), not \(b, 2, 3\)",
    ),
    (lambda: build().encode((torch.full((1, 2, 3), 5),)), "`x` of grid 0: code 5, but its codes are 0 to 4"),
    (lambda: build().decode(draw_codes([Grid((1, 1), 8)])), "`codes` is a tuple of 1: it must be a tuple of 3"),
    (
        lambda: build().decoder.logits(draw_codes([Grid((2, 3), 5)])),
        r"`features` \[\]: this prior must be given one tensor \(25, 6, 1, 1\)",
    ),
    (
        lambda: TrainTokenizer(output="o", over="c", flip=True),
        "`flip` is for images, but `over` trains on codes: leave one of them out",
    ),
    (lambda: TrainTokenizer(output="o", over="c", dataset="mnist5k"), "`dataset` is for images, but `over` trains on"),
    (lambda: TrainTokenizer(output="o", validation_codes="c"), "`validation_codes` is for a tokenizer over codes"),
    (
        lambda: train_tokenizer(TrainTokenizer(output="o", model="codes")),
        "`model` codes learns another tokenizer's codes: give their folder as `over`",
    ),
    (
        lambda: train_tokenizer(TrainTokenizer(output="o", over="c")),
        "`over`: a vqvae tokenizer learns images: give `model` codes, or leave it out",
    ),
]


@pytest.mark.parametrize("ask,reason", BAD, ids=[reason[:40] for _, reason in BAD])
def test_bad_input_is_one_line(ask, reason):
    import toy_priors  # noqa: F401  registers a prior that takes no features

    with pytest.raises(InputError, match=reason) as caught:
        ask()
    assert "\n" not in str(caught.value)


def test_codes_that_do_not_name_their_tokenizer_are_refused(tmp_path):
    np.savez(tmp_path / "codes.npz", codes=np.zeros((9, 2, 3), dtype=np.int64))
    with pytest.raises(InputError, match="does not name its tokenizer: give codes that export-codes wrote"):
        open_lower_codes(str(tmp_path / "codes.npz"))


TRAINING = {
    "model": "codes", "steps": 6, "batch_size": 16, "precision": "fp32", "validate_every": 3,
    "options": {**SMALL, **BOOKS},
}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(small_run, tmp_path_factory):
    """A run of a tokenizer over the codes of `small_run`: tokenizer/, codes/ and prior/."""
    run = tmp_path_factory.mktemp("pairs")
    train_tokenizer(
        TrainTokenizer(run=str(run), output=str(run / "tokenizer"), over=str(small_run / "codes"), **TRAINING)
    )
    export_codes(ExportCodes(run=str(run)))
    train_prior(
        TrainPrior(
            run=str(run),
            output=str(run / "prior"),
            steps=4,
            batch_size=16,
            precision="fp32",
            validate_every=2,
            options={"channels": 8, "num_layers": 2},
        )
    )
    return run


def test_a_killed_training_ends_as_one_that_never_stopped(pairs, small_run, tmp_path, monkeypatch):
    settings = TrainTokenizer(output=str(tmp_path / "t"), over=str(small_run / "codes"), save_every=2, **TRAINING)
    save = Checkpoints.save

    def save_and_die(self, step, history):
        save(self, step, history)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", save_and_die)
        train_tokenizer(settings)
    train_tokenizer(settings)
    whole, again = load(pairs / "tokenizer"), load(tmp_path / "t")
    assert again.fingerprint() == whole.fingerprint() and again.provenance == whole.provenance


def test_a_trained_one_tells_what_it_learnt_from_and_how_well(pairs, small_run):
    tokenizer = load(pairs / "tokenizer")
    told = tokenizer.provenance
    assert told["tokenizer_fingerprint"] == load(small_run / "tokenizer").fingerprint()
    assert {"bits_per_image", "swapped_bits_per_image", "accuracy", "joint_bits", "distinct", "grids"} <= set(
        told["metrics"]
    )
    assert {"bits_per_image", "reconstruction_gradient", "commitment_gradient", "batch_perplexity_2"} <= set(
        told["history"][-1]
    )
    assert (pairs / "tokenizer" / "reconstructions.png").is_file()


def test_images_go_through_both_tokenizers_and_the_first_is_found(pairs, small_run, tmp_path):
    stack = load_tokenizer(pairs / "tokenizer")
    first, second = load(small_run / "tokenizer"), load(pairs / "tokenizer")
    images = torch.rand(3, 1, 12, 20) * 2 - 1
    codes = stack.encode(images)
    assert same(codes, second.encode(first.encode(images))) and stack.layout == second.layout
    assert stack.decode(codes).shape == images.shape and stack.signal == first.signal
    assert not torch.equal(stack.decode(codes), stack.decode(codes, noise=Noise(1, 0, 3)))
    assert torch.equal(stack.reconstruct(images), stack.decode(codes))
    assert (stack.preview(codes, tuple(torch.zeros_like(grid, dtype=torch.bool) for grid in codes)) == 0).all()
    assert [bool(kept) for kept in stack.kept_sites(torch.ones(12, 20))] == [True] * 3
    assert CodeDataset(pairs / "codes").header.tokenizer_fingerprint == second.fingerprint()


def test_codes_are_decoded_and_samples_drawn_through_both(pairs, small_run, tmp_path):
    both = (str(small_run / "tokenizer"), str(pairs / "tokenizer"))
    decode_codes(DecodeCodes(tokenizer=both, codes=str(pairs / "codes"), output=str(tmp_path / "d")))
    sample(Sample(tokenizer=both, prior=str(pairs / "prior"), output=str(tmp_path / "s"), num_samples=3))
    assert np.load(tmp_path / "s" / "samples.npz")["arr_0"].shape == (3, 12, 20, 1)
    assert len(np.load(tmp_path / "d" / "images.npz")["arr_0"]) == len(CodeDataset(pairs / "codes"))


def test_both_are_measured_together_beside_what_can_come_through(pairs, bars_file, tmp_path):
    data = {"dataset": "npz", "data_root": str(bars_file)}
    found = evaluate(Evaluate(run=str(pairs), output=str(tmp_path / "e"), **data))
    first, second = load_tokenizer(pairs / "tokenizer").stack
    images = to_float(load_images("npz", str(bars_file), "test").batch(range(6)).images)
    below = first.encode(images)
    bits = float(second.nll(below, second.encode(below)).double().mean()) / math.log(2)
    assert found["images"] == 6 and found["lower_bits_per_image"] == pytest.approx(bits)
    assert found["upper_capacity"] == 9 and {"swapped_lower_bits_per_image", "upper_distinct"} <= set(found)
    # the images cost what their own decoder makes of their own codes, and these what they cost given the triple
    assert found["decoder_bits_per_image"] > bits
    total = (found["decoder_bits_per_image"] + found["bits_per_image"]) / (12 * 20)
    assert found["bound_bits_per_dim"] == pytest.approx(total)


def test_the_doctor_looks_at_codes_and_prior_and_leaves_the_drawing_decoder_alone(pairs):
    report = examine(find_artifacts("cpu", str(pairs)), num_samples=16)
    assert any("the decoder draws them" in words for words in report.left_out)
    assert "reconstruction_error" not in report.metrics and not report.images
    assert not [finding for finding in report.findings if finding.stage == "pairing"]


def test_a_second_training_starts_from_the_first_ones_weights(pairs, small_run, tmp_path):
    more = {**TRAINING, "steps": 1, "options": {}, "init_from": str(pairs / "tokenizer")}
    train_tokenizer(TrainTokenizer(output=str(tmp_path / "t"), over=str(small_run / "codes"), **more))
    again, before = load(tmp_path / "t"), load(pairs / "tokenizer")
    assert again.config == before.config and again.provenance["init_from"] == before.fingerprint()


def test_the_viewer_and_a_card_use_both(pairs, small_run):
    tokenizer, pipeline = load_models(View(run=str(pairs)))
    assert tokenizer is pipeline.tokenizer and tokenizer.upper.fingerprint() == pipeline.tokenizer.fingerprint()
    card = (pairs / "tokenizer" / "README.md").read_text()
    assert "codegrid decode-codes --tokenizer FIRST MODEL" in card and "27" not in card.partition("## Settings")[0]


def test_a_pipeline_of_both_is_saved_and_loaded_again(pairs, tmp_path):
    pipeline = TwoStagePipeline.from_parts(pairs / "tokenizer", pairs / "prior")
    pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer-0").is_dir() and (tmp_path / "tokenizer-1").is_dir()
    again = load(tmp_path)
    assert torch.equal(
        again.sample(2, seed=3, progress=False).images, pipeline.sample(2, seed=3, progress=False).images
    )


def test_each_link_of_the_chain_refuses_a_stranger_by_name(pairs, small_run, tmp_path):
    first, second = load(small_run / "tokenizer"), load(pairs / "tokenizer")
    other = VQVAE(first.signal, **{**{name: first.config[name] for name in ("hidden_channels",)}, **BOOKS}).eval()
    with pytest.raises(InputError, match="upper tokenizer was trained on the codes of another one"):
        StackedTokenizer(other, second)
    with pytest.raises(InputError, match="a tokenizer of images cannot follow another one"):
        StackedTokenizer(first, other)
    with pytest.raises(InputError, match="this prior was trained on the codes of another tokenizer"):
        TwoStagePipeline(first, load(pairs / "prior"))
    with pytest.raises(InputError, match="holds codes of another tokenizer"):
        decode_codes(DecodeCodes(tokenizer=str(small_run / "tokenizer"), codes=str(pairs / "codes"), output="o"))
    moved = tmp_path / "second"
    shutil.copytree(pairs / "tokenizer", moved)
    record = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps({**record, "lower_tokenizer": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match="encodes the codes of another tokenizer, which is not found: give `t"):
        load_tokenizer(moved)


def test_codes_of_several_shapes_are_refused_before_training(tmp_path):
    layout = LAYOUTS["pyramid"]
    codes = draw_codes(layout)
    header = replace(HEADER, grids=[grid.as_json() for grid in layout])
    export(tmp_path / "codes", header, lambda rows: shard_of(rows, codes))
    with pytest.raises(InputError, match="`over` 2×3 codes out of 16, 4×6 codes out of 300: a tokenizer over"):
        train_tokenizer(TrainTokenizer(output=str(tmp_path / "t"), over=str(tmp_path / "codes"), **TRAINING))
    assert not Path(tmp_path / "t" / "config.json").exists()

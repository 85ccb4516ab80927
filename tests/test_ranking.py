"""Captions ranked by likelihood, draws chosen by it, and both through the commands, over the codes of a Gumbel dVAE."""

import json

import numpy as np
import pytest
import torch
from conftest import draw_bars
from PIL import Image
from small_priors import TEXTUAL, build_prior, random_codes
from toy_texts import CAPTIONS, build_text_prior
from untrained import make_pipeline

from codegrid import Condition, InputError, TwoStagePipeline
from codegrid.codes import PAD, Grid
from codegrid.data.codes import CodeBatch, CodeDataset
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.captions import measure_captions
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.generation.ranked_pictures import rank_captions
from codegrid.pipelines.generation.ranking import nats_of_texts
from codegrid.pipelines.generation.request import make_request
from codegrid.pipelines.generation.sampling import sample
from codegrid.pipelines.rank_captions import RankCaptions
from codegrid.pipelines.sample import Sample
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.prior import train_prior
from codegrid.pipelines.training.tokenizer import train_tokenizer
from codegrid.registry import TABLES
from codegrid.sampling_config import sampling_configs

CAPTION = {0: "an upright bar", 1: "a lying bar"}


def likeliest_codes(prior, captions):
    """The codes that a toy prior finds likeliest under each of some captions."""
    given = prior.conditions.given(None, captions)
    (logits,) = prior.logits((torch.zeros(len(captions), 3, 4, dtype=torch.int64),), given)
    return logits.argmax(1)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in TEXTUAL if TABLES["prior"][name].likelihood != "none"])
def test_texts_are_compared_by_the_nats_of_all_codes_with_the_same_noise_in_any_batch(name):
    prior = build_prior(name, layout=(Grid((3, 4), 8),), num_words=260, text_length=3, caption_dropout=0.5, decided=9)
    codes, texts = random_codes(prior, 5), torch.tensor([[7, 3, PAD], [9, PAD, PAD], [7, 3, PAD], [PAD] * 3])
    nats = nats_of_texts([prior], codes, texts)
    torch.testing.assert_close(nats, nats_of_texts([prior], codes, texts, batch_size=2))
    assert torch.equal(nats[:, 0], nats[:, 2]) and not torch.allclose(nats[:, 0], nats[:, 1])
    if prior.likelihood == "exact":
        (expected,) = prior.nll(codes, Condition(text=texts[[1] * 5]))
        torch.testing.assert_close(nats[:, 1], expected.sum((1, 2)))
    others = nats_of_texts([prior], codes, texts, seed=1)
    assert torch.equal(nats, others) == (prior.likelihood == "exact")


def captioned(codes, captions):
    """Codes and captions in two batches, as they are measured."""
    texts = [[caption, ""] for caption in captions]
    parts = (slice(0, 3), slice(3, None))
    return [CodeBatch((codes[part],), {"captions": texts[part]}) for part in parts]


def test_an_image_of_its_own_caption_ranks_it_first_and_equal_captions_count_once():
    prior = build_text_prior(spread=30.0)
    codes = likeliest_codes(prior, CAPTIONS)
    assert measure_captions([prior], captioned(codes, CAPTIONS), 2, 0) == (1.0, len(CAPTIONS))
    again = captioned(torch.cat([codes, codes]), [*CAPTIONS, *(text.upper() for text in CAPTIONS)])
    assert measure_captions([prior], again, 128, 0) == (1.0, len(CAPTIONS))
    turned = captioned(codes, [*CAPTIONS[1:], CAPTIONS[0]])
    share, _ = measure_captions([prior], turned, 128, 0)
    assert share == 0
    assert measure_captions([prior], captioned(codes, [CAPTIONS[0]] * 5 + [""]), 128, 0) is None


def test_at_most_a_hundred_captions_are_compared():
    captions = [f"picture {number}" for number in range(130)]
    prior = build_text_prior(captions=captions)
    share, count = measure_captions([prior], captioned(likeliest_codes(prior, captions), captions), 128, 0)
    assert count == 100 and 0 < share <= 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with a tokenizer like DALL·E's, over captioned bars, and a transformer that was trained for a moment."""
    root = tmp_path_factory.mktemp("asked")
    images, labels = draw_bars(60)
    rows = ["file_name,text"]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / "pictures").mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(root / "pictures" / f"{number}.png")
        rows.append(f"{number}.png,{CAPTION[int(label)]} number {number % 7}")
    (root / "captions.csv").write_text("\n".join(rows))
    data = {"dataset": str(root / "pictures"), "image_size": (12, 20)}
    options = {"quantizer": "gumbel", "options": {"hidden_channels": 8, "embedding_dim": 4, "num_embeddings": 8}}
    training = {"steps": 5, "batch_size": 16, "precision": "fp32", "validate_every": 5}
    train_tokenizer(TrainTokenizer(run=str(root), **data, **options, **training))
    sizes = {"channels": 16, "num_layers": 1, "num_heads": 2, "text_layers": 1}
    texts = {"captions": str(root / "captions.csv"), "text_length": 8}
    train_prior(TrainPrior(run=str(root), model="transformer", options=sizes, **texts, **training))
    return root


def test_a_prior_over_texts_ranks_captions_and_draws_what_fits_its_prompt(folder, tmp_path):
    pipeline = TwoStagePipeline.from_pretrained(folder)
    (prior,) = pipeline.priors
    assert prior.conditions.num_words and len(prior.network.words.blocks) == 1
    ranking = pipeline.rank_captions(draw_bars(3)[0], list(CAPTION.values()), batch_size=2)
    codes = pipeline.encode(draw_bars(3)[0])
    (expected,) = prior.nll(codes, prior.conditions.given(None, [CAPTION[1]] * 3))
    torch.testing.assert_close(ranking.nats[:, 1], expected.flatten(1).double().sum(1))
    assert ranking.best == [CAPTION[int(row.argmin())] for row in ranking.nats]
    rank_captions(
        RankCaptions(
            run=str(folder), images=str(folder / "pictures"), captions=tuple(CAPTION.values()), batch_size=32,
            output=str(tmp_path / "r"),
        )
    )  # fmt: skip
    results = json.loads((tmp_path / "r" / "ranking.json").read_text())
    assert results["likelihood"] == "exact" and len(results["pictures"]) == 60
    found = {row["file"]: row["captions"] for row in results["pictures"]}
    for number, row in enumerate(ranking.nats):
        of_file = found[f"{number}.png"]
        assert [each["nats"] for each in of_file] == pytest.approx(row.sort().values.tolist(), rel=1e-5)
    settings = {"run": str(folder), "prompts": (CAPTION[0],), "num_samples": 3, "guidance_scale": (2.0,), "seed": 3}
    sample(Sample(**settings, output=str(tmp_path / "s"), reject_with="likelihood", reject_keep=0.5, format="codegrid"))
    (kept,), given = CodeDataset(tmp_path / "s")[:].codes, prior.conditions.given(None, [CAPTION[0]] * 3)
    request = make_request(pipeline.priors, 3, None, 3, sampling_configs(1, guidance_scale=2.0), prompts=CAPTION[0])
    draws = [pipeline.sample_codes(request._replace(draw=number), range(3)) for number in range(2)]
    fits = [prior.nll(codes, given.hidden())[0] - prior.nll(codes, given)[0] for codes in draws]
    better = fits[1].sum((1, 2)) > fits[0].sum((1, 2))
    assert torch.equal(kept, torch.where(better[:, None, None], draws[1][0], draws[0][0]))


def test_a_prior_without_likelihood_is_refused_before_a_folder_is_begun(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(TABLES["prior"]["transformer"], "likelihood", "none")
    settings = {"images": str(folder / "pictures"), "captions": ("a",), "output": str(tmp_path / "r")}
    for dry_run in (True, False):
        with pytest.raises(InputError, match="`prior`: a CausalTransformer has no likelihood to rank by"):
            rank_captions(RankCaptions(run=str(folder), **settings, dry_run=dry_run))
    assert not (tmp_path / "r").exists()
    pipeline = TwoStagePipeline.from_pretrained(folder)
    monkeypatch.setattr(pipeline, "encode", None)
    with pytest.raises(InputError, match="has no likelihood to rank by"):
        pipeline.rank_captions(draw_bars(1)[0], ["a"])


def test_evaluate_says_how_often_an_image_has_the_likeliest_caption(folder, tmp_path, capsys):
    figures = evaluate(Evaluate(run=str(folder), output=str(tmp_path / "f"), captions=str(folder / "captions.csv")))
    told = figures["measured_on"]
    assert 0 <= figures["caption_ranked_first"] <= 1 and told["caption_ranked_first"]["captions"] == 6
    assert told["bits_per_code"]["given_texts"] and not told["bits_per_code"]["given_labels"]
    assert "caption_ranked_first: the image's own among 6; at random 0.1667" in capsys.readouterr().out


@pytest.mark.parametrize("captions", [["a bar", " "], ["bar " * 99], []])
def test_captions_that_cannot_be_ranked_are_named_by_the_setting_that_gives_them(folder, captions):
    pipeline = TwoStagePipeline.from_pretrained(folder)
    with pytest.raises(InputError, match="`captions`") as error:
        pipeline.rank_captions(np.zeros((1, 12, 20), np.uint8), captions)
    assert "prompts" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "`images`: give a folder of pictures"),
        ({"images": "p"}, "`captions`: give the texts to rank"),
        ({"images": "p", "captions": ("a",)}, "`tokenizer`: give its folder"),
    ],
)
def test_a_ranking_needs_models_pictures_and_captions(settings, words):
    models = {} if "captions" in settings else {"tokenizer": "t", "prior": ("p",)}
    with pytest.raises(InputError, match=words):
        RankCaptions(output="o", **models, **settings)


def test_captions_are_ranked_only_by_priors_that_read_them():
    with pytest.raises(InputError, match="`prior`: it is not conditioned on texts"):
        make_pipeline().rank_captions(np.zeros((1, 12, 20), np.uint8), ["a bar"])

"""Texts as a condition: their tokenizer, the checks of prompts, samples, guidance, and model folders."""

import json
from dataclasses import replace

import pytest
import torch
from toy_texts import CAPTIONS, ToyTextPrior, build_text_prior

from codegrid.codes import NO_LABEL, PAD, Condition, Grid, Moment
from codegrid.errors import InputError
from codegrid.extra_files import TEXT_TOKENIZER
from codegrid.noise import Noise
from codegrid.registry import load
from codegrid.stage2_prior import CausalTransformer, GatedPixelCNN, sample
from codegrid.stage2_prior.text_tokenizer import TextTokenizer, pad_texts

LEARNT = TextTokenizer.learn(CAPTIONS, 300)


def same(*drawn):
    return all(torch.equal(*grids) for grids in zip(*drawn, strict=True))


@pytest.mark.parametrize("text", ["!", "[PAD]", "[UNK] [PAD]", "日本 ❤", "\x00", "a\ud800", "ȧ" * 50, "-1"])
def test_every_text_has_words_and_none_of_them_is_padding(text):
    (words,) = LEARNT.encode([text])
    assert words and min(words) > 1 and max(words) < LEARNT.num_words


def test_texts_that_read_alike_have_the_same_words():
    forms = ["a caf\u00e9 heart", "A CAFE\u0301 Heart", "  a\tcaf\u00e9 \n heart "]
    assert len({tuple(words) for words in LEARNT.encode(forms)}) == 1
    assert len({tuple(words) for words in LEARNT.encode(["", "!", "a", "a!"])}) == 4


def test_a_text_tokenizer_follows_from_the_captions_and_always_encodes_alike():
    again = TextTokenizer.learn(iter(CAPTIONS), 300)
    assert again == LEARNT and again.sha256 == LEARNT.sha256
    assert LEARNT.encode(CAPTIONS * 3) == LEARNT.encode(CAPTIONS) * 3
    fields = json.loads(LEARNT.content)
    assert fields["model"]["dropout"] is None and fields["padding"] is fields["truncation"] is None
    assert LEARNT.num_words <= 300
    parts = LEARNT.encode(["a", "red", "heart"])
    assert LEARNT.encode(["a red heart"]) == [[word for part in parts for word in part]]


def test_a_vocabulary_holds_at_least_all_bytes():
    with pytest.raises(InputError, match="`num_words` 257: it must be at least 258"):
        TextTokenizer.learn(CAPTIONS, 257)


def test_words_are_padded_on_the_right_and_cut():
    assert pad_texts([[5, 6, 7], [], [8]], 2).tolist() == [[5, 6], [PAD, PAD], [8, PAD]]


def test_samples_follow_their_prompts_and_no_prompt_is_no_text():
    prior = build_text_prior()
    red, green = (sample(prior, 4, prompts=[prompt], seed=1) for prompt in ("a red heart", "a green heart"))
    assert not same(red, green) and same(red, sample(prior, 4, prompts="A  Red heart", seed=1))
    both = sample(prior, 2, prompts=["a red heart", "a green heart"], seed=1)
    assert same([grid[0] for grid in both], [grid[0] for grid in red])
    assert same([grid[1] for grid in both], [grid[1] for grid in green])
    plain = sample(prior, 4, seed=1)
    assert not same(plain, red) and same(plain, sample(prior, 4, seed=1, batch_size=1))


def test_guidance_leads_from_no_text_to_the_prompt():
    prior = build_text_prior()
    asked = {"prompts": "a red heart", "seed": 1}
    assert same(sample(prior, 4, guidance_scale=0.0, **asked), sample(prior, 4, seed=1))
    assert same(sample(prior, 4, guidance_scale=1.0, **asked), sample(prior, 4, **asked))
    assert not same(sample(prior, 4, guidance_scale=5.0, **asked), sample(prior, 4, **asked))


@pytest.mark.parametrize(("asked", "words"), [
    ({"prompts": ["a", "b", "c"]}, "`prompts`: 3 prompts for 2 samples: give one for each, or one for all"),
    ({"prompts": ["a", ""]}, "`prompts` '': write some words in each"),
    ({"prompts": " \n"}, r"`prompts` ' \\n': write some words"),
    ({"prompts": [7]}, "`prompts` 7: write some words"),
    ({"prompts": "red " * 20}, "`prompts` .*: 20 pieces of words, but this prior reads 8: write less"),
    ({"labels": [1]}, "`labels`: this prior is conditioned on texts, not on classes: give `prompts` instead"),
    ({"guidance_scale": 2.0}, "`guidance_scale` 2.0: guidance needs `prompts` to guide to"),
])  # fmt: skip
def test_what_a_prior_over_texts_cannot_be_asked(asked, words):
    with pytest.raises(InputError, match=words):
        sample(build_text_prior(), 2, **asked)


def test_prompts_are_refused_by_priors_without_texts():
    grids = [Grid((3, 4), 6)]
    for num_classes, remedy in ((0, "leave them out"), (2, "give `labels` instead")):
        prior = GatedPixelCNN(grids, num_classes=num_classes, channels=4, num_layers=2).eval()
        with pytest.raises(InputError, match=f"`prompts`: this prior is not conditioned on texts .* can be.; {remedy}"):
            sample(prior, 2, prompts="a red heart")
        with pytest.raises(InputError, match="`text`: this prior is not conditioned on this"):
            prior.nll((torch.zeros(1, 3, 4, dtype=torch.int64),), Condition(text=torch.ones(1, 8, dtype=torch.int64)))


def test_a_prior_that_learnt_only_with_texts_needs_one_for_each_sample():
    prior = build_text_prior(caption_dropout=0.0)
    assert sample(prior, 2, prompts="a red heart")
    for asked in ({}, {"prompts": "a", "guidance_scale": 2.0}):
        with pytest.raises(InputError, match="this prior was only trained with texts: train it with `caption_dropout`"):
            sample(prior, 2, **asked)


def test_the_words_of_a_condition_are_checked():
    prior, codes = build_text_prior(), (torch.zeros(2, 3, 4, dtype=torch.int64),)
    with pytest.raises(InputError, match=r"`text` of shape \(2, 3\), but \(2, 8\) is needed"):
        prior.nll(codes, Condition(text=torch.ones(2, 3, dtype=torch.int64)))
    with pytest.raises(InputError, match="`text`: word 999, but the words are 0 to"):
        prior.nll(codes, Condition(text=torch.full((2, 8), 999)))


def test_a_share_of_the_captions_is_hidden_in_training_and_none_after_it():
    prior = build_text_prior(caption_dropout=0.25)
    given = prior.conditions.given(None, CAPTIONS[:1] * 4000)
    moment = Moment(0, 1, Noise(0, count=4000))
    hidden = (prior.texts(given, 4000, moment) == PAD).all(1)
    assert hidden.double().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(prior.texts(given, 4000), given.text) and (given.text != PAD).any(1).all()
    codes = (torch.zeros(4000, 3, 4, dtype=torch.int64),)
    without = given._replace(text=given.text.masked_fill(hidden[:, None], PAD))
    assert prior(codes, given, moment).total == prior(codes, without).total


@pytest.mark.parametrize(("asked", "labels", "has_text"), [
    ({}, [0, 1, 2, 0], False),
    ({"labels": ["b"]}, [1] * 4, False),
    ({"prompts": "a red car"}, [NO_LABEL] * 4, True),
    ({"prompts": "a red car", "labels": [2, "none", 0, 1]}, [2, NO_LABEL, 0, 1], True),
])  # fmt: skip
def test_of_labels_and_prompts_what_is_left_out_is_not_asked_for(asked, labels, has_text):
    known = build_text_prior().conditions
    given = replace(known, num_classes=3, classes=("a", "b", "c")).resolve(num_samples=4, **{"labels": None, **asked})
    assert given.labels.tolist() == labels and bool((given.text != PAD).any()) == has_text
    assert given.text.shape == (4, known.text_length)


def test_a_prior_has_texts_only_with_options_for_them_and_classes_too_only_if_it_hides_both():
    grids = [Grid((3, 4), 6)]
    with pytest.raises(InputError, match="`num_words`: a GatedPixelCNN cannot be conditioned on texts: transformer, "):
        GatedPixelCNN(grids, num_words=300, text_length=8, channels=4, num_layers=2)
    with pytest.raises(InputError, match=r"`label_dropout` 0.0: a prior of labels and texts must also learn to draw"):
        ToyTextPrior(grids, num_classes=2, num_words=300, text_length=8)
    with pytest.raises(InputError, match=r"`caption_dropout` 0.0: a prior of labels and texts .*, `ignore_captions`"):
        CausalTransformer(grids, num_classes=2, num_words=300, text_length=8, caption_dropout=0.0)
    with pytest.raises(InputError, match="`text_length` 0"):
        ToyTextPrior(grids, num_words=300)
    assert "caption_dropout" not in ToyTextPrior(grids).config


def test_the_text_tokenizer_lies_in_the_model_folder(tmp_path):
    prior = build_text_prior()
    prior.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.text_tokenizer == prior.text_tokenizer and again.fingerprint() == prior.fingerprint()
    assert same(sample(again, 3, prompts="a red car"), sample(prior, 3, prompts="a red car"))
    recorded = json.loads((tmp_path / "config.json").read_text())["sha256"]
    assert recorded[TEXT_TOKENIZER] == prior.text_tokenizer.sha256
    other = build_text_prior(captions=["something else"])
    other.num_words = prior.num_words
    assert other.fingerprint() != prior.fingerprint()


@pytest.mark.parametrize(("damage", "words"), [
    (lambda path: path.unlink(), "is incomplete: it holds no tokenizer.json"),
    (lambda path: path.write_bytes(path.read_bytes() + b" "), r"tokenizer\.json is damaged \(its SHA-256"),
])  # fmt: skip
def test_a_lost_or_changed_text_tokenizer_is_refused(tmp_path, damage, words):
    build_text_prior().save_pretrained(tmp_path)
    damage(tmp_path / TEXT_TOKENIZER)
    with pytest.raises(InputError, match=words):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 9999, b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'])
def test_a_forged_text_tokenizer_is_refused_when_it_is_needed(tmp_path, content):
    prior = build_text_prior()
    prior.text_tokenizer = TextTokenizer(content)
    prior.save_pretrained(tmp_path)
    forged = load(tmp_path)
    assert sample(forged, 1)  # nobody asked
    with pytest.raises(InputError, match=r"tokenizer\.json of this prior is damaged"):
        sample(forged, 1, prompts="a")


def test_a_text_tokenizer_must_be_there_and_fit_its_prior():
    prior = build_text_prior()
    prior.text_tokenizer = TextTokenizer.learn(["something else entirely"] * 9, 262)
    with pytest.raises(InputError, match=r"`prompts`: the text tokenizer is of \d+ words, but this prior knows"):
        sample(prior, 1, prompts="a")
    with pytest.raises(InputError, match="`prompts`: this prior has no text tokenizer"):
        sample(ToyTextPrior([Grid((3, 4), 6)], num_words=300, text_length=8).eval(), 1, prompts="a")


def test_without_the_package_only_texts_are_refused(monkeypatch):
    prior = build_text_prior()
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    fresh = TextTokenizer(prior.text_tokenizer.content + b" ")  # not parsed yet
    prior.text_tokenizer = fresh
    assert sample(prior, 1)
    with pytest.raises(InputError, match=r'`prompts` needs the tokenizers package: pip install "codegrid\[text\]"'):
        sample(prior, 1, prompts="a")
    with pytest.raises(InputError, match="`captions` needs the tokenizers package"):
        TextTokenizer.learn(CAPTIONS, 300)


def test_priors_of_one_tokenizer_must_read_the_same_words():
    first, second = build_text_prior(), build_text_prior([Grid((6, 8), 6)], grids=(1,))
    assert sample([first, second], 2, prompts="a red car")
    second = build_text_prior([Grid((6, 8), 6)], grids=(1,), captions=["other words"])
    with pytest.raises(InputError, match="`prior`: these priors do not read texts in the same words"):
        sample([first, second], 2, prompts="a red car")


def test_texts_are_kept_from_priors_that_do_not_read_them():
    first, labelled = build_text_prior(), GatedPixelCNN([Grid((6, 8), 6)], (1,), channels=4, num_layers=2).eval()
    assert len(sample([first, labelled], 2, prompts="a red car")) == 2

"""Every prior of the table that can be asked in words: what sees which words, and what it was trained to draw without.

Shapes: t words of a text.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
from small_priors import ALL, LAYOUTS, MASKED, NAMES, TEXTUAL, build_prior, judge, random_codes
from small_quantizers import LargestTensor

from codegrid import InputError, Known, SequentialPrior, load
from codegrid.codes import HIDDEN, NO_LABEL, PAD, Condition, Grid, Moment
from codegrid.noise import Noise
from codegrid.protocols import NO_CONDITION
from codegrid.registry import TABLES
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior import sample
from codegrid.stage2_prior.options import TextOptions
from codegrid.stage2_prior.transformer import cache, compiled
from codegrid.stage2_prior.transformer.words import CrossAttention, WordEncoder

WORDS, LENGTH = 260, 5
GRIDS = (Grid((3, 4), 8), Grid((3, 4), 5))
PYRAMID = (Grid((2, 1), 8), Grid((3, 4), 6), Grid((3, 4), 5))
COARSER = {"grids": (1, 2), "given_grids": (0,), "given_layout": [Grid((2, 2), 6)]}
TEXTS = [[7, 3, 9], [4], [], [200, 259, 2, 9, 7]]
each = pytest.mark.parametrize("name", [name for name in TEXTUAL if name in (*NAMES, *MASKED)])
sequential = pytest.mark.parametrize("name", [name for name in TEXTUAL if hasattr(TABLES["prior"][name], "logits")])


def build(name, layout=GRIDS, **options):
    """A decided prior over texts of up to 5 of 260 words, which matter as much as codes do."""
    options = {"text_length": LENGTH, "caption_dropout": 0.5, "decided": 10, **options}
    prior = build_prior(name, layout=layout, num_words=WORDS, **options)
    with torch.no_grad():  # new words are nearly alike, and hardly heard
        prior.network.words.embedding.weight *= 50
        for module in prior.network.modules():
            if getattr(module, "of_words", None) is not None:
                module.of_words.weight *= 20
                module.outward.weight *= 20
    return prior


def texts(*rows, length=LENGTH):
    return torch.tensor([[*row, *[PAD] * (length - len(row))] for row in rows])


def asked(*rows, **parts):
    return Condition(text=texts(*rows), **parts)


def logits_of(prior, codes, given):
    """The logits (b, n, K) of each grid: of all codes given those before, or of hidden ones."""
    if hasattr(prior, "logits"):
        return [grid.flatten(2).mT for grid in prior.logits(codes, given)]
    return prior.hidden_logits(tuple(torch.full_like(grid, HIDDEN) for grid in codes), given)


def alike(prior, count):
    return tuple(grid.expand(count, *grid.shape[1:]) for grid in random_codes(prior, 1))


def same(*drawn):
    return all(torch.equal(*grids) for grids in zip(*drawn, strict=True))


def drawn_by(prior, given, count, known=None, backend="torch", seed=0, **settings):
    *_, last = prior.sample(given, Noise(seed, count=count), SamplingConfig(**settings), known, backend)
    return last.codes


@each
@torch.no_grad()
def test_every_code_sees_every_word_of_its_text_and_the_order_of_words(name):
    prior = build(name)
    rows = [[7, 3, 9, 4], [8, 3, 9, 4], [7, 4, 9, 4], [7, 3, 8, 4], [7, 3, 9, 5], [7, 3, 9], [3, 7, 9, 4], []]
    for logits in logits_of(prior, alike(prior, len(rows)), asked(*rows)):
        assert ((logits[1:] - logits[:1]).abs().amax(2) > 1e-9).all()


@each
@torch.no_grad()
def test_what_follows_the_end_of_a_text_is_seen_by_nothing(name):
    prior = build(name)
    given = Condition(text=torch.tensor([[7, 3, 0, 0, 0], [7, 3, 0, 9, 0], [7, 3, 0, 259, 4]]))
    for logits in logits_of(prior, alike(prior, 3), given):
        torch.testing.assert_close(logits, logits[:1].expand_as(logits), atol=0, rtol=0)


@each
@torch.no_grad()
def test_room_for_longer_texts_changes_nothing(name):
    short, long = build(name), build(name, text_length=LENGTH + 4)
    weights = short.state_dict()
    own = long.state_dict()["network.words.positions.weight"]
    own[:LENGTH] = weights["network.words.positions.weight"]
    long.load_state_dict({**weights, "network.words.positions.weight": own})
    codes = random_codes(short, len(TEXTS))
    pairs = zip(
        logits_of(short, codes, Condition(text=texts(*TEXTS))),
        logits_of(long, codes, Condition(text=texts(*TEXTS, length=LENGTH + 4))),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other)


@each
@torch.no_grad()
def test_no_text_is_learnt_and_known_by_its_pad_alone(name):
    prior = build(name)
    codes = random_codes(prior, 1)
    logits = {row: logits_of(prior, codes, given) for row, given in
              {"text": asked([7, 3]), "no text": asked([]), "nothing": Condition()}.items()}  # fmt: skip
    assert same(logits["no text"], logits["nothing"])
    prior.network.words.embedding.weight[PAD] += 1
    assert same(logits["text"], logits_of(prior, codes, asked([7, 3])))
    assert not torch.allclose(logits["no text"][0], logits_of(prior, codes, asked([]))[0])
    prior.network.words.embedding.weight[1:] = 0  # texts without any features are texts
    assert not torch.allclose(*(logits_of(prior, codes, asked(row))[0] for row in ([7, 3], [])))


@each
@torch.no_grad()
def test_words_are_no_codes(name):
    prior = build(name)
    given = asked(*[row or [9] for row in TEXTS])
    for logits, grid in zip(logits_of(prior, random_codes(prior, 4), given), prior.layout, strict=True):
        assert logits.shape == (4, grid.num_sites, grid.num_embeddings)
    for grid, of in zip(drawn_by(prior, given, 4, temperature=50.0, guidance_scale=3.0), prior.layout, strict=True):
        assert 0 <= int(grid.min()) <= int(grid.max()) < of.num_embeddings


@sequential
@torch.no_grad()
@pytest.mark.parametrize(
    "layout,options", [(GRIDS, {}), (PYRAMID, {}), (GRIDS, {**COARSER, "condition_blocks": 1, "given_features": 3})]
)
def test_cached_steps_give_the_logits_of_the_parallel_pass_and_draw_its_codes(name, layout, options):
    prior = build(name, layout, **options)
    codes, given = random_codes(prior, 4), asked(*TEXTS)
    if options:
        given = given._replace(
            codes=(torch.randint(0, 6, (4, 2, 2)),), features=(torch.randn(4, 3, 3, 4, dtype=torch.float64),)
        )
    expected, steps = prior.logits(codes, given), prior.steps(given, 4, "torch")
    for grid, (site,) in steps.order:
        torch.testing.assert_close(steps.next_logits()[:, 0], expected[grid].flatten(2)[:, :, site])
        steps.append(codes[grid].flatten(1)[:, [site]])
    by_torch, plain = (drawn_by(prior, given, 4, backend=backend, guidance_scale=2.0) for backend in ("torch", "plain"))
    assert same(by_torch, plain)


@each
def test_kept_codes_stand_behind_the_text(name):
    prior = build(name)
    codes, masks = random_codes(prior, 4), [torch.zeros(3, 4, dtype=torch.bool) for _ in GRIDS]
    for mask in masks:
        mask[:2] = True
    known = Known(codes, tuple(masks))
    drawn = [drawn_by(prior, asked(*TEXTS), 4, known, backend) for backend in ("torch", "plain")]
    assert same(*drawn) and all(torch.equal(new[:, :2], old[:, :2]) for new, old in zip(drawn[0], codes, strict=True))
    assert not same(drawn[0], drawn_by(prior, asked([8, 8], *TEXTS[1:]), 4, known))


@sequential
def test_one_position_with_a_masked_cache_is_one_beside_what_is_kept(name, monkeypatch):
    monkeypatch.setattr(cache, "compiled_position", lambda: compiled.one_position)  # as it is before it is compiled
    prior = build(name)
    drawn = [
        drawn_by(prior, asked(*TEXTS), 4, backend=backend, guidance_scale=2.0) for backend in ("compiled", "plain")
    ]
    assert same(*drawn)


@each
@torch.no_grad()
def test_neither_other_texts_of_the_batch_nor_its_size_change_a_sample(name):
    prior = build(name)
    codes = random_codes(prior, 4)
    whole, alone = (
        logits_of(prior, tuple(grid[rows] for grid in codes), asked(*TEXTS).rows(rows))
        for rows in (slice(None), slice(1, 2))
    )
    for one, other in zip(whole, alone, strict=True):
        torch.testing.assert_close(one[1:2], other)
    drawn = drawn_by(prior, asked(*TEXTS), 4, guidance_scale=2.0)
    *_, last = prior.sample(asked(TEXTS[2]), Noise(0, 2), SamplingConfig(guidance_scale=2.0))
    assert same([grid[2:3] for grid in drawn], last.codes)


@each
@torch.no_grad()
def test_a_caption_that_training_hides_is_hidden_from_every_layer_and_evaluation_hides_none(name):
    prior, hidden = build(name), 0
    codes = random_codes(prior, 1)
    for number in range(10):
        moment = Moment(0, 10, Noise(5, number))
        losses = [float(prior(codes, asked(row), moment).total) for row in ([7, 3], [8], [])]
        assert len(set(losses)) == (1 if losses[0] == losses[2] else 3)
        hidden += losses[0] == losses[2]
    assert 2 <= hidden <= 8
    hiding = build(name, caption_dropout=0.9)
    nats = [one.nll(codes, asked([7, 3]), Noise(0)) for one in (prior, hiding, hiding.train())]
    assert same(nats[0], nats[1]) and same(nats[1], nats[2])


@each
@torch.no_grad()
def test_the_nats_are_those_of_the_codes_given_the_text(name):
    prior = build(name)
    codes, noise = random_codes(prior, 4), Noise(0, count=4)
    of_texts, without = (prior.nll(codes, asked(*rows), noise) for rows in (TEXTS, [[]] * 4))
    for ours, none in zip(of_texts, without, strict=True):
        assert torch.equal(ours[2], none[2]) and not torch.allclose(ours[[0, 1, 3]], none[[0, 1, 3]])
    if prior.likelihood == "exact":
        total = torch.cat([grid.flatten(1) for grid in of_texts], 1).mean()
        torch.testing.assert_close(prior(codes, asked(*TEXTS)).total, total)  # the text itself is not learnt


@each
def test_no_call_changes_the_text_and_the_last_code_that_is_drawn_still_sees_it(name):
    prior, given = build(name), asked(*TEXTS)
    before, codes = copy.deepcopy(given), random_codes(prior, 4)
    prior(codes, given, Moment(0, 10, Noise(0, count=4))).total.backward()
    prior.nll(codes, given, Noise(0, count=4))
    masks = tuple(torch.ones(3, 4, dtype=torch.bool) for _ in GRIDS)
    masks[-1][-1, -1] = False
    known = Known(tuple(grid[:1] for grid in codes), masks)
    settings = {"guidance_scale": 3.0, "temperature": 0.0}
    last = {int(drawn_by(prior, asked([word]), 1, known, **settings)[-1][0, -1, -1]) for word in range(2, 30)}
    assert len(last) > 1 and torch.equal(given.text, before.text)


@each
def test_texts_are_encoded_once_for_all_sites_of_a_step(name, monkeypatch):
    calls, forward = [], WordEncoder.forward
    monkeypatch.setattr(WordEncoder, "forward", lambda *inputs: calls.append(inputs) or forward(*inputs))
    prior = build(name)
    drawn_by(prior, asked(*TEXTS), 4, guidance_scale=2.0)
    assert len(calls) == (1 if prior.likelihood == "exact" else prior.own_settings.num_inference_steps)
    assert all(len(inputs[1]) == 8 for inputs in calls)


@sequential
@torch.no_grad()
def test_the_keys_and_values_of_the_text_are_kept_and_take_the_memory_that_the_prior_states(name):
    prior = build(name)
    steps = prior.steps(asked(*TEXTS), 4, "torch")
    steps.next_logits()
    of_text = steps.cache.tensor[:, :, :, :, :LENGTH].clone()
    for grid, _ in steps.order[:-1]:
        steps.append(torch.zeros(4, 1, dtype=torch.int64) + grid)
        steps.next_logits()
    assert torch.equal(of_text, steps.cache.tensor[:, :, :, :, :LENGTH])
    held = steps.cache.tensor.numel() * steps.cache.tensor.element_size()
    assert held == 4 * prior.bytes_per_sample and steps.cache.length == LENGTH + len(steps.order)


@each
@torch.no_grad()
def test_memory_is_linear_in_the_sites(name):
    prior, count = build(name, [Grid((10, 16), 8)]), 4
    codes, given = random_codes(prior, count), asked(*TEXTS)
    with LargestTensor() as watch:
        logits_of(prior, codes, given)
        if hasattr(prior, "steps"):
            steps = prior.steps(given, count, "torch")
            steps.append(codes[0].flatten(1)[:, :120])
            steps.next_logits()
    assert watch.numel < count * 160 * 160


@each
def test_a_step_in_bfloat16_is_in_bfloat16_throughout(name):
    prior = build(name).float()
    seen = set()

    def look(module, inputs, out):
        if torch.is_tensor(out) and any(torch.is_tensor(x) and x.is_floating_point() for x in inputs):  # not tables
            seen.add(out.dtype)

    for module in prior.network.modules():
        module.register_forward_hook(look)
    with torch.autocast("cpu", torch.bfloat16):
        losses = prior(random_codes(prior, 4), asked(*TEXTS))
        losses.total.backward()
    assert seen == {torch.bfloat16} and losses.total.dtype == torch.float32
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in prior.parameters())


@each
def test_a_saved_one_draws_the_same_and_one_without_texts_has_none_of_their_weights(name, tmp_path):
    prior = build(name).float()
    prior.save_pretrained(tmp_path)
    again = load(tmp_path).eval()
    assert same(*(drawn_by(one, asked(*TEXTS), 4, guidance_scale=2.0) for one in (prior, again)))
    plain = build_prior(name, layout=GRIDS)
    assert not [key for key in plain.state_dict() if "words" in key or "crossing" in key]
    assert {"text_layers", "caption_dropout", "num_words", "text_length"}.isdisjoint(plain.config)


@pytest.mark.parametrize("name", TEXTUAL)
@torch.no_grad()
def test_one_that_knows_classes_too_hears_both_and_guidance_leads_away_from_neither(name):
    prior = build(name, num_classes=3, label_dropout=0.2)
    codes, (text, other) = random_codes(prior, 1), texts([7, 3, 9], [4])
    given = {
        (label, word): Condition(torch.tensor([label]), row[None])
        for label in (0, 1, NO_LABEL) for word, row in (("text", text), ("other", other), ("none", text * 0))
    }  # fmt: skip
    found = {pair: judge(prior, codes, one, Noise(0))[0].sum().item() for pair, one in given.items()}
    assert len({round(value, 6) for value in found.values()}) == 9
    assert found[NO_LABEL, "none"] == judge(prior, codes, Condition(), Noise(0))[0].sum().item()
    scaled = {
        (pair, scale): drawn_by(prior, given[pair], 1, backend="auto", guidance_scale=scale)
        for pair in ((0, "text"), (0, "none"), (NO_LABEL, "text"), (NO_LABEL, "none"))
        for scale in (0.0, 4.0)
    }
    nothing = drawn_by(prior, Condition(), 1, backend="auto")
    assert all(same(drawn, nothing) == (scale == 0 or pair == (NO_LABEL, "none"))
               for (pair, scale), drawn in scaled.items())  # fmt: skip
    assert len({str(scaled[pair, 4.0]) for pair, _ in scaled}) == 4


def test_half_of_the_labels_that_training_hides_are_hidden_with_their_texts():
    count = 20_000
    prior = build("transformer", num_classes=3, label_dropout=0.2, caption_dropout=0.3)
    given = Condition(torch.arange(count) % 3, texts([7, 3, 9]).expand(count, -1))
    of_label, _, _, of_text = prior.condition_inputs(given, count, Moment(0, 10, Noise(0, count=count)))
    no_label, no_text = of_label == prior.num_classes, (of_text == PAD).all(1)
    shares = [share.double().mean().item() for share in (no_label, no_text, no_label & no_text)]
    assert shares == pytest.approx([0.2, 0.3, 0.1], abs=0.01)
    rows, *_, words = prior.condition_inputs(given, count)
    assert torch.equal(rows, given.labels) and torch.equal(words, given.text)


@torch.no_grad()
def test_cross_attention_does_not_see_words_behind_the_end():
    torch.manual_seed(0)
    encoder, crossing = WordEncoder(WORDS, LENGTH, 16, 2, 1).double(), CrossAttention(16, 2).double()
    x = torch.randn(1, 3, 16, dtype=torch.float64)
    words = encoder(texts([7, 3, 9]))
    assert words.hidden.tolist() == [[False] * 3 + [True] * 2]
    other = words._replace(features=words.features + words.hidden[..., None] * 5)
    assert torch.equal(crossing(x, words), crossing(x, other))


@pytest.mark.parametrize("name", [name for name in ALL if name not in TEXTUAL])
def test_a_prior_that_does_not_read_texts_names_those_that_do(name):
    layout = LAYOUTS.get(name, ())
    with pytest.raises(InputError, match=r"cannot be conditioned on texts: transformer, maskgit.* priors can be"):
        build_prior(name, layout=layout, num_words=WORDS, text_length=LENGTH)
    prior = build_prior(name, layout=layout)
    with pytest.raises(
        InputError, match=r"`prompts`: .* not conditioned on texts \(transformer, maskgit.* can be\); leave"
    ):
        sample(prior, 1, prompts=["a heart"])
    with pytest.raises(InputError, match="`text`: this prior is not conditioned on this"):
        prior(random_codes(prior), asked([7], [8]))


@each
def test_the_words_of_a_text_need_no_layers_of_their_own(name):
    prior = build(name, text_layers=0)
    assert prior(random_codes(prior, 2), asked(*TEXTS[:2])).total.isfinite()


def test_a_prior_of_ones_own_learns_without_some_of_its_texts():
    @dataclass(frozen=True)
    class Options(TextOptions):
        caption_dropout: float = 0.5

    class Own(SequentialPrior):
        options = Options

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.bias = torch.nn.Parameter(torch.zeros(5, 1))

        def logits(self, codes, given=NO_CONDITION):
            seen.append(self.texts(given, len(codes[0])))
            return (self.bias.expand(len(codes[0]), 5, 2),)

    seen, prior = [], Own((Grid((2,), 5),), num_words=WORDS, text_length=LENGTH)
    given = asked(*[TEXTS[0]] * 400)
    prior((torch.zeros(400, 2, dtype=torch.int64),), given, Moment(0, 1, Noise(0, 0, 400)))
    assert 150 < int((seen[0] == PAD).all(1).sum()) < 250

"""The prior over frames of videos: what a frame sees of earlier ones and of actions, and how videos are continued.

Shapes: h w code grid.
"""

import pytest
import torch
from small_priors import build_prior, earlier_frames, random_codes

from codegrid.codes import HIDDEN, Condition, Moment
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior import VideoPrior, roll_out, sample

SIZES = [(8,), (8, 5)]


def build(sizes=(8,), shape=(3, 4), num_actions=3, decided=20.0, **options):
    """A small video prior in float64, and a condition for two samples."""
    torch.manual_seed(0)
    prior = build_prior("video", sizes, shape, decided=decided, num_actions=num_actions, **options)
    return prior, earlier_frames(prior, 2)


def moved(prior, codes, given, changed):
    """Whether any logit differs under a changed condition."""
    pairs = zip(prior.logits(codes, given), prior.logits(codes, changed), strict=True)
    return any((one - other).abs().max() > 1e-12 for one, other in pairs)


@torch.no_grad()
@pytest.mark.parametrize("sizes", SIZES, ids=["one code a site", "two"])
def test_every_code_of_every_earlier_frame_and_every_action_is_seen(sizes):
    prior, given = build(sizes, condition_blocks=3)
    codes = random_codes(prior)
    for number, grid in enumerate(given.codes):
        for site in torch.ones(grid.shape[1:]).nonzero().tolist():
            frames = [one.clone() for one in given.codes]
            size = prior.layout[number % len(sizes)].num_embeddings
            frames[number][(slice(None), *site)] = (grid[(slice(None), *site)] + 1) % size
            assert moved(prior, codes, given, given._replace(codes=tuple(frames)))
    for place in range(2):
        actions = given.actions.clone()
        actions[:, place] = (actions[:, place] + 1) % 3
        assert moved(prior, codes, given, given._replace(actions=actions))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"top_k": 3, "temperature": 0.7}], ids=["plain", "changed"])
def test_cached_continuations_are_those_of_plain_sampling(options):
    prior, _ = build((8, 5), decided=20)
    start = tuple(torch.randint(0, size, (3, 4, 3, 4)) for size in (8, 5))
    actions = torch.randint(0, 3, (3, 4 + 2))
    drawn = [roll_out(prior, start, actions, 3, 7, backend=backend, **options) for backend in ("plain", "torch")]
    assert all(map(torch.equal, *drawn)) and drawn[0][0].shape == (3, 3, 3, 4)


@torch.no_grad()
def test_a_video_follows_from_its_number_alone_and_its_frames_from_different_noise():
    prior, _ = build(decided=0.1)
    start = (torch.zeros(5, 2, 3, 4, dtype=torch.int64),)
    (whole,) = roll_out(prior, start, frames=2, batch_size=5)
    (apart,) = roll_out(prior, start, frames=2, batch_size=2)
    (last,) = roll_out(prior, (start[0][:1],), frames=2, first_index=4)
    assert torch.equal(whole, apart) and torch.equal(whole[4:], last)
    assert not torch.equal(whole[:, 0], whole[:, 1])


@torch.no_grad()
def test_an_action_changes_the_frames_after_it_and_none_before():
    prior, _ = build()
    start = (torch.randint(0, 8, (1, 2, 3, 4)).expand(8, -1, -1, -1),)
    actions = torch.zeros(8, 2 + 3, dtype=torch.int64)
    changed = actions.clone()
    changed[:, 3] = 2  # of the second new frame
    before, after = (roll_out(prior, start, each, 4)[0] for each in (actions, changed))
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.equal(before[:, 2], after[:, 2])


@torch.no_grad()
@pytest.mark.parametrize("given,frames", [(0, 2), (1, 10), (6, 1), (20, 3)])
def test_any_number_of_frames_may_be_given_and_drawn(given, frames):
    prior, _ = build()
    start = torch.randint(0, 8, (1, given, 3, 4))
    (drawn,) = roll_out(prior, (start,), torch.zeros(1, given + frames - 1, dtype=torch.int64), frames)
    assert drawn.shape == (1, frames, 3, 4)
    if given > 2:  # the prior sees the last two
        (short,) = roll_out(prior, (start[:, -2:],), torch.zeros(1, 1 + frames, dtype=torch.int64), frames)
        assert torch.equal(drawn, short)


@torch.no_grad()
def test_the_first_frame_drawn_is_the_sample_of_the_window_before_it():
    prior, given = build()
    start = (torch.stack(given.codes, 1),)
    (frames,) = roll_out(prior, start, given.actions, 1, seed=3)
    (*_, last) = prior.sample(given, Noise(3, 0, 2).of("frame", 0), SamplingConfig())
    assert torch.equal(frames[:, 0], last.codes[0])


@torch.no_grad()
def test_without_a_condition_nothing_is_known():
    prior, given = build()
    codes = random_codes(prior)
    hidden = Condition(codes=tuple(torch.full_like(grid, HIDDEN) for grid in given.codes))
    assert not moved(prior, codes, Condition(), hidden)
    assert not moved(prior, codes, hidden, hidden._replace(actions=torch.full_like(given.actions, HIDDEN)))
    assert moved(prior, codes, given, Condition())
    assert sample(prior, 2)[0].shape == (2, 3, 4)


@torch.no_grad()
def test_training_sometimes_hides_the_oldest_frames_with_their_actions():
    prior, _ = build(context_frames=4, frame_dropout=0.5, coarse_dropout=0.0)
    given = earlier_frames(prior, 200)
    *frames, actions = prior.coarser_codes(given, 200, Moment(0, 1, Noise(0, count=200)))
    known = actions != HIDDEN
    assert torch.equal(known, torch.stack([grid.flatten(1)[:, 0] != HIDDEN for grid in frames], 1))
    assert (known[:, 1:] >= known[:, :-1]).all()  # from the oldest on
    assert known.sum(1).unique().tolist() == [0, 1, 2, 3, 4] and 80 < known.all(1).sum() < 160


REFUSED = {
    "too few frames": (lambda given: given._replace(codes=given.codes[:1]), "`codes` of 1 grids.*2 earlier frames"),
    "another size": (lambda given: given._replace(codes=tuple(g[:, :2] for g in given.codes)), "`codes` of shape"),
    "a code too high": (lambda given: given._replace(codes=tuple(g + 8 for g in given.codes)), "codes are 0 to 7"),
    "an action too high": (lambda given: given._replace(actions=given.actions + 3), "the actions are 0 to 2"),
    "an action too few": (lambda given: given._replace(actions=given.actions[:, :1]), "one for each earlier frame"),
}  # fmt: skip


@pytest.mark.parametrize("change,reason", REFUSED.values(), ids=REFUSED)
def test_frames_and_actions_that_do_not_fit_are_refused_by_name(change, reason):
    prior, given = build()
    with pytest.raises(InputError, match=reason):
        prior.logits(random_codes(prior), change(given))


def test_videos_are_continued_by_priors_over_frames_alone():
    with pytest.raises(InputError, match="trained with `model` video"):
        roll_out(build_prior("pixelcnn"), (torch.zeros(1, 2, 4, 5, dtype=torch.int64),))
    prior, _ = build()
    with pytest.raises(InputError, match=r"`actions` of shape \(1, 3\), but \(1, 4\) is needed"):
        roll_out(prior, (torch.zeros(1, 2, 3, 4, dtype=torch.int64),), torch.zeros(1, 3, dtype=torch.int64), 3)


@torch.no_grad()
def test_a_saved_prior_is_the_same_prior(tmp_path):
    prior, given = build((8, 5), frame_dropout=0.2, context_frames=3)
    given, codes = earlier_frames(prior, 2), random_codes(prior)
    prior.float().save_pretrained(tmp_path)
    again = VideoPrior.from_pretrained(tmp_path).eval()
    assert again.config == prior.config and not moved(prior, codes, given, given)
    assert all(map(torch.equal, prior.logits(codes, given), again.logits(codes, given)))

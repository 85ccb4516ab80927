"""A prior of another kind, written and registered here, that draws many sites at once in any order.

Everything outside of this file takes it as it is: samples, seeds, kept sites, several priors, bits, model folders.

Shapes: b batch, s sites of all grids, c channels.
"""

from dataclasses import asdict, dataclass
from typing import Annotated

import pytest
import torch
from torch import nn

from codegrid.codes import Condition, Grid, Known, Losses, Moment, make_layout
from codegrid.errors import InputError
from codegrid.limits import Range, make_options
from codegrid.model_folder import ModelFolder
from codegrid.noise import Noise
from codegrid.protocols import NO_CONDITION
from codegrid.registry import TABLES, load, register
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior import Conditions, GatedPixelCNN, draw, sample
from codegrid.stage2_prior.likelihood import measure
from codegrid.stage2_prior.masked_likelihood import nats_of_hidden, random_order_nats
from codegrid.stage2_prior.sampling.checks import spread_known, start_grids
from codegrid.stage2_prior.sampling.masked import sample_masked

LAYOUTS = {
    "one axis": (Grid((12,), 6),),
    "two axes": (Grid((3, 5), 6),),
    "three axes": (Grid((2, 2, 3), 6),),
    "two codes a site": (Grid((3, 4), 6), Grid((3, 4), 4)),
    "a pyramid": (Grid((2, 2), 6), Grid((4, 3), 5)),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@dataclass(frozen=True)
class MaskedOptions:
    channels: Annotated[int, Range(1, 256)] = 16
    """Width."""
    num_inference_steps: Annotated[int, Range(1, 100)] = 4
    """Steps in which all sites are drawn."""


class MaskedPrior(ModelFolder, nn.Module):
    """Each hidden code from all that are visible, whichever they are."""

    kind, likelihood, keeps = "prior", "bound", "any"
    options = MaskedOptions
    controls = frozenset(vars(SamplingConfig())) - {"solver"}

    def __init__(self, layout, grids=None, num_classes=0, given_grids=(), **options):
        super().__init__()
        chosen = make_options(MaskedOptions, options, "the masked prior")
        self.layout = make_layout(layout)
        self.grids = tuple(range(len(self.layout)) if grids is None else grids)
        self.given_grids, self.num_classes = tuple(given_grids), num_classes
        self.num_inference_steps = chosen.num_inference_steps
        width = chosen.channels
        # the last entry of each is for what is hidden
        self.embeddings = nn.ModuleList(nn.Embedding(grid.num_embeddings + 1, width) for grid in self.layout)
        self.places = nn.Parameter(torch.randn(sum(grid.num_sites for grid in self.layout), width))
        self.labels = nn.Embedding(num_classes + 1, width)
        self.from_coarser = nn.Linear(1, width)
        self.mix = nn.Sequential(nn.Linear(2 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.heads = nn.ModuleList(nn.Linear(width, grid.num_embeddings) for grid in self.layout)
        self.config = {
            "layout": [grid.as_json() for grid in self.layout], "grids": list(self.grids), "num_classes": num_classes,
            "given_grids": list(given_grids), **asdict(chosen),
        }  # fmt: skip
        self.provenance = {}

    @property
    def conditions(self):
        return Conditions(self.num_classes, tuple(self.provenance.get("classes", ())), unlabelled=True)

    def hidden_logits(self, codes, given=NO_CONDITION, backend="auto"):
        rows = self.conditions.rows(given, len(codes[0]), self.device, takes=("codes",))
        pairs = zip(self.embeddings, codes, strict=True)
        embedded = [table(grid.flatten(1).remainder(table.num_embeddings)) for table, grid in pairs]
        sites = torch.cat(embedded, dim=1) + self.places
        if rows is not None:
            sites = sites + self.labels(rows)[:, None]
        for coarser in given.codes:
            sites = sites + self.from_coarser(coarser.flatten(1).to(sites.dtype).mean(1, keepdim=True))[:, None]
        everywhere = sites.relu().mean(1, keepdim=True).expand_as(sites)
        features = self.mix(torch.cat([sites, everywhere], dim=2))
        sizes = [grid.num_sites for grid in self.layout]
        return [head(part) for head, part in zip(self.heads, features.split(sizes, dim=1), strict=True)]

    def forward(self, codes, given=NO_CONDITION, moment=None):
        noise = Noise(0, count=len(codes[0])) if moment is None else moment.noise
        hidden = noise.uniforms("hidden", len(self.places)) < noise.uniforms("share", 1).clamp_min(0.1)
        nats = nats_of_hidden(self, codes, given, hidden)
        loss = (nats * hidden).sum() / hidden.sum().clamp_min(1)
        return Losses({"nll": loss}, {})

    @property
    def max_inference_steps(self):
        return len(self.places)

    @property
    def own_settings(self):
        return SamplingConfig(num_inference_steps=self.num_inference_steps, mask_schedule="linear")

    def nll(self, codes, given=NO_CONDITION, noise=None, num_inference_steps=None):
        noise = Noise(0, count=len(codes[0])) if noise is None else noise
        steps = num_inference_steps or self.num_inference_steps
        return random_order_nats(self, codes, given, noise, steps, "linear")

    def sample(self, given, noise, config, known=None, backend="auto", watch=False):
        return sample_masked(self, given, noise, config, known, backend, watch)


register("prior", "test-masked", MaskedPrior)


def build(layout, **options):
    torch.manual_seed(0)
    return MaskedPrior(layout, **options).double().eval()


def random_codes(layout, count):
    return tuple(torch.randint(0, grid.num_embeddings, (count, *grid.shape)) for grid in layout)


def same(*drawn):
    return all(torch.equal(*grids) for grids in zip(*drawn, strict=True))


@each_layout
def test_noise_of_a_sample_is_the_same_in_any_batch_whatever_the_axes(layout):
    for grid in layout:
        for name in ("uniforms", "normals"):
            whole = getattr(Noise(3, 0, 7), name)("codes", *grid.shape)
            assert whole.shape == (7, *grid.shape) and whole.dtype == torch.float64
            for first, count in ((0, 2), (2, 5), (6, 1)):
                part = getattr(Noise(3, first, count), name)("codes", *grid.shape)
                assert torch.equal(part, whole[first : first + count])
            assert len(whole.unique()) == whole.numel()


@each_layout
def test_what_is_known_may_be_the_same_for_all_samples_or_not(layout):
    codes = random_codes(layout, 3)
    masks = tuple(torch.rand(3, *grid.shape) < 0.5 for grid in layout)
    known = spread_known(Known(codes, masks), layout, 3, "cpu")
    started, drawn = start_grids(layout, 3, "cpu", known)
    assert same(drawn, masks)
    assert same(started, [grid * mask for grid, mask in zip(codes, masks, strict=True)])
    of_all = Known(tuple(grid[:1] for grid in codes), tuple(mask[0] for mask in masks))
    for grid, mask, one, same_mask in zip(*spread_known(of_all, layout, 3, "cpu"), *of_all, strict=True):
        assert torch.equal(grid, one.expand_as(grid)) and torch.equal(mask, same_mask.expand_as(mask))
    nothing = Known(codes, tuple(torch.zeros_like(mask) for mask in masks))
    assert spread_known(nothing, layout, 3, "cpu") is None


@each_layout
def test_a_sample_follows_from_its_seed_and_number_alone(layout):
    prior = build(layout, num_classes=3)
    together = sample(prior, 7, seed=3)
    assert [grid.shape for grid in together] == [(7, *grid.shape) for grid in layout]
    assert same(together, sample(prior, 7, seed=3, batch_size=2)) and not same(together, sample(prior, 7, seed=4))
    for first, count in ((0, 1), (2, 4), (6, 1)):
        alone = sample(prior, count, seed=3, first_index=first)
        assert same(alone, [grid[first : first + count] for grid in together])


@each_layout
@pytest.mark.parametrize("controls", [{}, {"temperature": 0.0}, {"top_k": 2, "top_p": 0.9}, {"guidance_scale": 3.0}])
def test_any_sites_can_be_kept_under_every_control(layout, controls):
    prior, codes = build(layout, num_classes=3), random_codes(layout, 5)
    masks = tuple(torch.rand(5, *grid.shape) < 0.4 for grid in layout)
    drawn = sample(prior, 5, known=Known(codes, masks), **controls)
    free = sample(prior, 5, **controls)
    assert all(torch.equal(grid[mask], old[mask]) for grid, old, mask in zip(drawn, codes, masks, strict=True))
    assert not same(drawn, free)
    everything = tuple(torch.ones_like(mask) for mask in masks)
    assert same(sample(prior, 5, known=Known(codes, everything), **controls), codes)


@each_layout
@pytest.mark.parametrize("steps", [1, 3, 12])
def test_all_sites_are_drawn_in_as_many_steps_as_are_asked_for(layout, steps):
    prior, config = build(layout), SamplingConfig(num_inference_steps=steps)
    seen = []
    for progress in draw([prior], Condition(), Noise(1, count=2), [config], watch=True):
        marks = torch.cat([mark.flatten(1) for mark in progress.drawn], dim=1)
        seen.append((progress.done, marks.sum(1).tolist()))
    assert len(seen) == steps and seen == sorted(seen) and seen[-1] == (1, [len(prior.places)] * 2)
    (alone,) = draw([prior], Condition(), Noise(1, count=2), [config])
    assert same(alone.codes, progress.codes) and all(mark.all() for mark in alone.drawn)
    with pytest.raises(InputError, match=f"`num_inference_steps` 50: .* at most {len(prior.places)} steps"):
        sample(prior, 2, num_inference_steps=50)


def test_one_tokenizers_grids_may_be_drawn_by_priors_of_two_kinds():
    torch.manual_seed(0)
    coarse = GatedPixelCNN([Grid((2, 3), 6)], num_classes=3, channels=6, num_layers=2).double().eval()
    fine = build([Grid((4, 6), 5)], grids=(1,), given_grids=(0,), num_classes=3)
    drawn = sample([coarse, fine], 6, seed=2, num_inference_steps=[None, 5], top_k=[0, 3], labels=[1])
    assert torch.equal(drawn[0], sample(coarse, 6, seed=2, labels=[1])[0])
    alone = sample(fine, 6, seed=2, labels=[1], codes=drawn[:1], num_inference_steps=5, top_k=3)
    assert torch.equal(drawn[1], alone[0])
    other = sample(fine, 6, seed=2, labels=[1], codes=(5 - drawn[0],), num_inference_steps=5, top_k=3)
    assert not torch.equal(other[0], alone[0])
    with pytest.raises(InputError, match="`num_inference_steps` has no effect"):
        sample([coarse, fine], 6, num_inference_steps=5)


@each_layout
def test_its_bound_does_not_depend_on_the_batches(layout):
    prior, codes = build(layout), random_codes(layout, 5)

    def bits(batch_size, **options):
        starts = range(0, 5, batch_size)
        batches = [(tuple(grid[first : first + batch_size] for grid in codes), Condition()) for first in starts]
        return measure(prior, batches, **options)

    whole = bits(5)
    assert bits(2).per_sample == pytest.approx(whole.per_sample)
    assert bits(5, seed=1).per_sample != whole.per_sample != bits(5, num_inference_steps=1).per_sample
    assert [part.shape for part in whole.at_sites] == [grid.shape for grid in layout]


@each_layout
def test_it_learns_by_the_same_pass_as_every_prior(layout):
    prior = build(layout, num_classes=2).train()
    codes, given = random_codes(layout, 2), Condition(torch.tensor([0, 1]))
    optimizer = torch.optim.Adam(prior.parameters(), 0.02)
    for step in range(60):
        loss = prior(codes, given, Moment(step, 60, Noise(0, count=2, purpose=("step", step)))).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = sample(prior.eval(), 2, labels=[0, 1], temperature=0.0)
    hits = sum(int((new == old).sum()) for new, old in zip(drawn, codes, strict=True))
    assert hits > 0.9 * 2 * len(prior.places)


def test_its_folder_is_loaded_by_the_name_under_which_it_is_registered(tmp_path):
    torch.manual_seed(0)
    prior = MaskedPrior([Grid((3, 5), 6)], num_classes=2, channels=8).eval()
    assert TABLES["prior"].options("test-masked") is MaskedOptions
    prior.save_pretrained(tmp_path / "prior")
    again = load(tmp_path / "prior")
    assert type(again) is MaskedPrior and not again.training
    assert same(sample(again, 3), sample(prior, 3))

"""Priors that know next to nothing, for tests of what takes any prior.

Shapes: b batch, *shape the sites of a grid, K num_embeddings.
"""

import math

import torch
from torch import nn

import codegrid
from codegrid.codes import Condition, Losses, Progress, make_layout
from codegrid.model_folder import ModelFolder
from codegrid.stage2_prior.conditions import Conditions

NO_CONDITION = Condition()


class UniformPrior(ModelFolder, nn.Module):
    """Draws every code alike. Its bound is above the exact log2 K by noise, less of it with more steps.

    `given_grids` are coarser grids that it must be given, and makes nothing of.
    """

    kind, keeps, controls = "prior", "none", frozenset({"num_inference_steps"})
    likelihood = "exact"

    def __init__(self, layout, grids=None, num_classes=0, given_grids=()):
        super().__init__()
        self.layout = make_layout(layout)
        self.grids = tuple(range(len(self.layout)) if grids is None else grids)
        self.given_grids, self.num_classes = tuple(given_grids), num_classes
        self.register_buffer("nothing", torch.zeros(1))
        self.config = {
            "layout": [grid.as_json() for grid in self.layout], "grids": list(self.grids), "num_classes": num_classes,
            "given_grids": list(self.given_grids),
        }  # fmt: skip
        self.provenance = {}

    @property
    def conditions(self):
        return Conditions(self.num_classes, tuple(self.provenance.get("classes", ())), False)

    def forward(self, codes, given=NO_CONDITION, moment=None):
        return Losses({"nll": self.nothing.sum()}, {})

    def nll(self, codes, given=NO_CONDITION, noise=None, num_inference_steps=None):
        assert [len(grid) for grid in given.codes] == [len(codes[0])] * len(self.given_grids)
        exact = [
            torch.full(grid.shape, math.log(of.num_embeddings)) for grid, of in zip(codes, self.layout, strict=True)
        ]
        if self.likelihood == "bound":
            slack = [noise.uniforms(f"slack {i}", *of.shape) for i, of in enumerate(self.layout)]
            exact = [nats + more / (num_inference_steps or 1) for nats, more in zip(exact, slack, strict=True)]
        return None if self.likelihood == "none" else tuple(exact)

    def sample(self, given, noise, config, known=None, backend="auto", watch=False):
        codes = tuple(
            (noise.uniforms(f"codes {i}", *grid.shape) * grid.num_embeddings).long()
            for i, grid in enumerate(self.layout)
        )
        yield Progress(codes, tuple(torch.ones_like(grid, dtype=torch.bool) for grid in codes), 1.0)


class BoundPrior(UniformPrior):
    likelihood = "bound"


class SilentPrior(UniformPrior):
    likelihood = "none"


for name, cls in (("toy-uniform", UniformPrior), ("toy-bound", BoundPrior), ("toy-silent", SilentPrior)):
    codegrid.register("prior", name, cls)

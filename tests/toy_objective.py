"""A small objective of two players, for tests of the training loop.

Shapes: b batch.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from codegrid.codes import Losses
from codegrid.pipelines.running.device import ComputeConfig
from codegrid.pipelines.running.settings import Training
from codegrid.pipelines.training.objective import Player
from codegrid.pipelines.training.trainer import fused_adam

COMPUTE = ComputeConfig("fp32")
WIDTH = 3


@dataclass(frozen=True, kw_only=True)
class TrainToy(Training):
    output: str = ""
    steps: int = 20
    batch_size: int = 8
    lr: float = 0.05
    save_every: int | None = 6


class Points(NamedTuple):
    points: torch.Tensor  # (b, 3)
    labels: torch.Tensor | None


class PointData:
    def __init__(self):
        self.points = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.points)

    def batch(self, indices):
        return Points(self.points[torch.as_tensor(indices)], None)


class Toy:
    """A painter that must please a critic, who begins later; an adaptive weight; everything that a state can hold."""

    items, criterion, num_workers = "points", "distance", 0

    def __init__(self, make_optimizer=fused_adam, critic_from=5, keep_best=True, average_decay=0.9, dropout=0.2):
        torch.manual_seed(0)
        painter = nn.Sequential(nn.Linear(WIDTH, 4), nn.Dropout(dropout), nn.Linear(4, WIDTH))
        self.dataset, self.keep_best = PointData(), keep_best
        self.players = {
            "painter": Player(painter, make_optimizer, 0.05, max_norm=1.0, average_decay=average_decay),
            "critic": Player(nn.Linear(WIDTH, 1), make_optimizer, 0.02, first_step=critic_from),
        }
        self.buffers = {"weight": torch.ones(())}
        self.seen, self.steps, self.distances = [], [], []

    def losses(self, player, wrapped, batch, moment):
        self.seen.append((player, moment))
        if player == "critic":
            drawn = self.players["painter"].module(batch.points).detach()
            return Losses({"judgement": wrapped(drawn).mean() - wrapped(batch.points).mean()}, {})
        drawn = wrapped(batch.points + moment.noise.normals("jitter", WIDTH).float())
        distance = (drawn - batch.points).square().mean()
        displeasure = -self.buffers["weight"] * self.players["critic"].module(drawn).mean()
        return Losses({"distance": distance, "displeasure": displeasure}, {"largest": drawn.detach().abs().amax()})

    def after_step(self, step, seed):
        self.steps.append(step)
        self.buffers["weight"].mul_(0.9).add_(0.01 * step)

    def validate(self):
        points = self.dataset.points
        with torch.no_grad():
            distance = (self.players["painter"].validated(points) - points).square().mean()
        self.distances.append(float(distance))
        return {"distance": float(distance), "grids": ["not a number"]}

    def draw(self):
        return {}

    def save(self, folder, history):
        folder.mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(str(history[-1]["step"]))

    def tensors(self):
        """Everything that training moved."""
        parts = {f"{name} {part}": module for name, player in self.players.items()
                 for part, module in player.modules().items()}  # fmt: skip
        state = {f"{name} {key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
        return {**state, **self.buffers}

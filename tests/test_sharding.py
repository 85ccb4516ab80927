"""A prior whose weights are split over two processes learns, is kept and goes on as one in one piece."""

import json

import pytest
import torch
from conftest import LEFT, TINY_PRIOR
from torch import nn
from two_processes import run_command

from codegrid import load
from codegrid.errors import InputError
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.training.sharding import blocks_of, check_can_shard
from codegrid.pipelines.training.trainer import Trainer

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.xdist_group("two")]


def train_and_look(flags):
    """Train as one of two processes; prints how much this one holds of everything that is as large as the weights."""
    from torch.distributed.tensor import DTensor  # half a second, in the two processes alone

    update, shares = Trainer.update, []

    def update_and_look(trainer, step):
        update(trainer, step)
        state = trainer.trainable()
        (optimizer,) = state.optimizers.values()
        kept = [value for values in optimizer.state.values() for value in values.values() if value.ndim]
        parts = [*(parameter for module in state.modules.values() for parameter in module.parameters()), *kept]
        assert all(isinstance(part, DTensor) for part in parts)
        shares.append(sum(part.to_local().numel() for part in parts) / sum(part.numel() for part in parts))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "update", update_and_look)
        run_command("train_prior", flags)
    print("shares", shares)


@pytest.fixture
def train(two, run_script, small_run):
    """Train a prior up to some step, in one process or sharded; returns the model, and the shares of two processes."""

    def call(folder, steps, sharded):
        flags = ["--codes", small_run / "codes", *TINY_PRIOR, "--lr-schedule", "constant", "--lr", 0.02]
        flags += ["--ema-decay", 0.9, "--validate-every", 2, "--steps", steps, "--output", folder]
        flags += ["--dropout", 0]  # its masks are of each process
        flags += ["--weight-decay", 1]  # its optimizer has two groups of weights
        shares = []
        if sharded:
            printed = two.call(train_and_look, [*map(str, flags), "--shard"])
            shares = [json.loads(text.rpartition("shares")[2]) for text in printed]
        else:
            assert run_script("train_prior", *flags).code == 0
        return load(folder), shares

    return call


@pytest.fixture(scope="module")
def expected():
    """The model of one process, once it is there."""
    return []


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="this torch shards on GPUs alone")
@pytest.mark.parametrize("sharded_first", [True, False])
def test_a_run_that_is_sharded_at_first_or_later_learns_as_one_that_never_is(sharded_first, train, expected, tmp_path):
    if not expected:
        expected.append(train(tmp_path / "whole", 10, False)[0])
    _, first = train(tmp_path / "prior", 6, sharded_first)
    prior, then = train(tmp_path / "prior", 10, not sharded_first)
    for row, whole in zip(prior.provenance["history"], expected[0].provenance["history"], strict=True):
        assert row["step"] == whole["step"] and row["bits_per_code"] == pytest.approx(whole["bits_per_code"], rel=1e-4)
    ours, theirs = (torch.cat([weight.flatten() for weight in each.parameters()]) for each in (prior, expected[0]))
    assert (ours - theirs).norm() < 0.01 * theirs.norm()
    assert sorted(path.name for path in (tmp_path / "prior").iterdir()) == [*LEFT, "state"]
    one, other = first or then
    assert one == pytest.approx([0.5] * (6 if sharded_first else 4), abs=0.1)
    assert [sum(pair) for pair in zip(one, other, strict=True)] == pytest.approx([1.0] * len(one))


def test_one_process_says_that_it_has_nobody_to_share_with(run_script, small_run, tmp_path):
    flags = ("--codes", small_run / "codes", *TINY_PRIOR, "--steps", 1, "--output", tmp_path / "prior", "--shard")
    printed = run_script("train_prior", *flags)
    assert printed.code == 0 and "--shard: one process holds all" in printed.out


def test_what_is_sharded_is_not_compiled(tmp_path):
    with pytest.raises(InputError, match=r"`shard`.*`compile`"):
        TrainPrior(codes="codes", output=str(tmp_path), shard=True, compile=True)


def test_a_torch_that_cannot_shard_on_cpus_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cpu, "Stream", object)
    with pytest.raises(InputError, match=r"`shard`.*later than 2\.6"):
        check_can_shard(torch.device("cpu"))
    check_can_shard(torch.device("cuda"))


def test_blocks_are_the_members_of_lists_the_inner_ones_first():
    inner = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    block = nn.Module()
    block.parts = inner
    network = nn.Sequential(nn.ModuleList([block, nn.ReLU(), nn.ModuleList([nn.Linear(1, 1)])]), nn.Linear(1, 1))
    found = blocks_of(network)
    assert block in found and {*inner, block, network[0][1], network[0][2][0]} == set(found)
    assert found.index(block) > max(found.index(part) for part in inner)

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
    update, shares = Trainer.update, []

    def update_and_look(trainer, step):
        update(trainer, step)
        state = trainer.trainable()
        (optimizer,) = state.optimizers.values()
        kept = [value for values in optimizer.state.values() for value in values.values() if value.ndim]
        parts = [*(parameter for module in state.modules.values() for parameter in module.parameters()), *kept]
        shares.append(sum(part.to_local().numel() for part in parts) / sum(part.numel() for part in parts))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "update", update_and_look)
        run_command("train_prior", flags)
    print("shares", shares)


@pytest.fixture
def train(two, run_script, small_run):
    """Train a prior up to some step, in one process or sharded; returns the model, and the shares of two processes."""

    def call(folder, steps, sharded):
        flags = ["--codes", small_run / "codes", *TINY_PRIOR, "--lr-schedule", "constant", "--validate-every", 2]
        flags += ["--steps", steps, "--output", folder]
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
@pytest.mark.parametrize("first,then", [(None, True), (True, False), (False, True)])
def test_a_run_that_is_sharded_from_the_start_or_for_a_while_learns_as_one_that_is_not(
    first, then, train, expected, tmp_path
):
    if not expected:
        expected.append(train(tmp_path / "whole", 8, False)[0])
    if first is not None:
        train(tmp_path / "prior", 4, first)
    prior, shares = train(tmp_path / "prior", 8, then)
    for row, whole in zip(prior.provenance["history"], expected[0].provenance["history"], strict=True):
        assert row["step"] == whole["step"] and row["bits_per_code"] == pytest.approx(whole["bits_per_code"], rel=1e-4)
    for weight, whole in zip(prior.parameters(), expected[0].parameters(), strict=True):
        torch.testing.assert_close(weight, whole, atol=1e-2, rtol=0)  # Adam makes much of a gradient near 0
    assert sorted(path.name for path in (tmp_path / "prior").iterdir()) == [*LEFT, "state"]
    if then:
        assert shares[0] == pytest.approx([0.5] * len(shares[0]), abs=0.1)
        assert [sum(pair) for pair in zip(*shares, strict=True)] == pytest.approx([1.0] * len(shares[0]))


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

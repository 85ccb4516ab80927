"""The training loop, by small objectives of its own: players, gradients, states, and that a stopped run goes on."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from toy_objective import COMPUTE, WIDTH, Points, Toy, TrainToy

from codegrid.codes import Losses
from codegrid.data.loading import StepSampler, check_shares, in_order, pieces_of
from codegrid.errors import InputError
from codegrid.locks import releasing
from codegrid.pipelines.running.cli import Stopped
from codegrid.pipelines.running.processes import check_same_step
from codegrid.pipelines.running.run_folder import Run
from codegrid.pipelines.training import checkpoints, loop
from codegrid.pipelines.training.checkpoints import Checkpoints
from codegrid.pipelines.training.loop import Throughput, train
from codegrid.pipelines.training.objective import Player
from codegrid.pipelines.training.trainer import Trainer, fused_adam, lr_factor


def train_toy(folder, toy, **settings):
    settings = TrainToy(output=str(folder), **settings)
    with releasing():
        return train(toy, settings, COMPUTE, Run(folder, settings), Accelerator(cpu=True))


class Killed(Exception):
    pass


def kill_at_state(monkeypatch, number):
    """Let the next run end once it has written so many states."""
    save, written = Checkpoints.save, []

    def save_and_die(self, step, history):
        save(self, step, history)
        written.append(step)
        if len(written) == number:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save_and_die)


class Counting(torch.optim.SGD):
    """An optimizer that holds numbers beside tensors, and one of the whole group."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        for group in self.param_groups:
            group["moved"] = 0

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["moved"] += 1
            for parameter in group["params"]:
                held = self.state[parameter]
                held["count"] = held.get("count", 0) + 1
                held["length"] = parameter.grad.norm()
                parameter -= group["lr"] * parameter.grad / (held["count"] + group["moved"])


class Pair(torch.optim.SGD):
    """An optimizer of two groups: momentum for matrices only."""

    def __init__(self, parameters):
        parameters = list(parameters)
        groups = [
            {"params": [p for p in parameters if p.ndim == axes], "momentum": 0.9 * (axes - 1)} for axes in (1, 2)
        ]
        super().__init__([group for group in groups if group["params"]], lr=0.1)


OPTIMIZERS = {
    "adam": fused_adam,
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adagrad": torch.optim.Adagrad,
    "numbers": Counting,
    "two groups": Pair,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_killed_run_ends_as_one_that_never_stopped_whatever_the_optimizer_holds(tmp_path, monkeypatch, optimizer):
    whole, killed, again = (Toy(OPTIMIZERS[optimizer]) for _ in range(3))
    history = train_toy(tmp_path / "whole", whole, accumulate=2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_state(patch, 2)
        train_toy(tmp_path / "killed", killed, accumulate=2)
    assert train_toy(tmp_path / "killed", again, accumulate=2) == history
    assert again.steps == list(range(12, 20)), "it must not begin again"
    expected = whole.tensors()
    assert all(torch.equal(value, expected[name]) for name, value in again.tensors().items())


def test_a_player_holds_no_state_and_does_not_move_before_its_first_step(tmp_path):
    toy = Toy(critic_from=20)
    before = {name: value.clone() for name, value in toy.players["critic"].module.state_dict().items()}
    history = train_toy(tmp_path, toy)
    assert all(torch.equal(value, before[name]) for name, value in toy.players["critic"].module.state_dict().items())
    state = load_file(tmp_path / "state" / "step-00000020" / "state.safetensors")
    assert not [name for name in state if name.startswith("critic.optimizer")]
    assert [name for name in state if name.startswith("painter.optimizer")]
    assert not any(name.startswith("critic") for name in history[-1])


def test_a_players_losses_move_no_other_player():
    toy = Toy(critic_from=0)
    trainer = Trainer(toy, TrainToy(), COMPUTE, Accelerator(cpu=True))
    trainer.find_gradients(toy.dataset.batch(range(8)), 0)
    critic = toy.players["critic"].module
    # the critic's bias cancels in its own loss, and not in the painter's
    assert critic.bias.grad.abs() < 1e-6 and critic.weight.grad.abs().sum() > 0
    assert all(parameter.requires_grad for player in toy.players.values() for parameter in player.module.parameters())


def test_figures_of_all_players_but_the_first_carry_their_names(tmp_path):
    history = train_toy(tmp_path, Toy(critic_from=0))
    assert history[-1].keys() == {
        "step", "loss", "distance", "displeasure", "largest", "critic_loss", "critic_judgement",
    }  # fmt: skip


def test_what_torch_draws_is_the_same_for_all_players_of_a_piece(monkeypatch):
    class Drawing(Toy):
        def losses(self, player, wrapped, batch, moment):
            drawn.append(float(torch.rand(())))
            return super().losses(player, wrapped, batch, moment)

    drawn = []
    toy = Drawing(critic_from=0)
    trainer = Trainer(toy, TrainToy(accumulate=2), COMPUTE, Accelerator(cpu=True))
    trainer.find_gradients(toy.dataset.batch(range(8)), 0)
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


@pytest.mark.parametrize("processes,pieces", [(1, 1), (1, 4), (2, 1), (2, 2)])
def test_noise_of_a_step_does_not_depend_on_processes_and_pieces(processes, pieces):
    rows = []
    for rank in range(processes):
        toy = Toy(critic_from=100)
        accelerator = Accelerator(cpu=True)
        ranked = SimpleNamespace(
            num_processes=processes, process_index=rank, device=torch.device("cpu"),
            prepare_model=accelerator.prepare_model, no_sync=accelerator.no_sync,
        )  # fmt: skip
        trainer = Trainer(toy, TrainToy(accumulate=pieces), COMPUTE, ranked)
        trainer.find_gradients(next(iter(trainer.batches(0))), 0)
        rows += [moment.noise.uniforms("jitter", WIDTH) for _, moment in toy.seen]
    whole = toy.seen[0][1].noise
    whole.first_index, whole.count = 0, 8
    assert torch.equal(torch.cat(rows), whole.uniforms("jitter", WIDTH))
    assert toy.seen[0][1].steps == 20


class Plain(Toy):
    """One player that draws nothing at random."""

    def __init__(self):
        super().__init__()
        self.players = {"line": Player(nn.Linear(WIDTH, 1), fused_adam, 0.01)}
        self.keep_best = False

    def losses(self, player, wrapped, batch, moment):
        return Losses({"squares": wrapped(batch.points).square().mean()}, {})

    def validate(self):
        return {}


@pytest.mark.parametrize("pieces", [2, 4])
def test_the_gradient_of_pieces_is_that_of_the_whole_batch(pieces):
    def gradient_of(accumulate):
        toy = Plain()
        trainer = Trainer(toy, TrainToy(accumulate=accumulate), COMPUTE, Accelerator(cpu=True))
        figures = trainer.find_gradients(toy.dataset.batch(range(8)), 0)
        return toy.players["line"].module.weight.grad, figures["loss"]

    for whole, cut in zip(gradient_of(1), gradient_of(pieces), strict=True):
        torch.testing.assert_close(cut, whole)


def test_the_best_average_is_kept_and_validated_in_place_of_the_weights(tmp_path):
    class Worse(Toy):
        """Its metric gets worse after the sixth of ten validations."""

        def validate(self):
            average = self.players["painter"].validated
            assert average is not self.players["painter"].module and not average.training
            averages.append({name: value.clone() for name, value in average.state_dict().items()})
            return {"distance": float(abs(len(averages) - 6))}

    averages = []
    toy = Worse()
    train_toy(tmp_path / "best", toy)
    kept = toy.players["painter"].kept.state_dict()
    assert len(averages) == 10 and all(torch.equal(kept[name], averages[5][name]) for name in kept)
    averages.clear()
    last = Worse(keep_best=False)
    train_toy(tmp_path / "last", last)
    kept = last.players["painter"].kept.state_dict()
    assert all(torch.equal(kept[name], averages[9][name]) for name in kept)


def test_an_average_follows_the_weights_and_takes_over_what_is_no_number_with_a_point():
    module = nn.Linear(1, 1, bias=False)
    module.register_buffer("count", torch.zeros((), dtype=torch.int64))
    player = Player(module, fused_adam, 0.1, average_decay=0.5)
    expected = None
    for step in range(5):
        module.weight.data.fill_(step)
        module.count += 1
        player.average.update_parameters(module)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = float(step) if expected is None else decay * expected + (1 - decay) * step
    assert player.validated.weight.item() == pytest.approx(expected) and player.validated.count == 5


def test_validated_metrics_that_are_not_finite_end_the_run_in_one_line(tmp_path):
    class Lost(Plain):
        def validate(self):
            return {"distance": float("nan")}

    with pytest.raises(InputError, match="step 2: metrics on validation data are not finite"):
        train_toy(tmp_path, Lost())
    assert not list(tmp_path.glob("state/*"))


@pytest.mark.parametrize("name,value", [("loss", float("nan")), ("gradient", float("inf"))])
def test_training_stops_at_the_step_at_which_a_figure_is_not_finite(name, value, tmp_path):
    class Lost(Plain):
        def losses(self, player, wrapped, batch, moment):
            if moment.step != 12:
                return super().losses(player, wrapped, batch, moment)
            if name == "loss":
                return Losses({"squares": wrapped(batch.points).sum() * value}, {})
            wrapped.weight.register_hook(lambda gradient: gradient * value)
            return super().losses(player, wrapped, batch, moment)

    with pytest.raises(InputError, match=f"step 13: the {name} is {value}.*step-00000012.*smaller `lr`"):
        train_toy(tmp_path, Lost())
    state = load_file(tmp_path / "state" / "step-00000012" / "state.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point())


def test_a_signal_while_a_batch_is_waited_for_ends_the_wait_and_saves_what_is_done(tmp_path):
    toy = Toy()
    read = toy.dataset.batch

    def hang_at_the_tenth(indices):
        if len(toy.steps) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return read(indices)

    toy.dataset.batch = hang_at_the_tenth
    with pytest.raises(Stopped):
        train_toy(tmp_path, toy, save_every=None)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000009"]


def test_by_default_a_state_is_saved_after_seconds_and_not_after_steps(tmp_path, monkeypatch):
    saved, save = [], Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *rest: (saved.append(step), save(self, step, *rest)))
    for seconds, expected in ((0.0, list(range(1, 21))), (1000.0, [20])):
        saved.clear()
        monkeypatch.setattr(checkpoints, "SECONDS", seconds)
        train_toy(tmp_path / str(seconds), Toy(), save_every=None)
        assert saved == expected


def test_throughput_counts_items_and_leaves_out_pauses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def batches():
        for _ in range(4):
            now[0] += 1  # waiting
            yield None

    throughput = Throughput(batch_size=30, items="images")
    for _ in throughput.time(batches()):
        now[0] += 2  # working
        with throughput.pause():
            now[0] += 100
    assert throughput.read() == {"images/s": pytest.approx(10), "waiting": pytest.approx(1 / 3)}


def test_a_constant_learning_rate_is_constant():
    assert {lr_factor(step, 1000, "constant") for step in range(1000)} == {1.0}


def test_the_learning_rate_warms_up_and_falls_to_zero():
    factors = [lr_factor(step, 1000) for step in range(1000)]
    assert factors[0] < 0.02 and factors[99] < 1 and max(factors) == factors[100] == 1 and factors[-1] < 1e-4


def test_every_epoch_holds_each_item_once_in_another_order():
    items = [i for batch in StepSampler(10, 4, seed=0, start=0, stop=5) for i in batch]
    assert sorted(items[:10]) == sorted(items[10:]) == list(range(10))
    assert items[:10] != items[10:]


def test_a_step_is_the_same_wherever_the_run_was_resumed():
    whole = list(StepSampler(10, 4, seed=0, start=0, stop=9))
    assert list(StepSampler(10, 4, seed=0, start=6, stop=9)) == whole[6:]


def test_processes_share_a_step_without_overlap():
    whole = list(StepSampler(10, 4, seed=0, start=0, stop=3))
    shares = [list(StepSampler(10, 4, 0, 0, 3, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize(
    "num_processes,accumulate,words", [(4, 1, "4 processes:"), (1, 4, "4 pieces:"), (2, 2, "2 processes of 2 pieces:")]
)
def test_a_batch_that_cannot_be_shared_evenly_is_refused(num_processes, accumulate, words):
    with pytest.raises(InputError, match=f"`batch_size` 6 cannot be shared equally by {words}"):
        check_shares(6, num_processes, accumulate)


def test_the_pieces_of_a_batch_are_the_batch_in_order():
    batch = Points(torch.arange(6), None)
    assert [piece.points.tolist() for piece in pieces_of(batch, 3)] == [[0, 1], [2, 3], [4, 5]]
    assert all(piece.labels is None for piece in pieces_of(batch, 3))


def test_processes_that_see_different_states_are_refused():
    other_machine = SimpleNamespace(device="cpu", gather=lambda ours: torch.cat([ours, torch.tensor([0])]))
    check_same_step(other_machine, 0)
    with pytest.raises(InputError, match="different steps \\(0, 500\\)"):
        check_same_step(other_machine, 500)


def test_batches_in_order_end_with_a_short_one():
    assert [list(batch) for batch in in_order(5, 2)] == [[0, 1], [2, 3], [4]]

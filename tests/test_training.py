"""The training loop, by small objectives of its own: players, gradients, states, and that a stopped run goes on."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from codegrid.codes import Losses
from codegrid.data.loading import StepSampler, check_shares, in_order, pieces_of
from codegrid.errors import InputError
from codegrid.locks import release_all
from codegrid.pipelines.running.device import ComputeConfig
from codegrid.pipelines.running.processes import check_same_step
from codegrid.pipelines.running.run_folder import Run
from codegrid.pipelines.running.settings import Training
from codegrid.pipelines.training import checkpoints, loop
from codegrid.pipelines.training.checkpoints import Checkpoints, Trainable
from codegrid.pipelines.training.loop import Throughput, train
from codegrid.pipelines.training.objective import Player
from codegrid.pipelines.training.trainer import Trainer, fused_adam, lr_factor

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

    def __init__(self, make_optimizer=fused_adam, critic_from=5, keep_best=True, average_decay=0.9):
        torch.manual_seed(0)
        painter = nn.Sequential(nn.Linear(WIDTH, 4), nn.Dropout(0.2), nn.Linear(4, WIDTH))
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

    def tensors(self):
        """Everything that training moved."""
        parts = {f"{name} {part}": module for name, player in self.players.items()
                 for part, module in player.modules().items()}  # fmt: skip
        state = {f"{name} {key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
        return {**state, **self.buffers}


def train_toy(folder, toy, **settings):
    settings = TrainToy(output=str(folder), **settings)
    try:
        return train(toy, settings, COMPUTE, Run(folder, settings), Accelerator(cpu=True))
    finally:
        release_all()


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


def test_figures_of_several_players_carry_their_names(tmp_path):
    history = train_toy(tmp_path, Toy(critic_from=0))
    assert history[-1].keys() == {
        "step", "painter_loss", "painter_distance", "painter_displeasure", "painter_largest", "critic_loss",
        "critic_judgement", "distance",
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
    train_toy(tmp_path, toy)
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

    with pytest.raises(InputError, match="step 2: on validation data the metrics are not finite"):
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


def test_by_default_a_state_is_saved_after_seconds_and_not_after_steps(tmp_path, monkeypatch):
    saved, save = [], Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *rest: (saved.append(step), save(self, step, *rest)))
    for seconds, expected in ((0.0, list(range(1, 21))), (1000.0, [20])):
        saved.clear()
        monkeypatch.setattr(checkpoints, "SECONDS", seconds)
        train_toy(tmp_path / str(seconds), Toy(), save_every=None)
        assert saved == expected


def checkpoints_of(folder, module, run="run", optimizer=fused_adam, buffers=None):
    optimizer = optimizer(module.parameters())
    trainable = Trainable({"player.model": module}, {"player": optimizer}, buffers or {})
    return Checkpoints(folder, run, trainable, every=1), optimizer


def moved_once(module, optimizer):
    module(torch.ones(1, module.in_features)).sum().backward()
    optimizer.step()


def test_a_state_that_is_saved_before_damaged_ones_is_kept(tmp_path):
    module = nn.Linear(2, 2)
    states, optimizer = checkpoints_of(tmp_path, module)
    moved_once(module, optimizer)
    for step in (100, 200):
        states.save(step, [])
        (tmp_path / f"step-{step:08d}" / "state.safetensors").write_bytes(b"")
    assert states.load() == (0, [])
    states.save(20, [{"step": 20}])
    assert states.load() == (20, [{"step": 20}])


@pytest.mark.parametrize(
    "module,buffers",
    [(nn.Linear(3, 2), {"weight": torch.ones(())}), (nn.Linear(2, 2), {}), (nn.Linear(2, 2), {"weight": torch.ones(3)}),
     (nn.Linear(2, 2, bias=False), {"weight": torch.ones(())})],
    ids=["another shape", "a buffer too many", "a buffer of another shape", "a parameter too many"],
)  # fmt: skip
def test_a_state_that_does_not_fit_changes_nothing(module, buffers, tmp_path, capsys):
    first = nn.Linear(2, 2)
    states, optimizer = checkpoints_of(tmp_path, first, buffers={"weight": torch.ones(())})
    moved_once(first, optimizer)
    states.save(1, [])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    others, optimizer = checkpoints_of(tmp_path, module, buffers=buffers)
    assert others.load() == (0, []) and "does not hold what this run trains" in capsys.readouterr().out
    assert not optimizer.state
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_an_optimizers_state_must_have_the_shapes_of_the_parameters_and_the_same_names(tmp_path):
    class Wrong(torch.optim.SGD):
        def __init__(self, parameters, shape, names):
            super().__init__(parameters, lr=0.1)
            self.shape, self.names = shape, names

        def step(self):
            for number, parameter in enumerate(self.param_groups[0]["params"]):
                self.state[parameter][self.names[number]] = torch.zeros(self.shape or parameter.shape)

    for shape, names, fits in (((), "aa", True), (None, "aa", True), ((7,), "aa", False), (None, "ab", False)):
        module = nn.Linear(2, 2)
        states, optimizer = checkpoints_of(
            tmp_path, module, optimizer=lambda parameters, s=shape, n=names: Wrong(parameters, s, n)
        )
        moved_once(module, optimizer)
        states.save(1, [])
        assert states.load() == ((1, []) if fits else (0, []))


def test_parameters_that_never_had_a_gradient_hold_nothing_and_the_state_is_sound(tmp_path):
    module = nn.Linear(2, 2)
    states, optimizer = checkpoints_of(tmp_path, module)
    module.weight.sum().backward()
    optimizer.step()
    states.save(1, [])
    assert states.load() == (1, [])


def test_a_state_of_another_run_is_not_taken_for_ones_own(tmp_path, capsys):
    module = nn.Linear(2, 2)
    states, optimizer = checkpoints_of(tmp_path, module, run="another")
    moved_once(module, optimizer)
    states.save(1, [])
    assert checkpoints_of(tmp_path, module)[0].load() == (0, [])
    assert "state of another run" in capsys.readouterr().out


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
    with pytest.raises(InputError, match=f"`batch_size` 6 cannot be shared by {words}"):
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

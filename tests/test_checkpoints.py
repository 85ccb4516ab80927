"""Training states on disk: what is taken for sound, whatever the optimizer, and what is not."""

import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from codegrid.errors import InputError
from codegrid.files import write_json
from codegrid.locks import hold, releasing
from codegrid.pipelines.training.checkpoints import Checkpoints, Trainable, drop_states, saved_states
from codegrid.pipelines.training.trainer import fused_adam
from codegrid.tensors import digest_of, read_json, write_tensors


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
    assert others.load() == (0, []) and "does not fit what this run trains" in capsys.readouterr().out
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


@pytest.fixture
def saved(tmp_path):
    """States of a module, of which one is saved, and the module."""
    module = nn.Linear(2, 2)
    states, optimizer = checkpoints_of(tmp_path / "state", module)
    moved_once(module, optimizer)
    states.save(1, [{"step": 1, "loss": 0.5}])
    return states


def test_states_follow_each_other_by_number_however_long_it_is(saved):
    for step in (99_999_998, 99_999_999, 100_000_000, 1_000_000_000):
        saved.save(step, [])
    assert [path.name for path in saved_states(saved.folder)] == ["step-100000000", "step-1000000000"]
    assert saved.load() == (1_000_000_000, [])


def test_what_others_keep_among_the_states_is_neither_read_nor_removed(saved, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "state.json").write_text("{}")
    for name in ("notes.txt", "step-1", "step-00000002x"):
        (saved.folder / name).write_text("mine")
    (saved.folder / "step-00000009").symlink_to(mine)
    (saved.folder / "thesis").mkdir()
    (saved.folder / "step-00000001" / "notes.txt").write_text("mine")
    for step in (3, 4, 5):
        saved.save(step, [])
    assert saved.load() == (5, []) and not capsys.readouterr().out
    drop_states(saved.folder)
    kept = ["notes.txt", "step-00000001", "step-00000002x", "step-00000009", "step-1", "thesis"]
    assert sorted(path.name for path in saved.folder.iterdir()) == kept
    assert (mine / "state.json").exists() and (saved.folder / "step-00000001" / "notes.txt").exists()


def test_states_are_not_written_behind_a_link(tmp_path):
    mine = tmp_path / "mine"
    (mine / "step-00000001").mkdir(parents=True)
    (mine / "step-00000001" / "state.json").write_text("{}")
    with releasing():
        folder = hold(tmp_path / "run") / "state"
        folder.symlink_to(mine)
        states, _ = checkpoints_of(folder, nn.Linear(2, 2))
        assert states.load() == (0, [])
        with pytest.raises(InputError, match="is a link"):
            states.save(5, [])
        drop_states(folder)
    assert (mine / "step-00000001" / "state.json").read_text() == "{}"


@pytest.mark.parametrize(
    "forged",
    [
        {"step": "1"}, {"step": None}, {"history": {}}, {"history": [7]}, {"history": [{"loss": 0.5}]},
        {"history": [{"step": 1, "loss": "low"}]}, {"history": [{"step": 2}]}, {"optimizers": []}, {"optimizers": {}},
        {"optimizers": {"player": None}}, {"optimizers": {"player": {"state": [], "groups": [{}]}}},
        {"optimizers": {"player": {"state": {"x": {}}, "groups": [{}]}}},
        {"optimizers": {"player": {"state": {}, "groups": [{"lr": "high"}]}}},
        {"optimizers": {"player": {"state": {"7": {"step": 1}}, "groups": [{}]}}}, {"tensors": 3},
    ],
)  # fmt: skip
def test_a_forged_state_is_skipped_with_a_line(saved, forged, capsys):
    path = saved.folder / "step-00000001" / "state.json"
    fields = {**read_json(path), **forged}
    fields.pop("sha256")
    write_json(path, {**fields, "sha256": digest_of(fields)})
    before = [value.clone() for value in saved.trainable.modules["player.model"].state_dict().values()]
    assert saved.load() == (0, [])
    assert capsys.readouterr().out.startswith("skipping a damaged training state: ")
    after = saved.trainable.modules["player.model"].state_dict().values()
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["player.model.weight", "player.optimizer.0.step", "player.optimizer.1.exp_avg"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_holds_what_is_no_number_is_skipped_with_a_line(saved, name, value, capsys):
    folder = saved.folder / "step-00000001"
    fields, tensors = read_json(folder / "state.json"), load_file(folder / "state.safetensors")
    tensors[name].view(-1)[0] = value
    fields["tensors"] = write_tensors(folder / "state.safetensors", tensors)
    fields.pop("sha256")
    write_json(folder / "state.json", {**fields, "sha256": digest_of(fields)})
    assert saved.load() == (0, []) and f"{name} holds {value}" in capsys.readouterr().out


def test_a_pipe_in_the_place_of_a_state_is_not_waited_for(saved, capsys):
    path = saved.folder / "step-00000001" / "state.json"
    path.unlink()
    os.mkfifo(path)
    assert saved.load() == (0, []) and "is a pipe, not a file" in capsys.readouterr().out


def test_a_run_that_goes_on_with_other_threads_says_so(saved, monkeypatch, capsys):
    assert saved.load()[0] == 1 and not capsys.readouterr().out
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    assert saved.load()[0] == 1
    assert "continuing with 7 threads on cpu, torch" in (line := capsys.readouterr().out) and "begun with" in line

"""Training states on disk: what is taken for sound, whatever the optimizer, and what is not."""

import pytest
import torch
from torch import nn

from codegrid.pipelines.training.checkpoints import Checkpoints, Trainable
from codegrid.pipelines.training.trainer import fused_adam


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

"""Checkpoints that nobody should trust: no file can do harm, and each is refused in one line."""

import os
import pickle
import re
import sys
import types
import uuid
from collections import OrderedDict, defaultdict
from functools import reduce
from pathlib import Path

import numpy
import pytest
import torch
from foreign_checkpoints import draw, make, saved
from foreign_vqgans import Taming

from codegrid import InputError, import_model, load

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class Attack:
    """Pickled, it asks for a command to be run."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Claim:
    """Pickled, it is a tensor of a million numbers over four."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (torch.zeros(4).storage(), 0, (10**6,), (1,), False, OrderedDict())


def attacks(trace):
    return {
        "os.system": Attack(os.system, f"touch {trace}"),
        "builtins.eval": Attack(eval, f"open({str(trace)!r}, 'w')"),
        "builtins.getattr": Attack(getattr, "a", "upper"),
        "Path.write_text": Attack(Path.write_text, trace, "x"),
        "torch.load": Attack(torch.load, str(trace)),
        "import": Attack(torch._utils._import_dotted_name, "os.system"),
    }


@pytest.mark.parametrize("name", attacks("x"))
@pytest.mark.parametrize("as_zip", [True, False])
def test_nothing_in_a_pickle_is_run(name, as_zip, tmp_path):
    trace = tmp_path / "trace"
    content = {"state_dict": make(Taming).state_dict(), "callbacks": attacks(trace)[name]}
    torch.save(content, tmp_path / "bad.ckpt", _use_new_zipfile_serialization=as_zip)
    try:
        import_model(tmp_path / "bad.ckpt")
    except InputError as error:
        assert "bad.ckpt" in str(error) and "\n" not in str(error)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "builtins.getattr"])
def test_a_pickle_that_would_run_something_is_refused(name, tmp_path):
    with pytest.raises(InputError, match=r"is refused \(it holds code: it would run '(posix|builtins)\..*nothing was"):
        import_model(saved(tmp_path, {"a": torch.zeros(1), "b": attacks(tmp_path / "trace")[name]}))
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(attacks(tmp_path / "trace")[name]))
    with pytest.raises(InputError, match=r"plain\.pkl is (refused|damaged)"):
        load(tmp_path / "plain.pkl")
    assert not (tmp_path / "trace").exists()


def test_what_a_trainer_left_in_a_checkpoint_is_passed_over(tmp_path, monkeypatch):
    original = make(Taming)
    trainer = type("ModelCheckpoint", (), {"__module__": "tests_of_a_trainer", "__qualname__": "ModelCheckpoint"})
    module = types.ModuleType("tests_of_a_trainer")
    module.ModelCheckpoint = trainer
    monkeypatch.setitem(sys.modules, "tests_of_a_trainer", module)
    left = trainer()
    left.best = [Path("last.ckpt"), {trainer: {1}}, defaultdict(int), re.compile("a"), range(3), uuid.UUID(int=1), ...]
    path = saved(tmp_path, {"state_dict": original.state_dict(), "callbacks": {trainer: left}})
    monkeypatch.delitem(sys.modules, "tests_of_a_trainer")
    assert len(import_model(path, size=16).state_dict()) > 50


def test_a_module_that_was_saved_as_a_whole_is_read_without_its_class(tmp_path, monkeypatch):
    original = make(Taming)
    path = saved(tmp_path, original, "module.pkl")
    monkeypatch.delattr("foreign_vqgans.Taming")
    images = draw(1, 3, 16, 16)
    torch.testing.assert_close(import_model(path, size=16).encode_latents(images)[0], original.latents(images), **CLOSE)


def spoil(path, content):
    path.write_bytes(content)
    return path


BAD = {
    "cut": (lambda folder, whole: spoil(folder / "a.ckpt", whole[: len(whole) // 2]), "is damaged or cut off"),
    "empty": (lambda folder, whole: spoil(folder / "a.ckpt", b""), "is not a checkpoint"),
    "text": (lambda folder, whole: spoil(folder / "a.ckpt", b"hello"), "is not a checkpoint"),
    "cut-safetensors": (lambda folder, whole: spoil(folder / "a.safetensors", b"\x08" + bytes(20)), "is damaged"),
    "missing": (lambda folder, whole: folder / "none.ckpt", "no file or folder"),
    "folder": (lambda folder, whole: folder, "is a folder that holds neither config.json and"),
    "unknown": (lambda folder, whole: saved(folder, {"layer.weight": torch.zeros(2)}),
                r"holds 1 tensors, such as layer.weight, not .*encoder\.down\.0.*\(taming\).*\(llamagen\)"),
    "no-weights": (lambda folder, whole: saved(folder, {"epoch": 3}), "holds no weights"),
    "nan": (lambda folder, whole: saved(folder, change() | {"encoder.conv_in.bias": torch.full((32,), torch.nan)}),
            "conv_in.bias holds nan"),
    "too-large": (lambda folder, whole: saved(
        folder, change() | {"encoder.conv_in.bias": torch.full((32,), 1e300, dtype=torch.float64)}),
        "conv_in.bias holds inf"),
    "no-tensors": (lambda folder, whole: npz(folder / "a.npz"), "holds no weights"),
    "deep": (lambda folder, whole: saved(folder, reduce(lambda inner, _: {"model": inner}, range(200), change())),
             "holds no weights"),
    "in-itself": (lambda folder, whole: saved(folder, of_itself()), "holds no weights"),
    "module-in-itself": (lambda folder, whole: saved(folder, module_of_itself()), "more than 100,000 modules"),
    "no-state": (lambda folder, whole: saved(folder, {"model": Stateless()}), "holds no weights"),
    "far-memo": (lambda folder, whole: spoil(folder / "a.pkl", FAR), "Invalid magic number"),  # it was read
    "long-key": (lambda folder, whole: saved(folder, {10**5000: torch.zeros(1)}), "holds no weights"),
    "program": (lambda folder, whole: script(folder / "a.pt"), "is a program of TorchScript"),
    "claim": (lambda folder, whole: saved(folder, {"a": Claim()}), "is damaged, cut off, or not a checkpoint"),
    "view": (lambda folder, whole: saved(folder, {"a": torch.zeros(1).expand(10**6, 10**8)}), "would take"),
}  # fmt: skip


class Stateless:
    """An object without attributes."""


FAR = b"\x80\x02]r\x00\x00\x00\x7f."  # an empty list, kept at the place 2**31 - 2**24 of a memo


def npz(path):
    numpy.savez(path, name=numpy.array("text"))
    return path


def of_itself():
    held = {"epoch": 3}
    held["state_dict"] = held["model"] = held
    return held


def module_of_itself():
    module = torch.nn.Module()
    module._modules.update(a=module, b=module)
    return module


def script(path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_one_line(case, tmp_path):
    make_bad, reason = BAD[case]
    whole = saved(tmp_path, make(Taming).state_dict(), "whole.ckpt").read_bytes()
    with pytest.raises(InputError, match=reason) as found:
        import_model(make_bad(tmp_path, whole))
    assert "\n" not in str(found.value) and len(str(found.value)) < 1000


def change(**changes):
    weights = make(Taming).state_dict()
    for name, shape in changes.items():
        name = name.replace("__", ".")
        if shape is not None:
            weights[name] = torch.zeros(shape)
        else:
            del weights[name]
    return weights


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (change(decoder__conv_out__bias=(5,)), r"decoder\.decoder\.conv_out\.bias has the shape \[5\], but"),
        (change(decoder__conv_out__bias=None), r"lacks what becomes decoder\.decoder\.conv_out\.bias"),
        (change(decoder__more__weight=(5,)), r"holds decoder\.decoder\.more\.weight, too"),
        (change(conv__in=(1,), encoder__conv_out__weight=None), "holds no encoder.conv_out.weight, which such a"),
        (change(quant_conv__weight=(6, 8, 5, 5)), "this version has no such model"),
        (change(quantize__embedding__weight=(3,)), "has 1 axes, not 2"),
        (change(encoder__conv_out__weight=()), "it is another variant of this model .len.. of a 0-d tensor"),
        (change(encoder__conv_in__weight=(32, 4, 3, 3)), "this version has no such model"),
    ],
)
def test_other_variants_of_a_known_model_are_refused_by_what_differs(weights, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        import_model(saved(tmp_path, weights), size=16)

"""Small pictures that are drawn here, and small models, for all tests."""

import gc
import os
import socket
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

os.fsync = lambda descriptor: None  # nobody pulls the plug
os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # where commands are tested, also beside a GPU
gc.set_threshold(50_000)  # a seventh of the time went into looking for garbage


def pytest_collection_finish():
    gc.freeze()  # modules and tests stay to the end


@pytest.fixture(scope="session", autouse=True)
def light_torch():
    import torch  # not above: the process that hands out the tests does without it

    torch.set_num_threads(1)  # small models: more threads would wait for each other
    for device in (torch.cuda, torch.xpu):
        if not device.is_available():
            device.manual_seed_all = lambda seed: None  # it would keep the stack of each `torch.manual_seed`


def free_port():
    """The number of a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def draw_bars(count=60, height=12, width=20, channels=1, seed=0):
    """Pictures with one bright bar each, upright (label 0) or lying (label 1): uint8 (n, H, W, c) and labels (n,)."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 40, (count, height, width, channels), dtype=np.uint8)
    labels = np.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        row, column = random.integers(0, height - 3), random.integers(0, width - 3)
        if label:
            image[row : row + 3, :] = 230
        else:
            image[:, column : column + 3] = 230
    return images, labels


@pytest.fixture(scope="session")
def bars_file(tmp_path_factory):
    """An npz data set of bars, 60 pictures of 12×20 in two classes."""
    path = tmp_path_factory.mktemp("bars") / "bars.npz"
    images, labels = draw_bars()
    np.savez(path, images, labels)
    return path


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Call a command as its command line does: returns its exit code and what it printed."""

    def call(name, *flags):
        module = import_module(f"codegrid.pipelines.{name}")
        monkeypatch.setattr(sys, "argv", [f"codegrid-{name}", *map(str, flags)])
        capsys.readouterr()
        try:
            module.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return SimpleNamespace(code=code, out=printed.out, err=printed.err)

    return call


@pytest.fixture(scope="session")
def two():
    """Two processes that work as one."""
    from two_processes import TwoProcesses

    with TwoProcesses() as two:
        yield two


LEFT = ["README.md", "config.json", "metrics.jsonl", "model.safetensors", "run.json", "settings.yaml"]  # by training
TINY_TOKENIZER = (
    "--hidden-channels", "16", "--embedding-dim", "8", "--num-embeddings", "16", "--steps", "30", "--batch-size", "16",
    "--precision", "fp32", "--lr", "0.003", "--validate-every", "10",
)  # fmt: skip
TINY_PRIOR = (
    "--channels", "8", "--num-layers", "2", "--steps", "20", "--batch-size", "16", "--precision", "fp32",
    "--validate-every", "10",
)  # fmt: skip


@pytest.fixture(scope="session")
def small_run(bars_file, tmp_path_factory):
    """A folder with tokenizer/, codes/, codes_test/ and prior/, trained on the bars for a moment."""
    folder = tmp_path_factory.mktemp("run")
    data = ("--dataset", "npz", "--data-root", str(bars_file))
    for name, flags in (
        ("train_tokenizer", (*data, "--output", folder / "tokenizer", *TINY_TOKENIZER)),
        ("export_codes", (*data, "--tokenizer", folder / "tokenizer", "--output", folder / "codes")),
        (
            "export_codes",
            (*data, "--tokenizer", folder / "tokenizer", "--output", folder / "codes_test", "--split", "test"),
        ),
        ("train_prior", ("--codes", folder / "codes", "--output", folder / "prior", *TINY_PRIOR)),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"codegrid-{name}", *map(str, flags)])
            import_module(f"codegrid.pipelines.{name}").main()
    return folder

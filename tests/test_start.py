"""What passes before the first step: nothing is imported that it does not need, and pictures are read side by side."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.data.sources import load_images
from codegrid.errors import InputError
from codegrid.pipelines.drawing.sheets import lay_out
from codegrid.pipelines.training.trainer import fused_adam
from codegrid.protocols import AdamSettings

SLOW_IMPORTS = ("torchvision", "torch._dynamo", "sympy", "matplotlib")


@pytest.mark.slow
def test_training_imports_nothing_that_takes_seconds_and_is_not_needed(bars_file, tmp_path):
    code = f"""if True:
        import sys
        from codegrid.pipelines.train_prior import TrainPrior
        from codegrid.pipelines.train_tokenizer import TrainTokenizer
        from codegrid.pipelines.training.prior import train_prior
        from codegrid.pipelines.training.tokenizer import train_tokenizer
        import numpy as np
        few = dict(steps=2, batch_size=4, seed=0)
        train_tokenizer(TrainTokenizer(dataset={str(bars_file)!r}, output="t", options=dict(hidden_channels=8), **few))
        np.savez("codes.npz", codes=np.arange(80).reshape(20, 2, 2) % 7)
        train_prior(TrainPrior(codes="codes.npz", output="p", options=dict(num_layers=2, channels=8), **few))
        sys.exit(", ".join({{*{SLOW_IMPORTS!r}}} & {{*sys.modules}}) or 0)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def adamw_of_torch(layer, settings):
    groups = [{"params": [layer.weight], "weight_decay": settings.weight_decay}, {"params": [layer.bias]}]
    return torch.optim.AdamW(groups, betas=settings.betas, weight_decay=0, fused=True)


@pytest.mark.parametrize("settings,of_torch", [
    (AdamSettings(), lambda layer, _: torch.optim.Adam(layer.parameters(), fused=True)),
    (AdamSettings((0.8, 0.9), 0.5), adamw_of_torch),
])  # fmt: skip
def test_the_optimizer_moves_weights_as_torchs_adam_and_has_its_state(settings, of_torch):
    moved = []
    for make in (lambda layer, _: fused_adam(layer.parameters(), settings, layer), of_torch):
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 3)
        optimizer = make(layer, settings)
        for step in range(4):
            layer(torch.randn(5, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 1:  # a state goes out and in
                held = optimizer.state_dict()
                optimizer = make(layer, settings)
                optimizer.load_state_dict(held)
        assert layer.weight.requires_grad and layer.weight.grad is None
        moved.append([layer.weight, layer.bias, *(optimizer.state[layer.weight][name] for name in ("step", "exp_avg"))])
    assert all(map(torch.equal, *moved))


@pytest.mark.parametrize("count, columns", [(1, 3), (2, 3), (7, 3), (3, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_laid_out_row_by_row_with_a_margin_around_each(count, columns, channels):
    images = torch.rand(count, channels, 2, 5)
    sheet = lay_out(images, columns, margin=1, fill=2.0)
    if count == 1:
        assert torch.equal(sheet, images[0].expand(3, -1, -1))
        return
    across = min(columns, count)
    assert sheet.shape == (3, 1 + 3 * -(-count // columns), 1 + 6 * across)
    for number, image in enumerate(images):
        top, left = 1 + 3 * (number // across), 1 + 6 * (number % across)
        assert torch.equal(sheet[:, top : top + 2, left : left + 5], image.expand(3, -1, -1))
    assert (sheet == 2.0).sum() == sheet.numel() - 3 * images[:, 0].numel()


@pytest.fixture
def pictures(tmp_path):
    """Seven pictures, of which one is damaged."""
    random = np.random.default_rng(0)
    for number in range(7):
        Image.fromarray(random.integers(0, 256, (6, 4, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    return tmp_path


def test_processes_read_pictures_as_threads_do(pictures, monkeypatch):
    read = []
    for many in (100, 1):
        monkeypatch.setattr("codegrid.data.folder.MANY", many)
        monkeypatch.setattr("codegrid.data.folder.PIECE", 2)
        with pytest.raises(InputError, match=r"3\.png is not a readable picture"):
            load_images("imagefolder", pictures, "all")
        read.append(load_images("imagefolder", pictures, "all", skip_unreadable=True))
    threads, processes = read
    assert torch.equal(threads.images, processes.images) and len(threads) == 6
    assert threads.fingerprint() == processes.fingerprint() and str(threads.found) == str(processes.found)

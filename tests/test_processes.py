"""Two processes give what one gives: the codebook on every rank, and the commands."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import LEFT, TINY_PRIOR, TINY_TOKENIZER, draw_bars
from safetensors.torch import load_file, save_file
from small_quantizers import CODEBOOKS
from toy_objective import COMPUTE, Toy, TrainToy
from two_processes import environments, run_command

from codegrid import load
from codegrid.codes import Moment
from codegrid.data.codes import CodeDataset
from codegrid.data.images import to_float
from codegrid.data.sources import load_images
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.pipelines.running.device import choose_device
from codegrid.pipelines.running.settings import Compute
from codegrid.pipelines.training.trainer import Trainer
from codegrid.stage1_vqvae.quantizers import QUANTIZERS, collective
from codegrid.stage1_vqvae.quantizers.clustered import ANCHORS

ROOT = Path(__file__).parent.parent
STEPS = 30

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.xdist_group("two")]


def joint_latents(step):
    """Latents (8, 4, 6) of two processes together; they cover half of the codebook's surroundings."""
    return torch.randn(8, 4, 6, generator=torch.Generator().manual_seed(step))


# every quantizer that has codebooks, k-means and cosine distance once each, and each kind of anchors
CASES = {name: (name, {}) for name in CODEBOOKS}
CASES |= {
    "ema kmeans": ("ema", {"kmeans_steps": 3}),
    "residual kmeans": ("residual", {"kmeans_steps": 3}),
    "residual dropout": ("residual", {"num_quantizers": 3, "codes_dropout": 1.0, "codebook": "gradient"}),
    "residual shared": (
        "residual",
        {"num_groups": 2, "shared": True, "kmeans_steps": 3, "codes_dropout": 0.5, "codes_temperature": 0.5},
    ),
    "product": ("product", {"codebook": "clustered-gradient"}),
    "multiscale": ("multiscale", {}),
    "multiscale kmeans": ("multiscale", {"kmeans_steps": 3, "codebook": "gradient"}),
    "gradient cosine": ("gradient", {"distance": "cosine"}),
    "gumbel": ("gumbel", {"final_temperature": 0.5}),  # at a lower one the last digit decides what is drawn
    **{f"clustered {anchors}": ("clustered", {"anchors": anchors, "decay": 0.9}) for anchors in ANCHORS},
}


def train_quantizer(name, options, rank=None):
    """Train on the joint batches, or as one of two processes on its half of them; returns the state."""
    torch.manual_seed(0)
    usual = {} if hasattr(QUANTIZERS[name], "soften") else {"revival_threshold": 0.5}
    quantizer = QUANTIZERS[name](num_embeddings=16, embedding_dim=4, **usual, **options).train()
    for key, value in quantizer.state_dict().items():
        if key.endswith(("codebook", "coefficients")):
            value.copy_(torch.randn(value.shape) * 3)
    model = quantizer
    if rank is not None and list(quantizer.parameters()):
        # DDP's own copying of buffers would hide a sum that is not reduced
        model = torch.nn.parallel.DistributedDataParallel(quantizer, broadcast_buffers=False)
    optimizer = torch.optim.SGD([*quantizer.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    for step in range(STEPS):
        latents = joint_latents(step)
        ours = slice(0, 8) if rank is None else slice(rank * 4, rank * 4 + 4)
        moment = Moment(step, STEPS, Noise(0, ours.start, ours.stop - ours.start))
        vectors, _, losses = model(latents[ours], moment)
        loss = losses.total + vectors.square().mean()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        quantizer.after_step(step, 0)
    return {key: value.clone() for key, value in quantizer.state_dict().items()}


def gradients_of_players(rank=None):
    """The gradients of two players after a step in two pieces, as one process or as one of two."""
    toy = Toy(critic_from=0, dropout=0.0)
    one = {"num_processes": 1, "process_index": 0, "prepare_model": lambda module, **_: module, "no_sync": nullcontext}
    two = {
        "num_processes": 2,
        "process_index": rank,
        "prepare_model": lambda module, **_: torch.nn.parallel.DistributedDataParallel(module),
        "no_sync": lambda wrapped: wrapped.no_sync(),
    }
    accelerator = SimpleNamespace(device=torch.device("cpu"), **(one if rank is None else two))
    trainer = Trainer(toy, TrainToy(accumulate=2), COMPUTE, accelerator)
    trainer.find_gradients(next(trainer.batches(0)), 0)
    named = {name: player.module.named_parameters() for name, player in toy.players.items()}
    return {f"{name} {key}": value.grad for name, parameters in named.items() for key, value in parameters}


def gradients_of_encoder(name, rank=None):
    """Gradients of a quantizer's losses in a layer before it, and its figures, of the joint batch or half of it."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name]().train()
    encoder = torch.nn.Conv1d(4, quantizer.embedding_dim, 1)
    wrapped = encoder if rank is None else torch.nn.parallel.DistributedDataParallel(encoder)
    first, count = (0, 8) if rank is None else (4 * rank, 4)
    latents = wrapped(joint_latents(0)[first : first + count] * 0.1)
    losses = quantizer(latents, Moment(0, 1, Noise(0, first, count))).losses
    if losses.terms:
        losses.total.backward()
    gradients = {key: value.grad for key, value in encoder.named_parameters() if value.grad is not None}
    return gradients | {f"figure {key}": value.detach() for key, value in losses.figures.items()}


def train_as_one_of_two(folder):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    states = {case: train_quantizer(*arguments, rank) for case, arguments in CASES.items()}
    states["players"] = gradients_of_players(rank)
    states |= {f"encoder {name}": gradients_of_encoder(name, rank) for name in QUANTIZERS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collective, "is_distributed", lambda: False)  # the broken twin: each process counts for itself
        states["broken"] = train_quantizer("ema", {}, rank)
        states["broken entropy"] = gradients_of_encoder("lfq", rank)
    save_file({f"{case}/{key}": value for case, state in states.items() for key, value in state.items()},
              f"{folder}/rank{rank}")  # fmt: skip
    dist.barrier()  # or one rank leaves while the other still talks to it


@pytest.fixture(scope="module")
def ranks(two, tmp_path_factory):
    """The states of all cases, as the two processes hold them."""
    folder = tmp_path_factory.mktemp("ranks")
    two.call(train_as_one_of_two, folder)
    return [load_file(folder / f"rank{rank}") for rank in range(2)]


def state_of(case, tensors):
    return {key.partition("/")[2]: value for key, value in tensors.items() if key.partition("/")[0] == case}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_hold_bitwise_equal_codebooks_and_that_of_one_on_the_joint_batch(case, ranks):
    ours, theirs = (state_of(case, tensors) for tensors in ranks)
    assert len(ours) >= 2 and all(torch.equal(ours[key], theirs[key]) for key in ours)
    for key, value in train_quantizer(*CASES[case]).items():
        torch.testing.assert_close(ours[key], value, atol=1e-4, rtol=1e-4)


def test_two_processes_find_the_gradients_of_all_players_that_one_finds(ranks):
    ours, theirs = (state_of("players", tensors) for tensors in ranks)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for key, value in gradients_of_players().items():
        torch.testing.assert_close(ours[key], value)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_two_processes_find_the_gradient_of_the_encoder_that_one_finds(name, ranks):
    ours, theirs = (state_of(f"encoder {name}", tensors) for tensors in ranks)
    for key, value in gradients_of_encoder(name).items():
        torch.testing.assert_close((ours[key] + theirs[key]) / 2, value)


def test_processes_that_count_for_themselves_would_be_noticed(ranks):
    ours, theirs = (state_of("broken", tensors) for tensors in ranks)
    assert not torch.equal(ours["codebook"], theirs["codebook"])
    found, right = state_of("broken entropy", ranks[0]), gradients_of_encoder("lfq")
    assert (found["weight"] - right["weight"]).abs().max() > 1e-3 * right["weight"].abs().max()


def test_a_command_for_one_process_refuses_several(monkeypatch):
    two = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    monkeypatch.setattr("codegrid.pipelines.running.device.start_accelerator", lambda *args, **options: two)
    with pytest.raises(InputError, match="without torchrun"):
        choose_device(Compute(device="cpu"))


@pytest.fixture(scope="module")
def tokenizer_flags(bars_file):
    return ("--dataset", "npz", "--data-root", bars_file, *TINY_TOKENIZER, "--accumulate", 2)


@pytest.fixture(scope="module")
def tokenizer_of_two(two, tokenizer_flags, tmp_path_factory):
    """The folder of a tokenizer that two processes trained."""
    folder = tmp_path_factory.mktemp("two") / "tokenizer"
    two.run("train_tokenizer", *tokenizer_flags, "--output", folder)
    return folder


def weights_are_equal(*folders):
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    return all(torch.equal(one[key], other[key]) for key in one)


def test_two_processes_train_what_one_trains(tokenizer_of_two, small_run):
    alone, together = (
        load_file(folder / "model.safetensors") for folder in (small_run / "tokenizer", tokenizer_of_two)
    )
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], atol=2e-3, rtol=2e-3)
    left = sorted(path.name for path in tokenizer_of_two.iterdir())
    assert left == sorted([*LEFT, "reconstructions.png"])


def train_until(number, flags):
    """Train a tokenizer as one of two processes, which both fail after so many steps."""
    update = Trainer.update

    def update_or_fail(trainer, step):
        if step == number:
            raise ZeroDivisionError
        update(trainer, step)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Trainer, "update", update_or_fail)
        run_command("train_tokenizer", flags)


def test_two_processes_that_fail_end_as_two_that_never_stopped(tokenizer_of_two, tokenizer_flags, two, tmp_path):
    flags = (*tokenizer_flags, "--save-every", 8, "--output", tmp_path)
    two.call(train_until, 17, list(map(str, flags)))
    assert [path.name for path in sorted(tmp_path.glob("state/*"))] == ["step-00000008", "step-00000016"]
    two.run("train_tokenizer", *flags)
    assert weights_are_equal(tokenizer_of_two, tmp_path)


@pytest.mark.slow
def test_processes_of_torchrun_train_what_two_others_do(tokenizer_of_two, tokenizer_flags, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*command, "-m", "codegrid.pipelines.train_tokenizer", *map(str, tokenizer_flags), "--output", tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT, text=True, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert run.returncode == 0 and "2 processes" in run.stdout, run.stdout[-2000:]
    assert weights_are_equal(tokenizer_of_two, tmp_path)


@pytest.mark.slow
def test_two_processes_that_are_killed_end_as_two_that_never_stopped(tokenizer_of_two, tokenizer_flags, two, tmp_path):
    flags = (*tokenizer_flags, "--save-every", 1, "--output", tmp_path)
    command = [sys.executable, "-m", "codegrid.pipelines.train_tokenizer", *map(str, flags)]
    workers = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})
        for environment in environments()
    ]
    while workers[0].poll() is None and not list(tmp_path.glob("state/step-*/state.json")):
        time.sleep(0.01)
    for worker in workers:
        worker.kill()
    assert [worker.wait() for worker in workers] == [-signal.SIGKILL] * 2
    two.run("train_tokenizer", *flags)
    assert weights_are_equal(tokenizer_of_two, tmp_path)


def test_export_and_prior_of_two_processes_are_one_of_everything(small_run, two, tmp_path):
    # 55 images, which two cannot share evenly, by a tokenizer of one process, so that the codes can be compared
    np.savez(tmp_path / "odd.npz", *draw_bars(61))
    odd = ("--dataset", "npz", "--data-root", tmp_path / "odd.npz", "--tokenizer", small_run / "tokenizer")
    two.run("export_codes", *odd, "--output", tmp_path / "codes", "--batch-size", 7)
    images = load_images("npz", tmp_path / "odd.npz", "train")
    expected = load(small_run / "tokenizer").encode(to_float(images.images))
    exported = CodeDataset(tmp_path / "codes").batch(range(55))
    assert torch.equal(exported.labels, images.labels)
    for ours, theirs in zip(exported.codes, expected, strict=True):
        assert (ours == theirs).float().mean() > 0.99, "but for rounding, where two entries are equally near"

    two.run("train_prior", "--codes", tmp_path / "codes", "--output", tmp_path / "prior", *TINY_PRIOR)
    left = sorted(path.name for path in (tmp_path / "prior").iterdir())
    assert left == [*LEFT, "state"]

"""Training: which items a step sees, and that a stopped run goes on as if it never had."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY_PRIOR, TINY_TOKENIZER
from safetensors.torch import load_file

from codegrid.data.images import ImageBatch
from codegrid.data.loading import StepSampler, check_shares, in_order, pieces_of
from codegrid.errors import InputError
from codegrid.pipelines.evaluation.reconstruction import measure_prior, measure_tokenizer
from codegrid.pipelines.running.device import refuse_unequal
from codegrid.pipelines.training.checkpoints import States
from codegrid.pipelines.training.loop import lr_factor
from codegrid.pipelines.training.speed import Speed
from codegrid.stage1_vqvae import VQVAE
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.stage1_vqvae.usage import UsageCounter, usage_of


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
    with pytest.raises(InputError, match=f"--batch-size 6 cannot be shared by {words}"):
        check_shares(6, num_processes, accumulate)


def test_the_pieces_of_a_batch_are_the_batch_in_order():
    batch = ImageBatch(torch.arange(6), None)
    assert [piece.images.tolist() for piece in pieces_of(batch, 3)] == [[0, 1], [2, 3], [4, 5]]
    assert all(piece.labels is None for piece in pieces_of(batch, 3))


def test_processes_that_see_different_states_are_refused():
    other_machine = SimpleNamespace(device="cpu", gather=lambda ours: torch.cat([ours, torch.tensor([0])]))
    refuse_unequal(other_machine, 0)
    with pytest.raises(InputError, match="different steps \\(0, 500\\)"):
        refuse_unequal(other_machine, 500)


def test_batches_in_order_end_with_a_short_one():
    assert [list(batch) for batch in in_order(5, 2)] == [[0, 1], [2, 3], [4]]


def test_speed_counts_items_and_leaves_out_pauses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("codegrid.pipelines.training.speed.time.perf_counter", lambda: now[0])

    def batches():
        for _ in range(4):
            now[0] += 1  # waiting
            yield None

    speed = Speed(batch_size=30, items="images")
    for _ in speed.watch(batches()):
        now[0] += 2  # working
        with speed.pause():
            now[0] += 100
    assert speed.read() == {"images/s": pytest.approx(10), "waiting": pytest.approx(1 / 3)}


def test_a_constant_learning_rate_is_constant():
    assert {lr_factor(step, 1000, "constant") for step in range(1000)} == {1.0}


def test_the_learning_rate_warms_up_and_falls_to_zero():
    factors = [lr_factor(step, 1000) for step in range(1000)]
    assert factors[0] < 0.02 and factors[99] < 1 and max(factors) == factors[100] == 1 and factors[-1] < 1e-4


class Killed(Exception):
    pass


def train_and_die(run_script, monkeypatch, name, flags, at_state):
    """Run a script until it has written its `at_state`-th training state, and kill it there."""
    save, written = States.save, []

    def save_and_die(*args):
        save(*args)
        written.append(args)
        if len(written) == at_state:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(States, "save", save_and_die)
        with pytest.raises(Killed):
            run_script(name, *flags)


@pytest.mark.parametrize("quantizer", ["ema", "gradient"])
def test_a_killed_tokenizer_run_ends_as_one_that_never_stopped(tmp_path, bars_file, run_script, monkeypatch, quantizer):
    data = ("--dataset", "npz", "--data-root", bars_file, "--flip", "--shift", 1, "--crop", 0.9)
    flags = (*data, *TINY_TOKENIZER, "--save-every", 8, "--quantizer", quantizer, "--accumulate", 2)
    assert run_script("train_tokenizer", *flags, "--output", tmp_path / "whole").code == 0
    killed = (*flags, "--output", tmp_path / "killed")
    train_and_die(run_script, monkeypatch, "train_tokenizer", killed, at_state=2)
    assert run_script("train_tokenizer", *killed).code == 0
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("whole", "killed")]
    assert configs[0] == configs[1]


def test_a_killed_prior_run_ends_as_one_that_never_stopped(tmp_path, small_run, run_script, monkeypatch):
    flags = ("--codes", small_run / "codes", *TINY_PRIOR, "--save-every", 6, "--accumulate", 2)  # dropout is on
    assert run_script("train_prior", *flags, "--output", tmp_path / "whole").code == 0
    killed = (*flags, "--output", tmp_path / "killed")
    train_and_die(run_script, monkeypatch, "train_prior", killed, at_state=2)
    assert run_script("train_prior", *killed).code == 0
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("whole", "killed")]
    assert configs[0] == configs[1]


def test_a_damaged_training_state_is_skipped_for_the_one_before(tmp_path, bars_file, run_script, monkeypatch):
    flags = ("--dataset", "npz", "--data-root", bars_file, *TINY_TOKENIZER, "--save-every", 8, "--output", tmp_path)
    train_and_die(run_script, monkeypatch, "train_tokenizer", flags, at_state=3)
    states = sorted((tmp_path / "state").iterdir())
    assert [state.name for state in states] == ["step-00000016", "step-00000024"]
    (states[1] / "state.safetensors").write_bytes(b"cut")
    result = run_script("train_tokenizer", *flags)
    assert result.code == 0 and "skipping a damaged training state" in result.out
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "state").exists()


def test_uniform_logits_cost_log2_k_bits_for_any_data_set_size():
    class Uniform(torch.nn.Linear):
        num_classes = 0

        def forward(self, codes, labels):
            return torch.zeros(len(codes), 100, *codes.shape[1:])

    class Batch:
        def __init__(self, size):
            self.codes, self.labels = torch.randint(0, 100, (size, 3, 4)), None

    for sizes in ([1], [8, 8, 3], [5, 1]):
        bits = measure_prior(Uniform(1, 1), [Batch(size) for size in sizes])["bits_per_code"]
        assert bits == pytest.approx(np.log2(100), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_the_figures_of_a_tokenizer_do_not_depend_on_the_batch_size(small_run, bars_file, batch_size):
    from codegrid.data.images import to_float
    from codegrid.data.loading import load_batches
    from codegrid.data.sources import load_images

    tokenizer = VQVAE.from_pretrained(small_run / "tokenizer")
    images = load_images("npz", bars_file, "train")
    figures = measure_tokenizer(tokenizer, load_batches(images, in_order(len(images), batch_size)))
    x = to_float(images.images)
    with torch.no_grad():
        y = tokenizer(x).images.clamp(-1, 1)
    mse = (x - y).double().square().mean((1, 2, 3))
    assert figures["reconstruction_error"] == pytest.approx((mse.mean() / tokenizer.data_variance).item(), rel=1e-5)
    # [0, 1] is half as wide as [-1, 1]: a quarter of the squared error
    assert figures["psnr"] == pytest.approx((-10 * torch.log10(mse / 4)).mean().item(), rel=1e-5)


def test_usage_of_known_codes():
    counter = UsageCounter(8)
    counter.add(torch.tensor([[0, 1], [2, 3]]))
    counter.add(torch.tensor([0, 1, 2, 3]))
    assert counter.figures() == (pytest.approx(4), 0.5, 4)
    assert usage_of(torch.tensor([5, 1, 0, 0])).unused_entries == 2


def test_a_run_whose_figures_are_no_longer_numbers_stops_and_says_so(tmp_path, small_run, run_script, monkeypatch):
    monkeypatch.setattr(
        "codegrid.pipelines.evaluation.reconstruction.measure_prior",
        lambda prior, batches: {"bits_per_code": float("nan")},
    )
    result = run_script("train_prior", "--codes", small_run / "codes", *TINY_PRIOR, "--output", tmp_path)
    assert result.code == 2 and "step 2: on held-out data the figures are not finite" in result.err
    assert not (tmp_path / "model.safetensors").exists()


def test_a_shift_that_leaves_nothing_of_the_image_is_refused(tmp_path, bars_file, run_script):
    data = ("--dataset", "npz", "--data-root", bars_file)
    result = run_script("train_tokenizer", *data, *TINY_TOKENIZER, "--shift", 12, "--output", tmp_path)
    assert result.code == 2 and "--shift 12" in result.err


def test_the_prior_that_was_best_on_held_out_grids_is_kept_and_the_raw_weights_stay_in_the_state(
    tmp_path, small_run, run_script, monkeypatch
):
    # figures that get worse after the sixth of ten validations
    figures = iter([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    measured = []

    def measure(prior, batches):
        measured.append({key: value.clone() for key, value in prior.state_dict().items()})
        return {"bits_per_code": next(figures)}

    monkeypatch.setattr("codegrid.pipelines.evaluation.reconstruction.measure_prior", measure)
    result = run_script("train_prior", "--codes", small_run / "codes", *TINY_PRIOR, "--output", tmp_path)
    assert result.code == 0 and "4.000 bits per code" in result.out and "best after 12 of 20 steps" in result.out
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[key], measured[5][key]) for key in kept)
    assert json.loads((tmp_path / "config.json").read_text())["provenance"]["step"] == 12
    (state,) = (tmp_path / "state").glob("step-*/state.safetensors")
    tensors = load_file(state)
    assert all(torch.equal(tensors[f"average.module.{key}"], measured[9][key]) for key in kept)
    assert not torch.equal(tensors["model.embedding.weight"], tensors["average.module.embedding.weight"])

    flags = ("--codes", small_run / "codes", *TINY_PRIOR, "--keep", "last", "--output", tmp_path / "last")
    figures = iter(range(10))
    measured.clear()
    assert "9.000 bits per code on held-out grids, last after 20 of 20" in run_script("train_prior", *flags).out
    kept = load_file(tmp_path / "last" / "model.safetensors")
    assert all(torch.equal(kept[key], measured[9][key]) for key in kept)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_can_be_trained_with_its_options(quantizer, bars_file, tmp_path, run_script):
    flags = ("--dataset", "npz", "--data-root", bars_file, *TINY_TOKENIZER, "--quantizer", quantizer)
    options = ("--kmeans-steps", 2, "--distance", "cosine", "--revival-threshold", 0.3, "--lr-schedule", "constant")
    anchors = ("--anchors", "random") if quantizer.startswith("clustered") else ()
    result = run_script("train_tokenizer", *flags, *options, *anchors, "--output", tmp_path)
    assert result.code == 0 and "never used" in result.out
    assert "step 30" in result.out and "images/s" in result.out
    tokenizer = VQVAE.from_pretrained(tmp_path)
    assert tokenizer.quantizer.kmeans_steps == 2 and tokenizer.quantizer.distance == "cosine"
    assert type(tokenizer.quantizer) is QUANTIZERS[quantizer]
    assert tokenizer.provenance["figures"]["images"] == 6

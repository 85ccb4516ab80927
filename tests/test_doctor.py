"""The doctor names the fault in runs that were broken on purpose, and finds nothing in a sound one."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import draw_bars

from codegrid.data import CodeDataset
from codegrid.data.codes import CodeShard, missing_ranges, write_codes
from codegrid.data.images import to_float
from codegrid.data.manifest import CodeHeader
from codegrid.pipelines.diagnosis.frequencies import count_frequencies
from codegrid.pipelines.diagnosis.likelihood import find_faults_of_learning
from codegrid.pipelines.diagnosis.samples import find_faults_of_samples
from codegrid.stage1_vqvae import VQVAE
from codegrid.stage2_prior import GatedPixelCNN
from codegrid.stage2_prior.likelihood import nats_of

K, SIDE = 16, 4


def draw_grids(count, seed):
    """Grids (n, 4, 4) in which each code is one of the two after its left neighbour: 1 bit a code but for the first."""
    random = np.random.default_rng(seed)
    steps = random.integers(0, 2, (count, SIDE, SIDE))
    steps[:, :, 0] = random.integers(0, K, (count, SIDE))
    return torch.from_numpy(steps.cumsum(2) % K)


def save_codes(folder, codes, fingerprint, source):
    grid = {"height": codes.shape[1], "width": codes.shape[2], "num_embeddings": K}
    header = CodeHeader(len(codes), [grid], [], "train", fingerprint, source)
    write_codes(folder, header, missing_ranges(folder, header), [CodeShard(codes, None, 0)], {})


def save_prior(folder, fingerprint, codes=None, steps=0):
    """A prior that was trained for some steps on grids; fresh ones have learnt nothing."""
    torch.manual_seed(0)
    prior = GatedPixelCNN(num_embeddings=K, channels=12, num_layers=2, first_kernel=3)
    prior.provenance = {"tokenizer_fingerprint": fingerprint, "grid_shape": [SIDE, SIDE], "classes": []}
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for step in range(steps):
        chosen = codes[torch.randint(len(codes), (32,))]
        nats_of(prior(chosen), chosen).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    prior.save_pretrained(folder)


def save_tokenizer(folder, seed=0):
    torch.manual_seed(seed)
    tokenizer = VQVAE(1, (16, 16), hidden_channels=16, num_embeddings=K, embedding_dim=8)
    tokenizer.save_pretrained(folder)
    return tokenizer.fingerprint()


@pytest.fixture(scope="module")
def grids():
    return SimpleNamespace(training=draw_grids(2000, 0), held_out=draw_grids(200, 1))


@pytest.fixture(scope="module")
def sound_run(grids, tmp_path_factory):
    """tokenizer/ without images, codes of a known process, and a prior that has learnt it."""
    folder = tmp_path_factory.mktemp("sound")
    fingerprint = save_tokenizer(folder / "tokenizer")
    save_codes(folder / "codes", grids.training, fingerprint, "a")
    save_codes(folder / "codes_test", grids.held_out, fingerprint, "b")
    save_prior(folder / "prior", fingerprint, grids.training, 150)
    return folder


def fingerprint_of(run):
    return CodeDataset(run / "codes").header.tokenizer_fingerprint


def ask(run_script, tmp_path, *flags):
    """The page, and doctor.json."""
    result = run_script("doctor", *flags, "--output", tmp_path / "answer")
    assert result.code == 0, result.err
    answer = json.loads((tmp_path / "answer" / "doctor.json").read_text())
    assert result.out.startswith(answer["verdict"] + "\n")
    for finding in answer["findings"]:
        assert finding["figures"] and finding["remedy"] and finding["words"].endswith(".")
    return result.out, answer


def test_nothing_is_found_in_a_sound_run(sound_run, tmp_path, run_script):
    page, answer = ask(run_script, tmp_path, "--run", sound_run)
    assert answer["verdict"] == "Nothing found." and answer["findings"] == []
    assert answer["figures"]["held_out_bits"] < 2 and "usual" in page


def test_a_prior_of_fresh_weights_is_undertrained(sound_run, tmp_path, run_script):
    save_prior(tmp_path / "prior", fingerprint_of(sound_run))
    page, answer = ask(run_script, tmp_path, "--run", sound_run, "--prior", tmp_path / "prior")
    assert answer["verdict"].startswith("The prior is undertrained: ") and "--steps" in page
    assert {finding["stage"] for finding in answer["findings"]} <= {"prior", "samples"}


def test_a_prior_that_learnt_few_grids_by_heart_is_overfitted(sound_run, grids, tmp_path, run_script):
    few = grids.training[:24]
    save_codes(tmp_path / "codes", few, fingerprint_of(sound_run), "few")
    save_prior(tmp_path / "prior", fingerprint_of(sound_run), few, 150)
    flags = ("--run", sound_run, "--prior", tmp_path / "prior", "--codes", tmp_path / "codes")
    page, answer = ask(run_script, tmp_path, *flags)
    assert answer["verdict"].startswith("The prior is overfitted: ") and "--dropout" in page
    assert any("Samples are training grids" in finding["words"] for finding in answer["findings"])


def test_a_collapsed_codebook_is_the_tokenizers_fault(sound_run, grids, tmp_path, run_script):
    few = grids.training % 3
    for name, source in (("codes", "a"), ("codes_test", "b")):
        save_codes(tmp_path / name, few if name == "codes" else few[:100], fingerprint_of(sound_run), source)
    flags = ("--codes", tmp_path / "codes", "--validation-codes", tmp_path / "codes_test")
    page, answer = ask(run_script, tmp_path, *flags)
    assert answer["verdict"] == "The codebook has collapsed: perplexity 3.0 of 16 entries, 13 are never used."
    assert "--revival-threshold" in page and answer["findings"][0]["stage"] == "tokenizer"


def test_the_folder_that_does_not_belong_is_named(sound_run, tmp_path, run_script):
    for part, save in (("prior", save_prior), ("tokenizer", None)):
        if save:
            save(tmp_path / part, "another")
        else:
            save_tokenizer(tmp_path / part, seed=1)
        _, answer = ask(run_script, tmp_path / f"of_{part}", "--run", sound_run, f"--{part}", tmp_path / part)
        finding = answer["findings"][0]
        assert finding["stage"] == "pairing"
        stranger, _, home = finding["words"].partition(" does not belong to ")
        assert stranger == f"Wrong pairing: {tmp_path / part}"
        rest = {"tokenizer", "prior", "codes", "codes_test"} - {part}
        assert all(str(sound_run / name) in home for name in rest)


def test_codes_of_one_and_the_same_images_hold_nothing_out(sound_run, tmp_path, run_script):
    _, answer = ask(run_script, tmp_path, "--run", sound_run, "--validation-codes", sound_run / "codes")
    assert answer["verdict"].startswith("Nothing is held out: ")


class TestDecoder:
    """The tokenizer of bars, as it was trained and with a blur behind its decoder."""

    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("data") / "bars.npz"
        np.savez(path, *draw_bars(count=600))
        return path

    @pytest.fixture(scope="class")
    def tokenizer(self, data):
        torch.manual_seed(0)
        images = to_float(torch.from_numpy(np.load(data)["arr_0"]).permute(0, 3, 1, 2))
        tokenizer = VQVAE(
            1, (12, 20), hidden_channels=16, num_embeddings=32, embedding_dim=8, downsampling=2,
            data_variance=float(images.var()),
        )  # fmt: skip
        optimizer = torch.optim.Adam(tokenizer.parameters(), lr=5e-3)
        for _ in range(200):
            tokenizer(images[torch.randint(len(images), (32,))]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return tokenizer.eval()

    def test_a_trained_one_is_sharp(self, tokenizer, data, tmp_path, run_script):
        tokenizer.save_pretrained(tmp_path / "t")
        page, answer = ask(run_script, tmp_path, "--tokenizer", tmp_path / "t", "--dataset", "npz", "--data-root", data)
        assert answer["findings"] == [] and answer["figures"]["sharpness"] > 0.6
        assert "no prior/ (give --prior)" in page

    def test_a_blurred_one_is_named(self, tokenizer, data, tmp_path, run_script, monkeypatch):
        plain = VQVAE.decode

        def blur(self, *args):
            return F.avg_pool2d(F.pad(plain(self, *args), (1, 1, 1, 1), mode="replicate"), 3, stride=1)

        monkeypatch.setattr(VQVAE, "decode", blur)
        tokenizer.save_pretrained(tmp_path / "t")
        page, answer = ask(run_script, tmp_path, "--tokenizer", tmp_path / "t", "--dataset", "npz", "--data-root", data)
        assert answer["verdict"].startswith("The decoder blurs: ") and "--hidden-channels" in page


def test_without_an_output_nothing_is_written(sound_run, run_script):
    before = {path: path.stat().st_mtime_ns for path in sound_run.rglob("*")}
    result = run_script("doctor", "--run", sound_run, "--num-samples", 16)
    assert result.code == 0 and result.out.startswith("Nothing found.\n")
    assert {path: path.stat().st_mtime_ns for path in sound_run.rglob("*")} == before


def test_parts_that_are_missing_are_said_and_their_checks_left_out(sound_run, tmp_path, run_script):
    flags = ("--prior", sound_run / "prior", "--codes", sound_run / "codes")
    page, answer = ask(run_script, tmp_path, *flags)
    assert ask(run_script, tmp_path, *flags) == (page, answer)
    assert "no tokenizer/ (give --tokenizer): the decoder is not looked at" in page
    assert "no codes_test/ (give --validation-codes): every tenth grid of codes/ stands in" in page
    assert "sharpness" not in answer["figures"] and "held_out_bits" in answer["figures"]


def test_what_could_not_be_looked_at_is_not_called_sound(sound_run, run_script):
    page = run_script("doctor", "--tokenizer", sound_run / "tokenizer").out
    assert page.startswith("Nothing was looked at: ") and "no images (give --dataset" in page
    assert "no prior/ (give --prior)" in page and "codes_test/" not in page


def test_a_codebook_is_judged_by_images_where_there_are_no_codes(tmp_path, run_script):
    np.savez(tmp_path / "bars.npz", *draw_bars())
    torch.manual_seed(0)
    tokenizer = VQVAE(1, (12, 20), hidden_channels=16, num_embeddings=64, embedding_dim=8, downsampling=1)
    vectors = {name: tensor for name, tensor in tokenizer.state_dict().items() if tensor.shape == (64, 8)}
    for tensor in vectors.values():
        tensor[2:] = 1e3  # too far away to be anyone's nearest
    assert vectors
    tokenizer.save_pretrained(tmp_path / "t")
    flags = ("--tokenizer", tmp_path / "t", "--dataset", "npz", "--data-root", tmp_path / "bars.npz")
    _, answer = ask(run_script, tmp_path, *flags)
    assert answer["verdict"].startswith("The codebook has collapsed: ")


SOUND = {
    "training_bits": 3.0, "held_out_bits": 3.2, "sample_bits": 3.1, "accuracy": 0.3, "sample_accuracy": 0.3,
    "sample_shift": 0.06, "held_out_shift": 0.05, "sample_distance": 0.7, "held_out_distance": 0.7,
    "sample_copies": 0.0, "held_out_copies": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "figures,words",
    [
        ({}, ""), ({"sample_bits": 4.0}, "go astray"), ({"sample_bits": 1.0}, "repeat themselves"),
        ({"sample_shift": 0.4}, "other codes"), ({"sample_copies": 0.5}, "are training grids"),
        ({"sample_distance": 0.1}, "are training grids"), ({"sample_copies": 0.5, "held_out_copies": 0.5}, ""),
    ],
)  # fmt: skip
def test_samples_are_judged_beside_real_grids(figures, words):
    findings = find_faults_of_samples({**SOUND, **figures})
    assert bool(findings) == bool(words) and all(words in finding.words for finding in findings)


@pytest.mark.parametrize(
    "figures,words",
    [
        ({}, ""), ({"above_best": 0.2}, "past its best"), ({"last_gain": 0.1}, "still learning"),
        ({"inner_bits": 6.0}, "nothing of its context"), ({"training_bits": 5.9, "held_out_bits": 6.0}, "undertrained"),
        ({"kept_share": 0.2}, "overfitted"),
    ],
)  # fmt: skip
def test_a_prior_is_judged_beside_frequencies_and_its_own_history(figures, words):
    sound = {"frequency_bits": 7.0, "site_frequency_bits": 6.0, "inner_bits": 3.0, "inner_frequency_bits": 5.5}
    findings = find_faults_of_learning({**SOUND, **sound, "edge_bits": 3.0, **figures})
    assert bool(findings) == bool(words) and all(words in finding.words for finding in findings)


def test_frequencies_need_the_entropy_of_codes_that_are_drawn_by_site():
    random = np.random.default_rng(0)
    codes = torch.from_numpy(random.integers(0, 4, (4000, 2, 2)) + np.array([[0, 4], [8, 12]]))
    frequencies = count_frequencies(codes[:2000], K)
    assert frequencies.bits_overall(codes[2000:]).mean() == pytest.approx(4, abs=0.05)
    assert frequencies.bits_by_site(codes[2000:]).tolist() == pytest.approx(np.full((2, 2), 2), abs=0.05)


def test_a_figure_bears_the_number_of_the_finding_that_rests_on_it(sound_run, tmp_path, run_script):
    save_prior(tmp_path / "prior", fingerprint_of(sound_run))
    page, _ = ask(run_script, tmp_path, "--run", sound_run, "--prior", tmp_path / "prior")
    assert "\n1  the prior's bits per code, training grids" in page and "\n   perplexity" in page

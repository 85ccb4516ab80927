"""The doctor names the fault in runs that were broken on purpose, and finds nothing in a sound one."""

import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import draw_bars
from toy_priors import BoundPrior, SilentPrior

from codegrid.codes import Grid, Moment, Signal
from codegrid.data.code_writer import missing_ranges, write_codes
from codegrid.data.codes import CodeBatch, CodeDataset
from codegrid.data.images import to_float
from codegrid.data.manifest import CodeHeader
from codegrid.files import write_json
from codegrid.noise import Noise
from codegrid.pipelines.diagnosis import codebook, decoder, likelihood, samples, training
from codegrid.pipelines.diagnosis.finding import HIGH, LOW, Row, Subject, Table
from codegrid.pipelines.diagnosis.likelihood import (
    count_frequencies,
    edge_of,
    find_faults_of_learning,
    find_nothing_to_learn,
)
from codegrid.pipelines.diagnosis.report import Report
from codegrid.pipelines.diagnosis.run import doctor
from codegrid.pipelines.diagnosis.samples import find_faults_of_samples
from codegrid.pipelines.doctor import Doctor
from codegrid.stage1_vqvae.tokenizer import VQVAE
from codegrid.stage2_prior import GatedPixelCNN

K, SIDE = 16, 4
LAYOUT = (Grid((SIDE, SIDE), K),)


def draw_grids(count, seed):
    """Grids (n, 4, 4) in which each code is one of the two after its left neighbour: 1 bit a code but for the first."""
    random = np.random.default_rng(seed)
    steps = random.integers(0, 2, (count, SIDE, SIDE))
    steps[:, :, 0] = random.integers(0, K, (count, SIDE))
    return torch.from_numpy(steps.cumsum(2) % K)


def save_codes(folder, codes, fingerprint, source, num_embeddings=K):
    """A code dataset of one grid, or of several in a tuple."""
    codes = codes if isinstance(codes, tuple) else (codes,)
    layout = tuple(Grid(tuple(grid.shape[1:]), num_embeddings) for grid in codes)
    header = CodeHeader(len(codes[0]), layout, [], "train", fingerprint, source)
    write_codes(folder, header, missing_ranges(folder, header), [CodeBatch(codes, {})], {})


def save_prior(folder, fingerprint, codes=None, steps=0):
    """A prior that was trained for some steps on grids; fresh ones have learnt nothing."""
    torch.manual_seed(0)
    prior = GatedPixelCNN(LAYOUT, channels=12, num_layers=2, first_kernel=3)
    prior.provenance = {"tokenizer_fingerprint": fingerprint, "classes": []}
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for step in range(steps):
        prior((codes[torch.randint(len(codes), (32,))],)).total.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    prior.save_pretrained(folder)


def save_tokenizer(folder, seed=0, **options):
    torch.manual_seed(seed)
    options = options or {"num_embeddings": K, "embedding_dim": 8}
    tokenizer = VQVAE(Signal("image", 1, (16, 16)), hidden_channels=16, **options)
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


@pytest.fixture
def ask(tmp_path, capsys):
    """Call the doctor: returns its report as text, and doctor.json."""

    def call(output="answer", prior=(), **settings):
        folders = {name: str(value) if name != "num_samples" else value for name, value in settings.items()}
        capsys.readouterr()
        doctor(Doctor(output=str(tmp_path / output), prior=tuple(map(str, prior)), **folders))
        said, answer = capsys.readouterr().out, json.loads((tmp_path / output / "doctor.json").read_text())
        assert said.startswith(answer["verdict"] + "\n")
        for finding in answer["findings"]:
            assert finding["metrics"] and finding["remedy"] and finding["words"].endswith(".")
        return said, answer

    return call


def test_nothing_is_found_in_a_sound_run(sound_run, ask):
    report, answer = ask(run=sound_run)
    assert answer["verdict"] == "Nothing found." and answer["findings"] == answer["marks"] == []
    (prior,) = answer["priors"]
    assert prior["metrics"]["held_out_bits"] < 2 and prior["likelihood"] == "exact" and "usual" in report
    assert prior["grids"][0]["held_out_bits"] == prior["metrics"]["held_out_bits"]
    assert answer["grids"][0]["perplexity"] > 15


def test_a_prior_of_fresh_weights_is_undertrained(sound_run, tmp_path, ask):
    save_prior(tmp_path / "prior", fingerprint_of(sound_run))
    report, answer = ask(run=sound_run, prior=[tmp_path / "prior"])
    assert answer["verdict"].startswith("The prior is undertrained: ") and "train-prior --steps" in report
    assert {finding["stage"] for finding in answer["findings"]} <= {"prior", "samples"}
    # a metric bears the number of the finding that rests on it
    assert re.search(r"\n1  bits per code of the prior, training grids +\d\.\d\d HIGH at most \d", report)
    assert "\n   perplexity" in report
    assert max(len(line) for line in report.splitlines()[2:] if "/" not in line) <= 80  # a path is not cut


def test_a_prior_that_learnt_few_grids_by_heart_is_overfitted(sound_run, grids, tmp_path, ask):
    few = grids.training[:24]
    save_codes(tmp_path / "codes", few, fingerprint_of(sound_run), "few")
    save_prior(tmp_path / "prior", fingerprint_of(sound_run), few, 150)
    report, answer = ask(run=sound_run, prior=[tmp_path / "prior"], codes=tmp_path / "codes")
    assert answer["verdict"].startswith("The prior is overfitted: ") and "--dropout" in report
    assert any("Samples are training grids" in finding["words"] for finding in answer["findings"])


def test_a_collapsed_codebook_is_the_tokenizers_fault(sound_run, grids, tmp_path, ask):
    few = grids.training % 3
    for name, source in (("codes", "a"), ("codes_test", "b")):
        save_codes(tmp_path / name, few if name == "codes" else few[:100], fingerprint_of(sound_run), source)
    report, answer = ask(codes=tmp_path / "codes", validation_codes=tmp_path / "codes_test")
    assert answer["verdict"] == "The codebook has collapsed: perplexity 3.0 of 16 entries, 13 are never used."
    assert "--revival-threshold" in report and answer["findings"][0]["stage"] == "tokenizer"


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"quantizer": "fsq", "fsq_levels": (8, 8)}, "smaller --fsq-levels"),
        ({"quantizer": "lfq", "num_embeddings": 64}, "larger --entropy-weight"),
    ],
)
def test_entries_that_cannot_move_are_not_told_to(options, advice, tmp_path, ask):
    fingerprint = save_tokenizer(tmp_path / "run" / "tokenizer", **options)
    save_codes(tmp_path / "run" / "codes", draw_grids(300, 0) % 3, fingerprint, "a", num_embeddings=64)
    _, answer = ask(run=tmp_path / "run")
    (finding,) = answer["findings"]
    assert "has collapsed" in finding["words"] and "--revival-threshold" not in finding["remedy"]
    assert advice in finding["remedy"]


def test_the_folder_that_does_not_belong_is_named(sound_run, tmp_path, ask):
    save_prior(tmp_path / "prior", "another")
    save_tokenizer(tmp_path / "tokenizer", seed=1)
    for part, given in (
        ("prior", {"prior": [tmp_path / "prior"]}),
        ("tokenizer", {"tokenizer": tmp_path / "tokenizer"}),
    ):
        _, answer = ask(f"of_{part}", run=sound_run, **given)
        finding = answer["findings"][0]
        assert finding["stage"] == "pairing"
        stranger, _, home = finding["words"].partition(" does not belong to ")
        assert stranger == f"Wrong pairing: {tmp_path / part}"
        rest = {"tokenizer", "prior", "codes", "codes_test"} - {part}
        assert all(str(sound_run / name) in home for name in rest)


def test_codes_of_one_and_the_same_images_hold_nothing_out(sound_run, ask):
    _, answer = ask(run=sound_run, validation_codes=sound_run / "codes")
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
            Signal("image", 1, (12, 20)), float(images.var()), hidden_channels=16, num_embeddings=32, embedding_dim=8,
            downsampling=2,
        )  # fmt: skip
        optimizer = torch.optim.Adam(tokenizer.parameters(), lr=5e-3)
        for step in range(120):
            moment = Moment(step, 120, Noise(0, 0, 32))
            tokenizer(images[torch.randint(len(images), (32,))], moment=moment).losses.total.backward()
            optimizer.step()
            optimizer.zero_grad()
            tokenizer.after_step(step, 0)
        return tokenizer.eval()

    def test_a_trained_one_is_sharp(self, tokenizer, data, tmp_path, ask):
        tokenizer.save_pretrained(tmp_path / "t")
        report, answer = ask(tokenizer=tmp_path / "t", dataset="npz", data_root=data)
        assert answer["findings"] == [] and answer["metrics"]["sharpness"] > 0.6
        assert "no prior/ (give --prior)" in report
        assert answer["images"] == f"{data}, test: 100 images in 2 classes (0 50, 1 50)"
        assert " ".join(report.split()).count(answer["images"]) == 1

    def test_a_blurred_one_is_named(self, tokenizer, data, tmp_path, ask, monkeypatch):
        plain = VQVAE.decode

        def blur(self, *args, **options):
            return F.avg_pool2d(F.pad(plain(self, *args, **options), (1, 1, 1, 1), mode="replicate"), 3, stride=1)

        monkeypatch.setattr(VQVAE, "decode", blur)
        tokenizer.save_pretrained(tmp_path / "t")
        report, answer = ask(tokenizer=tmp_path / "t", dataset="npz", data_root=data)
        assert answer["verdict"].startswith("The decoder blurs: ") and "--hidden-channels" in report


def test_without_an_output_nothing_is_written(sound_run, run_script):
    before = {path: path.stat().st_mtime_ns for path in sound_run.rglob("*")}
    result = run_script("doctor", "--run", sound_run, "--num-samples", 64, "--strict")
    assert result.code == 0 and result.out.startswith("Nothing found.\n")
    assert {path: path.stat().st_mtime_ns for path in sound_run.rglob("*")} == before


def test_a_strict_doctor_exits_with_1_behind_a_whole_report(sound_run, tmp_path, run_script):
    save_prior(tmp_path / "prior", fingerprint_of(sound_run))
    flags = ("--run", sound_run, "--prior", tmp_path / "prior", "--num-samples", 8)
    result = run_script("doctor", *flags, "--strict", "--json", "--output", tmp_path / "answer")
    answer = json.loads((tmp_path / "answer" / "doctor.json").read_text())
    assert result.code == 1 and json.loads(result.out) == answer and "undertrained" in answer["verdict"]
    assert run_script("doctor", *flags).code == 0


@pytest.mark.parametrize("verdict", ["Unusual: PSNR.", "Nothing was checked: too many parts are missing."])
def test_a_strict_doctor_is_not_content_with_marks_or_without_a_look(verdict):
    assert Doctor(run="r", strict=True).exit_code({"verdict": verdict}) == 1
    assert Doctor(run="r", strict=True).exit_code({"verdict": "Nothing found."}) == 0


def test_parts_that_are_missing_are_said_and_their_checks_left_out(sound_run, ask):
    parts = {"prior": [sound_run / "prior"], "codes": sound_run / "codes"}
    report, answer = ask(**parts)
    assert ask(**parts) == (report, answer)
    report = " ".join(report.split())
    assert "no tokenizer/ (give --tokenizer): the decoder is not checked" in report
    assert "no codes_test/ (give --validation-codes): some grids of codes/ are used instead" in report
    assert answer["metrics"] == {} and "held_out_bits" in answer["priors"][0]["metrics"]


def test_parts_that_could_not_be_looked_at_are_not_called_sound(sound_run, ask):
    report, answer = ask(tokenizer=sound_run / "tokenizer")
    assert report.startswith("Nothing was checked: ") and "no images (give --dataset" in report
    assert "no prior/ (give --prior)" in report and "codes_test/" not in report
    assert any("give --prior" in words for words in answer["left_out"])


def test_a_codebook_is_judged_by_images_where_there_are_no_codes(tmp_path, ask):
    np.savez(tmp_path / "bars.npz", *draw_bars())
    torch.manual_seed(0)
    tokenizer = VQVAE(
        Signal("image", 1, (12, 20)), hidden_channels=16, num_embeddings=64, embedding_dim=8, downsampling=1
    )
    tokenizer.quantizer.codebook.data[2:] = 1e3  # too far away to be anyone's nearest
    tokenizer.save_pretrained(tmp_path / "t")
    _, answer = ask(tokenizer=tmp_path / "t", dataset="npz", data_root=tmp_path / "bars.npz")
    assert answer["verdict"].startswith("The codebook has collapsed: ")


@pytest.fixture
def residual_run(tmp_path):
    """A residual tokenizer, codes whose second grid uses three entries, and a function that saves priors."""
    run = tmp_path / "run"
    fingerprint = save_tokenizer(run / "tokenizer", quantizer="residual", num_embeddings=K, embedding_dim=8)
    first, second = draw_grids(200, 0), draw_grids(200, 1) % 3
    for name, rows in (("codes", slice(0, 150)), ("codes_test", slice(150, 200))):
        save_codes(run / name, (first[rows], second[rows]), fingerprint, name)

    def save(number, prior):
        prior.provenance = {"tokenizer_fingerprint": fingerprint, "classes": []}
        prior.save_pretrained(run / f"prior-{number}" if number is not None else run / "prior")

    return SimpleNamespace(folder=run, save=save)


def test_each_grid_of_a_residual_tokenizer_and_of_its_prior_is_looked_at(residual_run, ask):
    torch.manual_seed(0)
    residual_run.save(None, GatedPixelCNN(LAYOUT * 2, channels=8, num_layers=1))
    report, answer = ask(run=residual_run.folder, num_samples=8)
    assert answer["verdict"].startswith("The codebook of grid 1 has collapsed: perplexity ")
    assert [grid["unused_entries"] for grid in answer["grids"]] == [0, 13] and answer["findings"][0]["of"] == "grid 1"
    (prior,) = answer["priors"]
    bits = [grid["held_out_bits"] for grid in prior["grids"]]
    assert len(bits) == 2 and prior["metrics"]["held_out_bits"] == pytest.approx(sum(bits) / 2)
    assert "Codebook of grid 1, 4×4 codes out of 16" in report and "\nGrid 0, 4×4 codes out of 16" in report
    assert 0 <= prior["metrics"]["sample_distance"] <= 1 and 0 <= prior["metrics"]["accuracy"] <= 1


def test_a_grid_whose_codes_mean_nothing_to_the_decoder_is_named(tmp_path, ask):
    np.savez(tmp_path / "bars.npz", *draw_bars(400))
    torch.manual_seed(0)
    options = {"num_embeddings": 4, "embedding_dim": 8, "num_quantizers": 3, "downsampling": 2}
    tokenizer = VQVAE(Signal("image", 1, (12, 20)), hidden_channels=16, quantizer="residual", **options)
    tokenizer.quantizer.books[1].codebook.data *= 1e-6
    tokenizer.save_pretrained(tmp_path / "t")
    codes = tuple(torch.randint(0, 4, (100, 6, 10)) for _ in range(3))  # all in use
    save_codes(tmp_path / "codes", codes, tokenizer.fingerprint(), "a", num_embeddings=4)
    given = {"tokenizer": tmp_path / "t", "dataset": "npz", "data_root": tmp_path / "bars.npz"}
    report, answer = ask(**given, codes=tmp_path / "codes")
    named = [finding["of"] for finding in answer["findings"] if "carries next to nothing" in finding["words"]]
    assert "grid 1" in named and "fewer --num-quantizers" in report
    assert answer["grids"][1]["error_rise"] == pytest.approx(0, abs=1e-4)
    assert ("grid 1", "error_rise", LOW) in [(mark["of"], mark["metric"], mark["mark"]) for mark in answer["marks"]]


def test_what_priors_cannot_tell_is_left_out_and_said(residual_run, ask):
    residual_run.save(0, SilentPrior(LAYOUT, (0,)))
    residual_run.save(1, BoundPrior(LAYOUT, (1,), 0, (0,)))
    report, answer = ask(run=residual_run.folder, num_samples=8)
    silent, bound = answer["priors"]
    assert {"sample_bits", "accuracy", "training_bits", "inner_bits"}.isdisjoint(silent["metrics"])
    assert {"entropy", "frequency_bits", "sample_distance", "sample_shift"} <= set(silent["metrics"])
    assert {"training_bits", "held_out_bits", "sample_bits"} <= set(bound["metrics"]) and "accuracy" not in bound[
        "metrics"
    ]
    left_out = " ".join(answer["left_out"])
    assert "no bits of prior-0: it has no likelihood, and is judged by its samples" in answer["left_out"]
    assert "no exact bits of prior-1" in left_out
    assert "no guessed codes of prior-0" in left_out
    name = f"The prior {residual_run.folder / 'prior-1'}"
    assert any(finding["words"].startswith(f"{name} is undertrained") for finding in answer["findings"])
    assert f"Samples {residual_run.folder / 'prior-0'}" in report


@pytest.mark.parametrize("shape,inner", [((5,), 4), ((3, 4), 6), ((2, 3, 4), 6), ((1, 4), 0)])
def test_the_edge_is_where_a_grid_begins_along_any_axis(shape, inner):
    assert int((~edge_of(shape)).sum()) == inner


SOUND = {
    "training_bits": 3.0, "held_out_bits": 3.2, "sample_bits": 3.1, "accuracy": 0.3, "sample_accuracy": 0.3,
    "sample_shift": 0.06, "held_out_shift": 0.05, "sample_distance": 0.7, "held_out_distance": 0.7,
    "sample_copies": 0.0, "held_out_copies": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "metrics,words",
    [
        ({}, ""), ({"sample_bits": 4.0}, "go astray"), ({"sample_bits": 1.0}, "repeat themselves"),
        ({"sample_shift": 0.4}, "other codes"), ({"sample_copies": 0.5}, "are training grids"),
        ({"sample_distance": 0.1}, "are training grids"), ({"sample_copies": 0.5, "held_out_copies": 0.5}, ""),
    ],
)  # fmt: skip
def test_samples_are_judged_beside_real_grids(metrics, words):
    findings = find_faults_of_samples({**SOUND, **metrics})
    assert bool(findings) == bool(words) and all(words in finding.words for finding in findings)


SOUND |= {
    "frequency_bits": 7.0, "site_frequency_bits": 6.0, "edge_bits": 3.0, "inner_bits": 3.0, "inner_frequency_bits": 5.5,
    "kept_share": 0.9, "reconstruction_error": 0.05, "psnr": 25.0, "sharpness": 0.8, "removed_by_filter": 0.02,
    "perplexity_share": 0.8, "used_share": 1.0, "steps": 2000, "planned_steps": 2000, "epochs": 20.0, "late_gain": 0.0,
    "above_best": 0.0, "error": 0.05, "error_rise": 0.02,
}  # fmt: skip


@pytest.mark.parametrize(
    "metrics,words",
    [
        ({}, ""), ({"inner_bits": 6.0}, "does not use its context"), ({"kept_share": 0.2}, "overfitted"),
        ({"training_bits": 5.9, "held_out_bits": 6.0}, "undertrained"),
        ({"shuffled_bits": 3.21}, "makes nothing of the coarser grids"), ({"shuffled_bits": 4.0}, ""),
        ({"frequency_bits": 2.0, "site_frequency_bits": 0.01, "training_bits": 0.0, "held_out_bits": 0.02}, ""),
    ],
)  # fmt: skip
def test_a_prior_is_judged_beside_frequencies(metrics, words):
    findings = find_faults_of_learning({**SOUND, **metrics})
    assert bool(findings) == bool(words) and all(words in finding.words for finding in findings)


@pytest.mark.parametrize("by_site,found", [(6.0, 0), (0.01, 1)])
def test_a_grid_whose_codes_do_not_depend_on_the_image_is_named(by_site, found):
    metrics = {**SOUND, "site_frequency_bits": by_site, "held_out_bits": 0.0}
    named = find_nothing_to_learn(metrics, Subject("Grid 0", "prior-0"))
    assert [finding.stage for finding in named] == ["tokenizer"] * found


@pytest.mark.parametrize(
    "metrics,words",
    [
        ({}, ""), ({"sharpness": 0.4}, "few details"), ({"removed_by_filter": 0.3}, "blurs"),
        ({"reconstruction_error": 0.3}, "reconstructs badly"),
    ],
)  # fmt: skip
def test_one_bar_of_the_decoder_is_enough(metrics, words):
    findings = decoder.find_blur({**SOUND, **metrics}, {})
    assert len(findings) == bool(words) and all(words in finding.words for finding in findings)


def test_what_a_grid_must_carry_is_a_share_of_the_error_that_stays():
    for rise, error, found in ((0.02, 0.05, 0), (0.001, 0.05, 1), (0.001, 0.005, 0), (-0.001, 0.005, 1)):
        findings = codebook.find_idle({**SOUND, "error_rise": rise, "error": error}, Subject("Grid 1", "grid 1"))
        assert len(findings) == found and all(finding.of == "grid 1" for finding in findings)
    assert codebook.find_idle({}, Subject("Grid 1")) == []  # without images


@pytest.mark.parametrize("name", ["tokenizer", "prior"])
@pytest.mark.parametrize(
    "metrics,words", [({}, ""), ({"above_best": 0.2}, "past its best"), ({"late_gain": 0.5}, "still learning")]
)
def test_a_training_is_judged_by_its_own_history(metrics, words, name):
    findings = training.find_faults_of_training({**SOUND, **metrics}, Subject("The model", name))
    assert bool(findings) == bool(words) and all(words in finding.words for finding in findings)
    assert all(finding.stage == name and f"train-{name}" in finding.remedy for finding in findings)


ROWS = {name: row for file in (codebook, decoder, likelihood, samples, training) for name, row in file.ROWS.items()}
BOUNDED = [
    (name, value, mark)
    for name, row in ROWS.items()
    for bound, value, mark in ((row.low, -1e9, LOW), (row.high, 1e9, HIGH))
    if callable(bound) or math.isfinite(bound)
]


def test_a_sound_run_is_not_drowned_in_marks():
    assert Report(tables=[Table("All", ROWS, SOUND)]).verdict == "Nothing found." and len(BOUNDED) > 15


@pytest.mark.parametrize("name,value,mark", BOUNDED)
def test_every_figure_that_is_not_as_usual_is_marked_by_a_word(name, value, mark):
    report = Report(tables=[Table("All", ROWS, {**SOUND, name: value})])
    (line,) = (line for line in report.as_text().splitlines() if ROWS[name].words in line and "usual:" not in line)
    told = {one["metric"]: one["mark"] for one in report.as_json()["marks"]}
    assert f" {mark} at " in line or f" {mark} " in line
    assert told[name] == mark and report.verdict.startswith("Unusual: All, ")


def test_a_bound_that_rests_on_another_metric_needs_it():
    rows = {"own": Row("own", high=lambda m: 2 * m["other"]), "other": Row("other", high=3)}
    assert [figure.mark for figure in Table("t", rows, {"own": 5.0, "other": 2.0}).figures()] == [HIGH, ""]
    assert [figure.usual for figure in Table("t", rows, {"own": 5.0}).figures()] == [""]
    assert Table("t", rows, {"other": math.nan}).figures()[0].mark == HIGH


@pytest.mark.parametrize(
    ("metrics", "usual"),
    [
        ({"sample_copies": 0.9, "held_out_copies": 0.97}, ["", ""]),
        ({"sample_copies": 0.1, "held_out_copies": 0.2}, ["at most 25.0%", ""]),
        ({"sample_distance": 0.9, "held_out_distance": 0.9}, ["at least 72.0%", ""]),
    ],
)
def test_no_share_is_said_to_be_usual_beyond_all(metrics, usual):
    assert [figure.usual for figure in Table("t", samples.ROWS, metrics).figures()] == usual


def history_of(*figures, name="reconstruction_error"):
    return [{"step": 100 * number, name: figure} for number, figure in enumerate(figures, 1)]


def test_a_rate_that_falls_to_0_does_not_hide_that_there_was_more_to_learn():
    provenance = {"steps": 600, "step": 600, "history": history_of(1.0, 0.8, 0.6, 0.4, 0.31, 0.3)}
    metrics = training.measure_training(provenance, batch_size=32, items=9600)
    assert metrics["late_gain"] == pytest.approx(0.5) and metrics["epochs"] == 2
    assert [mark.metric for mark in Table("t", training.ROWS, metrics).figures() if mark.mark] == [
        "epochs",
        "late_gain",
    ]


@pytest.mark.parametrize("name", ["nats", "denoising_error"])
def test_models_without_error_or_bits_have_a_metric_that_shows_whether_they_were_still_learning(name):
    provenance = {"steps": 400, "step": 400, "history": history_of(4.0, 2.0, 1.5, 1.0, name=name)}
    assert training.measure_training(provenance)["late_gain"] == pytest.approx(0.5)


def test_the_best_weights_are_not_judged_by_the_last():
    provenance = {"steps": 600, "history": history_of(3.2, 3.0, 4.0, name="bits_per_code")}
    last, best = (training.measure_training({**provenance, "step": step}) for step in (300, 200))
    assert last["above_best"] == pytest.approx(1 / 3) and best["above_best"] == 0
    figures = Table("t", training.ROWS, best).figures()
    assert [(mark.metric, mark.usual) for mark in figures if mark.mark] == [("steps", "at least 600")]


@pytest.mark.parametrize(
    "provenance",
    [
        {},
        {"history": 3},
        {"history": [3, {}]},
        {"steps": "x", "step": True, "history": [{"step": -1, "bits_per_code": 1.0}]},
    ],
)
def test_what_others_write_into_their_models_is_passed_over(provenance):
    assert training.measure_training(provenance, "many", 10**400) == {}


def test_epochs_are_those_of_the_training_of_this_version_and_of_earlier_ones(small_run, tmp_path, ask):
    run = shutil.copytree(small_run, tmp_path / "run")
    report, answer = ask(run=run, num_samples=None)
    (prior,) = answer["priors"]
    told = [answer["metrics"]["epochs"], prior["metrics"]["epochs"]]
    records = {name: json.loads((run / name / "run.json").read_text()) for name in ("tokenizer", "prior")}
    for record, epochs in zip(records.values(), told, strict=True):
        assert epochs == record["settings"]["steps"] * record["settings"]["batch_size"] / record.pop("items")
    assert "Training of the tokenizer" in report and answer["verdict"] != "Nothing found."
    for name, record in records.items():
        write_json(run / name / "run.json", record)
    _, answer = ask("before", run=run, num_samples=None)
    before = [answer["metrics"]["epochs"], answer["priors"][0]["metrics"]["epochs"]]
    assert before == pytest.approx(told, rel=0.15)  # they did not tell that some codes were held out


def test_frequencies_need_the_entropy_of_codes_that_are_drawn_by_site():
    random = np.random.default_rng(0)
    codes = torch.from_numpy(random.integers(0, 4, (4000, 2, 2)) + np.array([[0, 4], [8, 12]]))
    frequencies = count_frequencies(codes[:2000], K)
    assert frequencies.bits_overall(codes[2000:]).mean() == pytest.approx(4, abs=0.05)
    assert frequencies.bits_by_site(codes[2000:]).tolist() == pytest.approx(np.full((2, 2), 2), abs=0.05)

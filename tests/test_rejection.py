"""Rejection sampling: each sample is the best of several draws, and the results say who chose and who judged."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from untrained import make_pipeline

import codegrid
from codegrid import Condition, InputError, Noise, Signal, TwoStagePipeline, load
from codegrid.data.codes import CodeDataset
from codegrid.data.images import to_uint8
from codegrid.model_folder import ModelFolder
from codegrid.pipelines.decode_codes import DecodeCodes
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation import classifier as training
from codegrid.pipelines.evaluation.classifier import SmallClassifier, describe_classifier, is_same
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.generation.decoding import decode_codes
from codegrid.pipelines.generation.rejection import Rejection, add_rejection, read_rejection
from codegrid.pipelines.generation.request import make_request
from codegrid.pipelines.generation.sampling import sample
from codegrid.pipelines.sample import Sample
from codegrid.stage2_prior.sampling.draw import draw

SIGNAL = Signal("image", 1, (12, 20))
MIDDLE = 99.3  # grey level: about as bright as untrained models draw
SEVERAL = ((0,), (1,))  # a prior for each of two grids
OF_SAMPLES = ["gfid", "class_agreement", "class_agreement_by_class"]


class Brightness(ModelFolder, nn.Module):
    """A classifier of two classes, dark and bright, by the mean of a picture."""

    kind = "classifier"

    def __init__(self, signal, num_classes=2):
        super().__init__()
        self.signal = signal if isinstance(signal, Signal) else Signal(**signal)
        self.config = {"signal": self.signal.as_json(), "num_classes": num_classes}
        self.provenance = {"classes": [str(number) for number in range(num_classes)]}
        self.register_buffer("middle", torch.tensor(MIDDLE))

    def forward(self, images):
        return images.float().mean((1, 2, 3))[:, None] - self.middle

    def logits(self, features):
        return torch.cat([-features, features], dim=1)


codegrid.register("classifier", "toy-brightness", Brightness)


def brightness(image):
    return float(to_uint8(image).float().mean())


def draws_of_one(pipeline, index, label, draws, seed):
    """All draws of a sample as (codes, image), one by one, without the pipeline's own batches."""
    request = make_request(pipeline.priors, 1, None if label is None else [label], seed)
    for number in range(draws):
        noise = Noise(seed, index)
        noise = noise.of("draw", number) if number else noise
        (*_, last) = draw(pipeline.priors, request.condition, noise, request.configs)
        yield last.codes, pipeline.decode(last.codes, request.condition, noise.of("decoder"))[0]


@pytest.fixture(scope="module", params=[((0,),), SEVERAL], ids=["one prior", "two priors"])
def pipeline(request):
    return make_pipeline(request.param)


@pytest.fixture(scope="module")
def judge():
    return Brightness(SIGNAL)


@pytest.mark.parametrize("label", [0, 1, -1])
def test_each_sample_is_the_draw_of_its_own_noise_that_shows_its_class_most_clearly(label, pipeline, judge):
    kept = pipeline.sample(3, labels=[label], seed=5, reject_with=judge, reject_keep=0.25, progress=False)
    for index in range(3):
        draws = list(draws_of_one(pipeline, index, label, 4, seed=5))
        shown = [brightness(image) - MIDDLE for _, image in draws]
        assert len(set(shown)) > 1
        best = int(np.argmax([{0: -mean, 1: mean, -1: abs(mean)}[label] for mean in shown]))
        assert all(torch.equal(grid[index], ours[0]) for grid, ours in zip(kept.codes, draws[best][0], strict=True))
        assert (kept.images[index] - draws[best][1]).abs().max() < 1e-5


@pytest.mark.parametrize("by", ["a classifier", "likelihood"])
def test_neither_the_batch_nor_the_number_of_samples_nor_the_backend_changes_what_is_kept(by, pipeline, judge):
    by = judge if by == "a classifier" else by

    def drawn(count=7, **settings):
        more = {"seed": 2, "reject_with": by, "reject_keep": 0.5, "progress": False, "guidance_scale": 1.5}
        more |= settings
        return pipeline.sample(count, **more).codes

    expected = drawn(batch_size=7)
    for others in (drawn(batch_size=1), drawn(batch_size=3), drawn(4), drawn(3, backend="torch")):
        assert all(torch.equal(grid[: len(other)], other) for grid, other in zip(expected, others, strict=True))


@pytest.mark.parametrize("label", [0, 1])
def test_likelihood_keeps_the_draw_whose_likelihood_its_label_raises_most(label, pipeline):
    kept = pipeline.sample(3, labels=[label], seed=5, reject_with="likelihood", progress=False).codes
    for index in range(3):
        draws = [codes for codes, _ in draws_of_one(pipeline, index, label, 4, seed=5)]
        gains = []
        for codes in draws:
            parts = [(prior, tuple(codes[grid] for grid in prior.grids)) for prior in pipeline.priors]
            asked, without = (
                sum(float(torch.cat(prior.nll(own, given)).sum()) for prior, own in parts)
                for given in (Condition(torch.tensor([label])), Condition())
            )
            gains.append(without - asked)
        best = draws[int(np.argmax(gains))]
        assert len(set(gains)) > 1 and all(
            torch.equal(grid[index], ours[0]) for grid, ours in zip(kept, best, strict=True)
        )


def test_likelihood_needs_a_prior_that_also_knows_what_is_likely_without_a_label():
    with pytest.raises(InputError, match="`reject_with` likelihood: this prior was only trained with labels"):
        make_pipeline(label_dropout=0.0).sample(2, reject_with="likelihood")
    pipeline = make_pipeline()
    prior = type(pipeline.priors[0])(pipeline.layout, channels=8, num_layers=2).eval()
    prior.provenance = {"tokenizer_fingerprint": pipeline.tokenizer.fingerprint()}
    with pytest.raises(InputError, match="`reject_with` likelihood: this prior is unconditional"):
        TwoStagePipeline(pipeline.tokenizer, prior).sample(2, reject_with="likelihood")
    with pytest.raises(InputError, match="`reject_with` likelihood: without `labels` all draws fit: give some"):
        pipeline.sample(2, labels="none", reject_with="likelihood")


def test_of_draws_that_likelihood_chooses_from_only_the_best_is_decoded(pipeline, monkeypatch):
    request = make_request(pipeline.priors, 3, seed=5)
    request = add_rejection(request, pipeline.tokenizer, pipeline.priors, "likelihood", 0.25)
    decoded, decode = [], pipeline.decode
    monkeypatch.setattr(pipeline, "decode", lambda codes, *more: decoded.append(codes) or decode(codes, *more))
    codes = pipeline.sample_codes(request, range(3))
    assert not decoded
    samples = pipeline.sample_rows(request, range(3))
    assert len(decoded) == 1 and all(map(torch.equal, samples.codes, codes))
    assert torch.equal(samples.images, decode(codes))


def test_the_first_draw_is_the_plain_sample_and_a_share_of_one_keeps_it(pipeline, judge):
    plain, whole, half = (
        pipeline.sample(6, seed=1, progress=False, **settings).codes[0]
        for settings in ({}, {"reject_with": judge, "reject_keep": 1.0}, {"reject_with": judge, "reject_keep": 0.5})
    )
    assert torch.equal(plain, whole)
    is_kept = (plain == half).flatten(1).all(1)
    assert is_kept.any() and not is_kept.all()


@pytest.mark.parametrize("keep,draws", [(1, 1), (0.5, 2), (0.3, 4), (1 / 3, 3), (0.25, 4), (0.1, 10), (0.001, 1000)])
def test_a_share_stands_for_a_number_of_draws_that_no_class_can_exceed(keep, draws, judge):
    assert Rejection(judge, keep).draws == draws


def test_draws_of_a_sample_and_of_others_share_no_random_numbers(pipeline):
    request = make_request(pipeline.priors, 3, seed=4)
    rows = [
        pipeline.noise_of(request._replace(draw=number), range(first, 3)).uniforms("codes", 50)
        for number in range(3)
        for first in (0, 2)
    ]
    assert all(torch.equal(rows[2 * number][2], rows[2 * number + 1][0]) for number in range(3))
    found = torch.corrcoef(torch.cat(rows[::2])).fill_diagonal_(0)
    assert found.abs().max() < 0.6


def test_completions_are_the_best_of_their_draws_and_keep_what_was_given(pipeline, judge):
    pictures = pipeline.sample(2, seed=9, progress=False).images
    plain, kept = (
        pipeline.complete(pictures, 1, 2, labels=[1], seed=0, progress=False, **settings)
        for settings in ({}, {"reject_with": judge})
    )
    for grid, given in zip(kept.codes, pipeline.encode(pictures), strict=True):
        assert torch.equal(grid[:, :1], given[:, :1].repeat_interleave(2, 0))
    means = [to_uint8(samples.images).float().mean((1, 2, 3)) for samples in (plain, kept)]
    assert (means[1] >= means[0]).all() and (means[1] > means[0]).any()


def test_an_unconditional_prior_keeps_the_draws_that_are_most_like_any_class(judge):
    pipeline = make_pipeline()
    (prior,) = pipeline.priors
    unconditional = type(prior)(prior.layout, prior.grids, channels=8, num_layers=2).eval()
    unconditional.provenance = {"tokenizer_fingerprint": pipeline.tokenizer.fingerprint()}
    pipeline = TwoStagePipeline(pipeline.tokenizer, unconditional)
    plain, kept = (to_uint8(pipeline.sample(4, seed=0, progress=False, reject_with=by).images) for by in (None, judge))
    clear = [(images.float().mean((1, 2, 3)) - MIDDLE).abs() for images in (plain, kept)]
    assert (clear[1] >= clear[0]).all() and (clear[1] > clear[0]).any()


@pytest.mark.parametrize(
    "settings,reason",
    [
        ({"reject_with": nn.Linear(2, 2)}, "`reject_with` Linear: give a classifier"),
        ({"reject_with": Brightness(SIGNAL, 3)}, "Brightness: it knows the classes 0, 1, 2, the prior 0, 1"),
        ({"reject_with": Brightness(SIGNAL), "reject_keep": 0}, "`reject_keep` 0: it must be a number"),
        ({"reject_keep": 0.5}, "`reject_keep` needs `reject_with`"),
    ],
)
def test_what_cannot_reject_is_refused_from_python_too(settings, reason, pipeline):
    for call in (pipeline.sample, lambda **settings: pipeline.complete(torch.zeros(1, 1, 12, 20), 1, **settings)):
        with pytest.raises(InputError, match=reason):
            call(**settings)


def test_a_bar_tells_how_many_draws_there_are(pipeline, judge, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    pipeline.sample(3, seed=1, reject_with=judge, batch_size=2)
    assert "drawing 3, each the best of 4 draws: 100%" in capsys.readouterr().err


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with an untrained classifier of the bars."""
    folder = tmp_path_factory.mktemp("saved") / "classifier"
    torch.manual_seed(0)
    model = SmallClassifier(SIGNAL, 2)
    model.provenance = {"classes": ["0", "1"]}
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def short_training(monkeypatch):
    """Classifiers are trained for a moment; returns a list with an item for each."""
    monkeypatch.setattr(training, "STEPS", 3)
    trained, train = [], training.train_classifier

    def count(*arguments):
        trained.append(arguments)
        return train(*arguments)

    for user in ("evaluation.features", "generation.rejection"):
        monkeypatch.setattr(f"codegrid.pipelines.{user}.train_classifier", count)
    return trained


@pytest.fixture
def drawn(small_run, tmp_path):
    """Draw samples into a folder of this name, and return it."""

    def call(name, **settings):
        models = {"tokenizer": str(small_run / "tokenizer"), "prior": (str(small_run / "prior"),)}
        sample(Sample(**{**models, "num_samples": 5, "output": str(tmp_path / name), **settings}))
        return tmp_path / name

    return call


def test_a_saved_classifier_is_loaded_as_it_was(saved):
    model = load(saved)
    assert (model.signal, model.provenance["classes"]) == (SIGNAL, ["0", "1"])
    images = torch.randint(0, 256, (3, *SIGNAL.shape), dtype=torch.uint8)
    assert model.logits(model(images)).shape == (3, 2) and not model.training
    with pytest.raises(InputError, match=r"holds a classifier \(small\), but a tokenizer is needed here"):
        TwoStagePipeline.from_parts(saved, saved)


def test_the_record_names_who_rejected_and_what_was_drawn(drawn, saved):
    rejection = json.loads((drawn("s", reject_with=saved) / "run.json").read_text())["rejection"]
    of_prior = json.loads((drawn("l", reject_with="likelihood") / "run.json").read_text())["rejection"]
    assert of_prior.pop("network")["name"] == "prior" and of_prior == {"keep": 0.25, "draws": 4, "drawn": 20}
    network = rejection.pop("network")
    assert network["fingerprint"] == load(saved).fingerprint() and network == describe_classifier(load(saved))
    assert rejection == {"keep": 0.25, "draws": 4, "drawn": 20}
    assert "rejection" not in json.loads((drawn("plain") / "run.json").read_text())


def test_codes_are_those_of_the_images_and_say_who_rejected_after_decoding_too(drawn, saved, small_run, tmp_path):
    codes, images = (drawn(f, format=f, reject_with=saved, batch_size=2) for f in ("codegrid", "npz"))
    decoded = tmp_path / "decoded"
    decode_codes(DecodeCodes(tokenizer=str(small_run / "tokenizer"), codes=str(codes), output=str(decoded)))
    one, other = (np.load(path)["arr_0"] for path in (decoded / "images.npz", images / "samples.npz"))
    assert abs(one.astype(int) - other).max() <= 1
    records = [json.loads((folder / "run.json").read_text())["rejection"] for folder in (decoded, images)]
    assert records[0] == records[1] == CodeDataset(codes).provenance["rejection"]


def test_a_stopped_run_goes_on_with_its_classifier_and_refuses_another(drawn, saved, short_training, monkeypatch):
    for name, settings in (("s", {"shard_size": 2}), ("c", {"format": "codegrid"})):
        settings = {"reject_with": "classifier", "reject_keep": 0.5, "batch_size": 2, **settings}
        whole = drawn(f"whole {name}", **settings)
        rows, calls = TwoStagePipeline.sample_rows, []

        def stop(self, *arguments, rows=rows, calls=calls):
            calls.append(arguments)
            if len(calls) > 4:
                raise KeyboardInterrupt
            return rows(self, *arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(TwoStagePipeline, "sample_rows", stop)
            drawn(name, **settings)
        for other in ({"reject_keep": 0.25}, {"reject_with": saved}, {"reject_with": None, "reject_keep": None}):
            if name == "s":
                with pytest.raises(InputError, match="was made with reject_"):
                    drawn(name, **{**settings, **other})
        short_training.clear()
        again = drawn(name, **settings)
        assert not short_training
        for file in ("samples-00002.npz", "codes-00000.safetensors"):
            assert not (whole / file).exists() or (again / file).read_bytes() == (whole / file).read_bytes()


def test_codes_with_other_rejection_are_another_run(drawn, saved):
    settings = {"format": "codegrid", "reject_with": saved}
    drawn("c", **settings)
    for other, reason in (({"reject_keep": 0.5}, "reject_keep 0.25, not 0.5"), ({"reject_with": None}, "reject_")):
        with pytest.raises(InputError, match=reason):
            drawn("c", **{**settings, **other})


@pytest.mark.xdist_group("two")
def test_two_processes_reject_as_one_does(drawn, saved, small_run, two, tmp_path):
    flags = ("--num-samples", 5, "--batch-size", 1, "--reject-with", saved, "--format", "codegrid")
    models = ("--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior")
    two.run("sample", *models, *flags, "--output", tmp_path / "two")
    alone, shared = (CodeDataset(folder)[:] for folder in (drawn("one", format="codegrid", reject_with=saved),
                                                           tmp_path / "two"))  # fmt: skip
    assert all(torch.equal(*pair) for pair in zip(alone.codes, shared.codes, strict=True))


@pytest.fixture
def measured(small_run, bars_file, tmp_path):
    """Evaluate the small run on the bars, and return metrics.json."""

    def call(output="out", **settings):
        parts = {"tokenizer": str(small_run / "tokenizer"), "prior": (str(small_run / "prior"),)}
        data = {"dataset": "npz", "data_root": str(bars_file), "num_samples": 5}
        return evaluate(Evaluate(output=str(tmp_path / output), **{**parts, **data, **settings}))

    return call


def test_figures_mark_a_judge_that_also_chose_the_samples(measured, short_training, capsys, tmp_path):
    figures = measured(features="classifier", reject_with="classifier", reject_keep=0.5)
    assert len(short_training) == 1, "one network, trained once"
    found = figures["measured_on"]["gfid"]["rejections"]["samples"]
    assert found["is_judge"] and found["draws"] == 2 and found["drawn"] == 10
    assert found["network"] == figures["measured_on"]["gfid"]["extractor"]
    assert [name for name, details in figures["measured_on"].items() if "rejections" in details] == OF_SAMPLES
    told = capsys.readouterr().out
    assert "best of 2 draws" in told and "the same network judges them here" in told
    assert describe_classifier(load(tmp_path / "out" / "classifier")) == found["network"]
    assert is_same(found["network"], {**found["network"], "weights": "rounded otherwise"})
    assert not is_same(found["network"], {**found["network"], "weights": "others", "train_data": "others"})


def test_figures_name_both_networks_where_they_differ(measured, saved, short_training, capsys):
    figures = measured(features="classifier", reject_with=saved)
    rejection, extractor = (figures["measured_on"]["gfid"][name] for name in ("rejections", "extractor"))
    assert not rejection["samples"]["is_judge"] and rejection["samples"]["network"]["weights"] != extractor["weights"]
    told = capsys.readouterr().out
    assert "best of 4 draws, chosen by a classifier" in told and "judges them here" not in told


def test_pictures_that_a_run_left_say_who_chose_them(drawn, saved, bars_file, tmp_path):
    for kind, inside in (("npz", "samples.npz"), ("png", "samples")):
        images = drawn(kind, reject_with=saved, format=kind)
        rejection = json.loads((images / "run.json").read_text())["rejection"]
        assert read_rejection(images) == read_rejection(images / inside) == rejection
    settings = {"images": str(images), "against": str(bars_file), "output": str(tmp_path / "out")}
    found = evaluate(Evaluate(**settings, features=f"{__name__}:as_it_is"))["measured_on"]["frechet_distance"]
    assert found["rejections"] == {"images": {**rejection, "is_judge": False}}
    assert read_rejection(tmp_path) is None


def as_it_is():
    class Means(nn.Module):
        def forward(self, images):
            return images.float().mean(3).flatten(1)[:, :2]

    return Means()


def save(folder, signal=SIGNAL, classes=("0", "1")):
    model = SmallClassifier(signal, len(classes))
    model.provenance = {"classes": list(classes)}
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    "flags,reason",
    [
        ("--reject-with nowhere", "no folder nowhere: give the folder of a trained classifier"),
        ("--reject-with {prior}", "holds a prior (pixelcnn), but a classifier is needed here"),
        ("--reject-with {colours}", "it takes images of 3×12×20, not 1×12×20: give --reject-with the folder"),
        ("--reject-with {large}", "it takes images of 1×24×20, not 1×12×20"),
        ("--reject-with {others}", "it knows the classes cat, dog, the prior 0, 1"),
        ("--reject-with {more}", "it knows the classes 0, 1, 2, the prior 0, 1"),
    ],
)
def test_a_classifier_that_does_not_fit_is_one_line(flags, reason, saved, small_run, tmp_path, run_script):
    save(tmp_path / "colours", Signal("image", 3, (12, 20)))
    save(tmp_path / "large", Signal("image", 1, (24, 20)))
    save(tmp_path / "others", classes=("cat", "dog"))
    save(tmp_path / "more", classes=("0", "1", "2"))
    places = {name: tmp_path / name for name in ("colours", "large", "others", "more")}
    flags = flags.format(saved=saved, prior=small_run / "prior", **places).split()
    result = run_script("sample", "--run", small_run, "--output", tmp_path / "s", *flags)
    assert result.code == 2 and reason in result.err.splitlines()[-1] and "Traceback" not in result.err
    assert not (tmp_path / "s").exists()


def test_a_classifier_cannot_be_trained_without_labels_or_pictures(drawn, small_run, measured, bars_file, tmp_path):
    plain = tmp_path / "plain.npz"
    np.savez(plain, np.load(bars_file)["arr_0"])
    with pytest.raises(InputError, match="classifier: it needs labels of two classes or more"):
        measured(data_root=str(plain), prior=(), num_samples=None, features="classifier")
    load(small_run / "tokenizer").save_pretrained(tmp_path / "moved")
    with pytest.raises(InputError, match=r"unknown where the images are .* give `reject_with` the folder"):
        drawn("s", tokenizer=str(tmp_path / "moved"), reject_with="classifier")
    with pytest.raises(InputError, match="`reject_with` needs `num_samples`"):
        measured(num_samples=None, features="classifier", reject_with="classifier")

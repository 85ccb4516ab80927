"""Model folders: rebuilt from what they hold, refused when something is wrong with them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_quantizers import fitting

from codegrid import VQVAE, GatedPixelCNN, Grid, InputError, Signal, load, tensors
from codegrid.model_folder import fingerprint_of, load_model
from codegrid.registry import BUILT_IN
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.tensors import digest_of, read_json, write_tensors

TINY = {"num_embeddings": 16, "embedding_dim": 4}


def build_tokenizer(seed=0, size=(8, 12), **options):
    torch.manual_seed(seed)
    sizes = fitting(options.get("quantizer", "ema"), **TINY)
    return VQVAE(**{"signal": Signal(channels=1, size=size), "hidden_channels": 8, **sizes, **options})


def build_prior(seed=0):
    torch.manual_seed(seed)
    return GatedPixelCNN((Grid((2, 3), 16),), num_classes=3, channels=8, num_layers=2)


@pytest.mark.parametrize("build", [build_tokenizer, build_prior])
def test_a_saved_model_is_rebuilt_with_no_further_argument(tmp_path, build):
    model = build()
    model.provenance = {"classes": ["a", "b", "c"]}
    model.save_pretrained(tmp_path / "m")
    loaded = type(model).from_pretrained(tmp_path / "m")
    assert loaded.config == model.config and loaded.provenance == model.provenance and not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_fingerprint_survives_save_and_load(tmp_path, quantizer):
    tokenizer = build_tokenizer(quantizer=quantizer)
    tokenizer.save_pretrained(tmp_path)
    assert VQVAE.from_pretrained(tmp_path).fingerprint() == tokenizer.fingerprint()


def test_the_fingerprint_follows_weights_and_architecture_and_not_running_counts():
    fingerprint = build_tokenizer().fingerprint()
    assert build_tokenizer().fingerprint() == fingerprint
    assert build_tokenizer(seed=1).fingerprint() != fingerprint
    assert build_tokenizer(size=(12, 8)).fingerprint() != fingerprint
    counted = build_tokenizer()
    counted.quantizer.running_hits += 1
    assert counted.fingerprint() == fingerprint
    counted.quantizer.codebook[0, 0] += 1e-6
    assert counted.fingerprint() != fingerprint


@pytest.mark.parametrize("build", [build_tokenizer, build_prior])
def test_a_model_has_float32_weights_and_one_fingerprint_whatever_the_default_precision_is(tmp_path, build):
    model = build()
    model.save_pretrained(tmp_path / "single")
    model.double().save_pretrained(tmp_path / "double")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        loaded = [load(tmp_path / name) for name in ("single", "double")]
    finally:
        torch.set_default_dtype(default)
    assert {again.fingerprint() for again in loaded} == {model.fingerprint()}
    assert all(value.dtype in (torch.float32, torch.int64) for again in loaded for value in again.state_dict().values())


@pytest.mark.parametrize("build", [build_tokenizer, build_prior])
@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_a_model_has_the_same_weights_whatever_the_default_precision_is_where_it_is_made(build, default):
    expected = build()
    torch.set_default_dtype(default)
    try:
        model = build()
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.fingerprint() == expected.fingerprint()
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


CASTS = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "double": lambda model: model.double(),
    "there and back": lambda model: model.half().float(),
    "twice": lambda model: model.bfloat16().half(),
}


@pytest.mark.parametrize("build", [build_tokenizer, build_prior])
@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_changes_no_fingerprint(build, cast):
    assert CASTS[cast](build()).fingerprint() == build().fingerprint()


def test_weights_that_change_after_a_cast_change_the_fingerprint():
    model = build_tokenizer().half()
    model.quantizer.codebook[0, 0] += 1
    assert model.fingerprint() != build_tokenizer().fingerprint()


def test_a_model_that_was_rounded_by_a_cast_is_not_saved_over_what_it_was(folder):
    model = VQVAE.from_pretrained(folder)
    with pytest.raises(InputError, match="rounded by a cast"):
        model.half().save_pretrained(folder)
    assert VQVAE.from_pretrained(folder).fingerprint() == model.fingerprint()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path, value):
    model = build_tokenizer()
    model.quantizer.codebook[3, 2] = value
    with pytest.raises(InputError, match=rf"quantizer\.codebook holds {value}"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_facts_that_are_no_numbers_are_saved_as_null(tmp_path):
    model = build_prior()
    model.provenance = {"metrics": {"psnr": float("inf")}, "history": [{"nll": float("nan")}]}
    model.save_pretrained(tmp_path)
    assert load(tmp_path).provenance == {"metrics": {"psnr": None}, "history": [{"nll": None}]}


def test_a_model_knows_its_device_and_kind(tmp_path):
    assert build_prior().device == torch.device("cpu") and build_prior().to("meta").device.type == "meta"
    build_prior().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["format"], config["kind"], config["model"]) == ("codegrid model 2", "prior", "pixelcnn")


@pytest.fixture
def folder(tmp_path):
    build_tokenizer().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("at", [0, 8, 100, 5000, -1])
def test_one_flipped_bit_of_the_weights_is_found(folder, at):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[at] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        VQVAE.from_pretrained(folder)


@pytest.mark.parametrize("field", ["config", "model", "format", "fingerprint", "provenance"])
def test_a_changed_field_of_the_config_is_found(folder, field):
    config = json.loads((folder / "config.json").read_text())
    config[field] = {"hidden_channels": 9}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        VQVAE.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\x80", b'{"sha256": 3}'])
def test_a_file_that_is_not_a_config_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        VQVAE.from_pretrained(folder)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_json_with_a_number_that_is_not_finite_is_refused(tmp_path, number):
    (tmp_path / "a.json").write_text(f'{{"a": [{number}]}}')
    with pytest.raises(InputError, match="not JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_named_with_what_it_lacks(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"incomplete: it holds no {name}; train or copy it again"):
        VQVAE.from_pretrained(folder)


@pytest.mark.parametrize("kind,words", [("", "/tokenizer or /prior$"), ("tokenizer", "/tokenizer$")])
def test_a_folder_of_a_whole_run_is_answered_with_those_of_its_models(kind, words):
    with pytest.raises(InputError, match=f"digits is the folder of a whole run: append {words}"):
        load_model("codegrid:digits", kind=kind)


def test_a_folder_whose_training_was_stopped_says_so(folder):
    (folder / "config.json").unlink()
    (folder / "state").mkdir()
    with pytest.raises(InputError, match="run the same command again"):
        VQVAE.from_pretrained(folder)


def test_a_model_with_a_part_of_a_newer_version_is_refused(folder, monkeypatch):
    without = {name: line for name, line in BUILT_IN["quantizer"].items() if name != "ema"}
    monkeypatch.setitem(BUILT_IN, "quantizer", without)
    with pytest.raises(InputError, match="cannot rebuild the model: `quantizer` 'ema'"):
        VQVAE.from_pretrained(folder)


def test_a_folder_of_another_kind_is_refused_by_name(folder):
    with pytest.raises(InputError, match=r"holds a tokenizer \(vqvae\), but a prior \(pixelcnn\) is needed"):
        GatedPixelCNN.from_pretrained(folder)
    with pytest.raises(InputError, match=r"holds a tokenizer \(vqvae\), but a prior is needed"):
        load_model(folder, kind="prior")


def test_a_model_that_is_not_registered_is_refused_by_name(folder):
    forge(folder / "config.json", lambda fields: fields.update(model="os"))
    with pytest.raises(InputError, match=r"holds a tokenizer \(os\), which is not registered.*codegrid\.register"):
        load(folder)


def test_a_folder_of_the_former_format_says_to_train_again(folder):
    forge(folder / "config.json", lambda fields: fields.update(format="codegrid model 1"))
    with pytest.raises(InputError, match=r"was made by codegrid 0\.1.*train it again"):
        load(folder)


def test_a_class_without_a_name_cannot_be_saved(tmp_path):
    class Mine(VQVAE):
        pass

    with pytest.raises(InputError, match=r"Mine has no name yet: codegrid\.register"):
        Mine(Signal(channels=1, size=(8, 12)), hidden_channels=8, **TINY).save_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["runs/mistyped", "owner/name"])
def test_a_path_that_does_not_exist_is_never_looked_for_on_the_hub(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match="no folder"):
        VQVAE.from_pretrained(name)


def test_a_hub_name_is_downloaded(monkeypatch, folder):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: (asked.append(name), folder)[1])
    assert VQVAE.from_pretrained("hf:owner/name").fingerprint() == VQVAE.from_pretrained(folder).fingerprint()
    assert asked == ["owner/name"]


def test_a_failed_download_is_one_line(monkeypatch):
    def fail(*args, **options):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match="cannot download hf:owner/name: no route"):
        VQVAE.from_pretrained("hf:owner/name")


def test_a_model_is_pushed_as_a_model_folder(monkeypatch):
    pushed = {}

    class Hub:
        def create_repo(self, repo_id, private, exist_ok):
            pushed["repo"] = repo_id

        def upload_folder(self, repo_id, folder_path):
            pushed["fingerprint"] = VQVAE.from_pretrained(folder_path).fingerprint()
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    tokenizer = build_tokenizer()
    assert tokenizer.push_to_hub("owner/name") == "https://hub/owner/name"
    assert pushed == {"repo": "owner/name", "fingerprint": tokenizer.fingerprint()}


def test_replacing_a_model_that_fails_leaves_the_old_one(folder, monkeypatch):
    before = VQVAE.from_pretrained(folder).fingerprint()

    def fill_the_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("codegrid.model_folder.write_json", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        build_tokenizer(seed=1).save_pretrained(folder)
    assert VQVAE.from_pretrained(folder).fingerprint() == before


def forge(path, change):
    """Change a config.json in place, and compute its digests again, as any stranger can."""
    fields = json.loads(path.read_text())
    checksums = fields.pop("sha256")
    change(fields)
    if fields.get("config") != json.loads(path.read_text())["config"] and isinstance(fields.get("config"), dict):
        tensors = load_file(path.parent / "model.safetensors")
        fields["fingerprint"] = fingerprint_of(fields["model"], fields["config"], tensors)
    checksums = fields.pop("sha256", checksums)
    if isinstance(checksums, dict):
        checksums["config.json"] = digest_of(fields)
    path.write_text(json.dumps({**fields, "sha256": checksums}))


MISSING = object()


@pytest.mark.parametrize("field", ["config", "provenance", "fingerprint", "format", "kind", "model"])
@pytest.mark.parametrize("value", [MISSING, None, 3, [], "x" * 100_000])
def test_a_forged_field_of_another_type_is_refused_in_a_line(folder, field, value):
    def change(fields):
        fields[field] = value
        if value is MISSING:
            del fields[field]

    forge(folder / "config.json", change)
    with pytest.raises(InputError) as caught:
        VQVAE.from_pretrained(folder)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("checksums", [MISSING, None, 3, [], {}, {"model.safetensors": 3}])
def test_a_forged_config_that_tells_no_digests_is_refused(folder, checksums):
    change = {} if checksums is MISSING else {"sha256": checksums}
    forge(folder / "config.json", lambda fields: fields.update(change) if change else fields.update(sha256=None))
    with pytest.raises(InputError):
        VQVAE.from_pretrained(folder)


HUGE = 10**12
FORGED_TOKENIZERS = [
    {"num_embeddings": HUGE}, {"num_embeddings": 17}, {"num_embeddings": 16.0}, {"num_embeddings": True},
    {"num_embeddings": 0}, {"num_embeddings": -1}, {"num_embeddings": 2**24}, {"embedding_dim": HUGE},
    {"embedding_dim": "8"}, {"hidden_channels": HUGE}, {"hidden_channels": 65536}, {"hidden_channels": 1},
    {"residual_channels": 0}, {"num_residual_blocks": 10**9}, {"num_residual_blocks": 64},
    {"num_residual_blocks": -1}, {"downsampling": 2**4000}, {"downsampling": 3}, {"downsampling": 4.0},
    {"downsampling": 8192}, {"signal": HUGE}, {"signal": {}}, {"signal": {"size": [10**9, 1]}},
    {"signal": {"channels": 1, "size": [0, 8]}}, {"signal": {"channels": 1, "size": [8]}},
    {"signal": {"channels": 1, "size": [8, 8, 8]}}, {"signal": {"channels": 1, "size": "88"}},
    {"signal": {"channels": 1, "size": ["8", "8"]}}, {"signal": {"channels": 2, "size": [8, 12]}},
    {"signal": {"channels": True, "size": [8, 12]}}, {"signal": {"channels": 3, "size": [8, 12]}},
    {"data_variance": 0}, {"data_variance": float("nan")}, {"data_variance": "1"}, {"quantizer": "__init__"},
    {"quantizer": []}, {"quantizer": "gradient", "anchors": "closest"}, {"anchors": "closest"}, {"decay": 1},
    {"decay": 0}, {"distance": "manhattan"}, {"commitment_cost": -1}, {"revival_threshold": 1}, {"kmeans_steps": -1},
    {"self": 1}, {"layers": []}, {"": 0},
]  # fmt: skip


@pytest.mark.parametrize("change", FORGED_TOKENIZERS, ids=str)
def test_a_forged_tokenizer_is_refused_before_memory_is_taken(folder, change):
    forge(folder / "config.json", lambda fields: fields["config"].update(change))
    with pytest.raises(InputError) as caught:
        VQVAE.from_pretrained(folder)
    assert len(str(caught.value)) < 700


FORGED_PRIORS = [
    {"layout": [{"shape": [2, 3], "num_embeddings": HUGE}]}, {"layout": []}, {"layout": [[2, 3]]}, {"layout": 3},
    {"layout": [{"shape": [2, 3]}]}, {"layout": [{"shape": [2, HUGE], "num_embeddings": 16}]}, {"grids": [0, 1]},
    {"channels": HUGE}, {"channels": 65536}, {"channels": 0}, {"num_layers": 10**9}, {"num_layers": 64},
    {"num_layers": 0}, {"num_layers": 3}, {"num_classes": HUGE}, {"num_classes": -1}, {"num_classes": 2},
    {"kernel": 4}, {"kernel": 10**9 + 1}, {"kernel": 1}, {"kernel": 3.0}, {"first_kernel": 99}, {"dropout": 1},
    {"dropout": "0"}, {"label_dropout": float("inf")}, {"label_dropout": 0}, {"more": 1},
]  # fmt: skip


@pytest.mark.parametrize("change", FORGED_PRIORS, ids=str)
def test_a_forged_prior_is_refused_before_memory_is_taken(tmp_path, change):
    build_prior().save_pretrained(tmp_path)
    forge(tmp_path / "config.json", lambda fields: fields["config"].update(change))
    with pytest.raises(InputError) as caught:
        GatedPixelCNN.from_pretrained(tmp_path)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("classes", ["abc", ["a", "b"], ["a", "b", 3], {"a": 1, "b": 2, "c": 3}, None])
def test_classes_must_be_a_name_for_each_class(tmp_path, classes):
    build_prior().save_pretrained(tmp_path)
    forge(tmp_path / "config.json", lambda fields: fields.update(provenance={"classes": classes}))
    with pytest.raises(InputError, match="the names of 3 classes"):
        GatedPixelCNN.from_pretrained(tmp_path)


def forge_weights(folder, change):
    """Change the tensors of a model folder, and compute the digests again."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    checksum = write_tensors(folder / "model.safetensors", tensors)
    forge(folder / "config.json", lambda fields: fields.update(sha256={"model.safetensors": checksum}))


BOOK = "quantizer.codebook"


@pytest.mark.parametrize(
    "change,reason",
    [
        (lambda tensors: tensors.pop(BOOK), BOOK),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "more"),
        (lambda tensors: tensors.update({BOOK: torch.zeros(4, 16)}), r"\[4, 16\], not \[16, 4\]"),
        (lambda tensors: tensors.update({BOOK: torch.zeros(16, 4, dtype=torch.int64)}), "int64"),
        (lambda tensors: tensors.update({BOOK: torch.zeros(16, 4)}), "fingerprint"),
        (lambda tensors: tensors.update({BOOK: torch.zeros(16, 4).bfloat16()}), "bfloat16"),
        (lambda tensors: tensors.update({BOOK: torch.full((16, 4), torch.nan)}), "codebook holds nan"),
        (lambda tensors: tensors.update({BOOK: torch.full((16, 4), 1e300, dtype=torch.float64)}), "codebook holds inf"),
    ],
)
def test_forged_weights_are_refused_by_name(folder, change, reason):
    forge_weights(folder, change)
    with pytest.raises(InputError, match=reason):
        VQVAE.from_pretrained(folder)


@pytest.mark.parametrize("check", ["sha256", "digest_of_file"])
def test_the_bytes_that_are_loaded_are_those_that_were_checked(tmp_path, check, monkeypatch):
    path, digest = tmp_path / "a.safetensors", getattr(tensors, check)
    write_tensors(path, {"a": torch.ones(2)})
    ones, checksum = path.read_bytes(), write_tensors(path, {"a": torch.zeros(2)})
    # someone replaces the file once its digest is known
    monkeypatch.setattr(tensors, check, lambda given: (digest(given), path.write_bytes(ones))[0])
    assert not tensors.read_tensors(path, checksum)["a"].any()


def test_a_config_is_neither_read_when_huge_nor_followed_into_the_deep(folder):
    path = folder / "config.json"
    for content, reason in ((b'{"a": ' + b"[" * 10**6, "not JSON"), (b'{"a": ' * 500 + b"0" + b"}" * 500, "deeper")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=reason):
            VQVAE.from_pretrained(folder)
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(InputError, match="1,099,511,627,776 bytes"):
        VQVAE.from_pretrained(folder)

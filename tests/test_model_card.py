"""The card of a model folder: it tells what the model is, goes to the hub with it, and nothing depends on it."""

import base64
import functools
import json
import re
import threading
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import draw_bars
from huggingface_hub import HfApi, ModelCard, ModelCardData
from PIL import Image
from untrained import make_pipeline

from codegrid import VQVAE, GatedPixelCNN, Grid, Signal, TwoStagePipeline, load
from codegrid.data.names import public_name
from codegrid.model_card import PNG, escape, read_picture, render_card
from codegrid.pipelines.evaluation.classifier import SmallClassifier

PICTURE = PNG + b"drawn"


def build_tokenizer(**provenance):
    torch.manual_seed(0)
    tokenizer = VQVAE(Signal(channels=1, size=(8, 12)), hidden_channels=8, num_embeddings=16, embedding_dim=4)
    tokenizer.provenance = provenance
    return tokenizer


def build_prior():
    return GatedPixelCNN((Grid((2, 3), 16),), channels=8, num_layers=2)


def build_classifier(signal=None):
    return SmallClassifier(signal or Signal(channels=1, size=(8, 12)), num_classes=2)


def card_of(model, folder, picture=b""):
    model.save_pretrained(folder, picture)
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "provenance,told", [({}, "was trained with Codegrid"), ({"imported_from": "a hub"}, "imported")]
)
def test_a_card_tells_whether_a_model_was_trained_here_or_imported(tmp_path, provenance, told):
    card = card_of(build_tokenizer(**provenance), tmp_path)
    assert told in card and ("trained with Codegrid" in card) == (not provenance)


@pytest.mark.parametrize(
    "build,task",
    [
        (build_tokenizer, None),
        (build_prior, "unconditional-image-generation"),
        (build_classifier, "image-classification"),
    ],
)
def test_the_hub_understands_the_front_of_a_card(tmp_path, build, task):
    model = build()
    card_of(model, tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert isinstance(data, ModelCardData)
    assert data.library_name == "codegrid" and data.pipeline_tag == task
    assert ("vq-vae" in data.tags) == (model.kind != "classifier")


def test_a_trained_tokenizer_shows_its_data_settings_figures_and_reconstructions(small_run):
    text = (small_run / "tokenizer" / "README.md").read_text(encoding="utf-8")
    config = json.loads((small_run / "tokenizer" / "config.json").read_text())
    assert "| data set | npz |" in text and "| steps | 30 |" in text and "2 classes: 0, 1" in text
    assert "| num\\_embeddings | 16 |" in text and config["fingerprint"] in text
    assert f"| psnr | {config['provenance']['metrics']['psnr']:.6g} |" in text
    assert f"| loss | {config['provenance']['history'][-1]['loss']:.6g} |" in text
    assert "](reconstructions.png)" in text and 'load("MODEL")' in text
    assert "codegrid export-codes --tokenizer" in text and "A VQ-VAE tokenizer" in text
    assert (small_run / "tokenizer" / "reconstructions.png").read_bytes().startswith(PNG)


def test_the_card_of_a_prior_says_how_to_sample(small_run):
    text = (small_run / "prior" / "README.md").read_text(encoding="utf-8")
    assert "samples = pipeline(16" in text and "codegrid sample --tokenizer" in text
    assert "A gated PixelCNN prior" in text
    assert "](samples.png)" not in text and "reconstructions.png" not in text and "bits\\_per\\_code" in text


FEW = {"sample": ("--num-samples", "2")}
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def run_card(text, names, run_script):
    """Run the code and the commands of a card, with these names in the place of those that it speaks of."""
    text = re.sub("|".join(names), lambda match: str(names[match[0]]), text)
    for language, block in BLOCK.findall(text):
        if language == "python":
            exec(compile(block, "README.md", "exec"), {})
        for _, command, *flags in map(str.split, block.splitlines() if block.startswith("codegrid ") else ()):
            result = run_script(command.replace("-", "_"), *flags, *FEW.get(command, ()))
            assert result.code == 0, result.err


@pytest.mark.parametrize(
    "label_dropout,grids_of_priors,place,left",
    [
        (0.1, ((0,),), "", ["samples"]),
        (0.1, ((0,),), "tokenizer", ["codes", "decoded"]),
        (0.1, ((0,),), "prior", ["completed", "drawn", "guided", "samples"]),
        (0.0, ((0,),), "prior", ["completed", "drawn", "samples"]),
        (0.1, ((0,), (1,)), "prior-1", ["completed", "drawn", "guided", "samples"]),
        (0.1, ((0,),), "classifier", ["chosen"]),
    ],
)
def test_code_and_commands_of_every_card_run(
    label_dropout, grids_of_priors, place, left, tmp_path, monkeypatch, run_script
):
    run, pictures, here = (tmp_path / name for name in ("run", "pictures", "here"))
    pipeline = make_pipeline(grids_of_priors, label_dropout)
    for prior in pipeline.priors:
        prior.provenance["layout"] = [grid.as_json() for grid in pipeline.layout]
    pipeline.save_pretrained(run)
    pictures.mkdir()
    for number, image in enumerate(draw_bars(12)[0]):
        Image.fromarray(image[..., 0]).save(pictures / f"{number}.png")
    names = {"TOKENIZER": run / "tokenizer", "PICTURES": pictures, "PICTURE": pictures / "0.png"}
    names |= {"MODEL": run / place, "COARSE": run / "prior-0", "PRIOR": run / "prior"}
    build_classifier(pipeline.tokenizer.signal).save_pretrained(run / "classifier")
    here.mkdir()
    monkeypatch.chdir(here)
    run_card((run / place / "README.md").read_text(encoding="utf-8"), names, run_script)
    assert sorted(path.name for path in here.iterdir()) == left


@pytest.mark.parametrize("name", ["pipeline", "prior", "vqvae"])  # those of our own cards' texts
def test_a_model_of_the_users_own_has_a_card_of_its_own(name):
    fields = {"kind": "prior", "model": name, "config": {}, "provenance": {}, "fingerprint": ""}
    text = render_card(fields, with_picture=False)
    assert f"# Prior {name}\n\nIt draws new grids" in text and "wo-stage image model" not in text and "1711" not in text


@pytest.mark.parametrize("change", ["remove", "edit", "empty", "folder", "binary"])
def test_a_card_that_was_changed_or_removed_hinders_nothing(tmp_path, change):
    tokenizer = build_tokenizer()
    path = tmp_path / "README.md"
    card_of(tokenizer, tmp_path)
    path.unlink()
    if change == "folder":
        path.mkdir()
    elif change != "remove":
        path.write_bytes({"edit": b"# mine", "empty": b"", "binary": b"\xff\x00"}[change])
    assert VQVAE.from_pretrained(tmp_path).fingerprint() == tokenizer.fingerprint()


def test_a_readme_that_is_no_card_is_not_replaced(tmp_path):
    (tmp_path / "README.md").write_text("# mine")
    assert card_of(build_tokenizer(), tmp_path) == "# mine"


def test_a_model_that_has_no_text_of_its_own_has_the_card_of_its_kind(tmp_path):
    card_of(build_prior(), tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    text = render_card({**fields, "model": "my-prior"}, with_picture=False)
    assert "# Prior my-prior\n" in text and "codegrid sample --tokenizer" in text and "PixelCNN" not in text
    assert "$" not in text and "- my-prior" in text


def test_the_picture_goes_with_the_model_and_not_with_the_next_one_in_its_folder(tmp_path):
    assert "](reconstructions.png)" in card_of(build_tokenizer(), tmp_path, PICTURE)
    assert read_picture(tmp_path, "tokenizer") == PICTURE
    assert "](reconstructions.png)" not in card_of(build_tokenizer(), tmp_path)
    assert read_picture(tmp_path, "tokenizer") == b""


EVIL = "<img src=x onerror=y> [a](javascript:b) | `c` \n# d \u202e http://e ![f](g)"


def test_names_from_outside_are_shown_and_not_obeyed(tmp_path):
    text = card_of(build_tokenizer(dataset=EVIL, classes=[EVIL] * 300, history=[{EVIL: EVIL}]), tmp_path)
    unescaped = re.sub(r"\\.", "", text)
    for piece in ("<img", "[a]", "# d", "`c", "\u202e", "http:", "![f"):
        assert piece not in unescaped
    assert "300 classes" in text and "and 100 more" in text and len(text) < 100_000
    assert escape("a_b|c") == r"a\_b\|c" and escape(-1.5e-7) == "-1.5e-07"


@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [None], [[]], {"a": [1]}])
def test_odd_facts_in_the_provenance_break_no_card(tmp_path, value):
    names = ("dataset", "steps", "classes", "metrics", "history")
    for name in names:
        assert card_of(build_tokenizer(**{name: value}), tmp_path).startswith("---\n")
    fields = {"kind": "prior", "model": "transformer", "config": {}, "fingerprint": ""}
    assert render_card({**fields, "provenance": {"prompts": value}}, with_picture=True).startswith("---\n")


def test_where_a_local_data_set_lies_is_not_told():
    for name, told in (("hf:/home/me/secret/birds/", "hf:birds"), ("hf:~/birds", "hf:birds"), ("mnist", "mnist"),
                       ("hf:owner/birds", "hf:owner/birds")):  # fmt: skip
        assert public_name(name) == told


def test_a_picture_that_is_a_link_is_not_shown_and_so_not_uploaded(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG + b"mine")
    card_of(build_tokenizer(), tmp_path / "model", PNG + b"theirs")
    assert read_picture(tmp_path / "model", "tokenizer") == PNG + b"theirs"
    (tmp_path / "model" / "reconstructions.png").unlink()
    (tmp_path / "model" / "reconstructions.png").symlink_to(secret)
    assert read_picture(tmp_path / "model", "tokenizer") == b""


class StandIn(BaseHTTPRequestHandler):
    """What the hub answers to an upload of small files; it keeps them in `server.files`."""

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        if self.path.endswith("/repos/create"):
            answer = {"url": f"{self.server.address}/owner/name"}
        elif "/preupload/" in self.path:
            files = json.loads(content)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" in self.path:
            for value in (json.loads(line)["value"] for line in content.splitlines() if b'"file"' in line):
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            answer = {"commitUrl": "https://huggingface.co/owner/name/commit/1", "commitOid": "1"}
        else:  # of the card's front
            answer = {"warnings": [], "errors": []}
        self.answer(answer)

    def do_GET(self):  # older clients look at the repository first
        self.answer({"id": "owner/name", "sha": "0" * 40, "siblings": []})

    def answer(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.files, server.asked, server.address = {}, [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_pushed_model_arrives_with_its_card_and_loads_again(tmp_path, monkeypatch, hub):
    monkeypatch.setattr("huggingface_hub.HfApi", functools.partial(HfApi, endpoint=hub.address, token="none"))
    card_of(build_tokenizer(), tmp_path / "here", PICTURE)
    tokenizer = load(tmp_path / "here")
    tokenizer.push_to_hub("owner/name")
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors", "reconstructions.png"]
    assert hub.files["reconstructions.png"] == PICTURE
    (tmp_path / "there").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "there" / name).write_bytes(content)
    assert load(tmp_path / "there").fingerprint() == tokenizer.fingerprint()


def test_a_pushed_pipeline_is_one_repository_that_is_loaded_again(small_run, tmp_path, monkeypatch, hub):
    monkeypatch.setattr("huggingface_hub.HfApi", functools.partial(HfApi, endpoint=hub.address, token="none"))
    load(small_run).push_to_hub("owner/name")
    asked = {}

    def download(name, allow_patterns):
        asked[name] = [path for path in sorted(hub.files) if any(fnmatch(path, one) for one in allow_patterns)]
        for path in asked[name]:
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(hub.files[path])
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    models = [f"{part}/{file}" for part in ("prior", "tokenizer") for file in ("config.json", "model.safetensors")]
    assert sorted(hub.files) == sorted([*models, *(f"{part}README.md" for part in ("", "prior/", "tokenizer/")),
                                        "tokenizer/reconstructions.png"])  # fmt: skip
    assert ModelCard(hub.files["README.md"].decode()).data.pipeline_tag == "unconditional-image-generation"
    for pipeline in (load("hf:owner/name"), TwoStagePipeline.from_pretrained("hf:owner/name")):
        assert pipeline.tokenizer.fingerprint() == load(small_run / "tokenizer").fingerprint()
        assert asked == {"owner/name": models}
    assert load("hf:owner/name/prior").fingerprint() == load(small_run / "prior").fingerprint()
    assert asked == {"owner/name": models[:2]}


def test_only_the_model_itself_is_downloaded(tmp_path, monkeypatch):
    build_tokenizer().save_pretrained(tmp_path)
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: (asked.update(options), tmp_path)[1]
    )
    VQVAE.from_pretrained("hf:owner/name")
    assert asked == {"allow_patterns": ["config.json", "model.safetensors", "tokenizer.json"]}

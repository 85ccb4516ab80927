"""Bad input ends in one line and exit code 2. `tests/test_sample_script.py` has more for sampling."""

import json
import shutil
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from bad_input import BAD
from conftest import TINY_TOKENIZER, free_port
from PIL import Image
from test_command_line import SETTINGS
from test_model_folder import forge as forge_config
from test_odd_images import png_of
from toy_pyramid import make_pyramid
from written_codes import HEADER, LAYOUTS, draw_codes, export, shard_of

from codegrid import VQVAE, InputError, Signal, TwoStagePipeline
from codegrid.pipelines.running.flags import name_of
from codegrid.pipelines.running.options import list_options
from codegrid.tensors import digest_of


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory):
    """A tokenizer of the same shape as that of `small_run`, with other weights."""
    folder = tmp_path_factory.mktemp("other") / "tokenizer"
    torch.manual_seed(1)
    sizes = {"hidden_channels": 16, "num_embeddings": 16, "embedding_dim": 8}
    VQVAE(Signal(channels=1, size=(12, 20)), **sizes).save_pretrained(folder)
    return folder


def forge_manifest(folder, place, **values):
    """Change an object of a manifest, and compute the digest again."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    place(manifest).update(values)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest_of(manifest)}))


@pytest.fixture(scope="module")
def places(small_run, other_tokenizer, bars_file, tmp_path_factory):
    """Everything that the table names, but {new}; nobody may write into it."""
    root = tmp_path_factory.mktemp("places")
    for name in ("empty", "one", "pictures", "broken", "bomb", "stopped/state", "folder.npz", "used/tokenizer"):
        (root / name).mkdir(parents=True)
    (root / "one" / "notes.txt").write_text("mine")
    (root / "used" / "tokenizer" / "notes.txt").write_text("mine")
    (root / "broken" / "broken.png").write_bytes(b"no picture")
    (root / "bomb" / "bomb.png").write_bytes(png_of(50_000, 50_000))
    for name in ("picture.png", "pictures/one.png"):
        Image.new("L", (20, 12)).save(root / name)

    codes = np.zeros((2, 3, 5), dtype=int)
    np.savez(root / "large.npz", codes=codes + 16)
    np.savez(root / "negative.npz", codes=codes - 1)
    np.savez(root / "turned.npz", codes=np.zeros((2, 5, 3), dtype=int))
    np.savez(root / "named.npz", codes=codes, labels=["cat", "dog"])
    np.savez(root / "many_labels.npz", codes=codes, labels=[0, 10**12])
    np.savez(root / "pickled.npz", np.array([{"a": 1}], dtype=object))
    np.savez(root / "black.npz", np.zeros((20, 12, 20), dtype=np.uint8))
    np.savez(root / "many_classes.npz", np.zeros((2, 12, 20), dtype=np.uint8), [0, 10**12])
    np.savez(root / "wide.npz", np.zeros((2, 1, 9000), dtype=np.uint8))
    with (root / "plain.npz").open("wb") as file:
        np.save(file, codes)

    for name, source in (("damaged", "tokenizer"), ("forged", "tokenizer"), ("forged_prior", "prior"),
                         ("nameless_prior", "prior")):  # fmt: skip
        (root / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            shutil.copy(small_run / source / file, root / name)
    for file in (root / "damaged").iterdir():
        file.write_bytes(file.read_bytes()[:-3] + b"\x00}\n")
    forge_config(root / "forged" / "config.json", lambda f: f["config"].update(num_residual_blocks=10**9))
    forge_config(root / "forged_prior" / "config.json", lambda f: f["config"].update(num_layers=10**9))
    forge_config(root / "nameless_prior" / "config.json", lambda f: f["provenance"].update(classes=["a"]))

    for name in ("forged", "damaged", "cut", "strange", "renamed", "larger"):
        shutil.copytree(small_run / "codes", root / f"{name}_codes")
    forge_manifest(root / "forged_codes", lambda m: m["shards"][0], file="../codes/codes-00000.safetensors")
    forge_manifest(root / "strange_codes", lambda m: m["header"], tokenizer_fingerprint="f" * 64)
    forge_manifest(root / "renamed_codes", lambda m: m["header"], classes=["a", "b"])
    forge_manifest(root / "larger_codes", lambda m: m["header"]["grids"][0], num_embeddings=17)
    shard = root / "damaged_codes" / "codes-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    (root / "cut_codes" / "codes-00000.safetensors").unlink()

    make_pyramid().save_pretrained(root / "pyramid")
    codes, grids = draw_codes(LAYOUTS["pyramid"]), [grid.as_json() for grid in LAYOUTS["pyramid"]]
    export(root / "pyramid_codes", replace(HEADER, grids=grids), lambda rows: shard_of(rows, codes))

    folders = ("empty", "broken", "bomb", "stopped", "used", "damaged", "forged", "forged_prior", "nameless_prior",
               "forged_codes", "damaged_codes", "cut_codes", "strange_codes", "renamed_codes",
               "larger_codes")  # fmt: skip
    arrays = ("negative", "turned", "named", "many_labels", "pickled", "black", "many_classes", "wide", "plain")
    return {
        **{name: root / name for name in folders}, **{name: root / f"{name}.npz" for name in arrays},
        "pyramid": f"--tokenizer {root}/pyramid/tokenizer --prior", "pyramid_codes": root / "pyramid_codes",
        "coarse": root / "pyramid" / "prior-0", "fine": root / "pyramid" / "prior-1", "one_picture": root / "pictures",
        "picture": root / "picture.png", "folder_npz": root / "folder.npz", "empty_but_one": root / "one",
        "too_large": root / "large.npz", "bars": bars_file, "run": small_run, "other": other_tokenizer,
        "long": "x" * 300, "data": f"--dataset npz --data-root {bars_file}", "tiny": " ".join(TINY_TOKENIZER),
        "parts": f"--tokenizer {small_run}/tokenizer --prior {small_run}/prior",
    }  # fmt: skip


@pytest.mark.parametrize("script,flags,reason", [(name, *case) for name, cases in BAD.items() for case in cases])
def test_bad_input_gets_one_line_and_exit_code_2(script, flags, reason, places, small_run, tmp_path, run_script):
    if script == "demo":
        pytest.importorskip("mlxtend")
    if script == "view":
        pytest.importorskip("gradio")
    before = {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()}
    more = ("--steps", "2") if script.startswith("train") and "--steps" not in flags else ()
    more = ("--port", free_port()) if script == "view" and "--port" not in flags else more
    result = run_script(script, *more, *flags.format(**places, new=tmp_path / "new").split())
    assert result.code == 2
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("error: ") and reason in last and "Traceback" not in result.err
    assert len(last) < 1000
    assert {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()} == before


def has_range(hint):
    """Whether a type hint says what range its values have."""
    return any(hasattr(rule, "holds") for rule in getattr(hint, "__metadata__", ())) or any(
        map(has_range, get_args(hint))
    )


@pytest.mark.parametrize("settings_type", SETTINGS, ids=name_of)
def test_every_flag_that_has_a_range_is_tried_beyond_it(settings_type):
    tried = " ".join(flags for cases in BAD.values() for flags, _ in cases)
    hints = get_type_hints(settings_type, include_extras=True)
    hints |= {option.name: option.hint for option in list_options(settings_type).values()}
    assert not [name for name in hints if has_range(hints[name]) and f"--{name.replace('_', '-')} " not in tried]


@pytest.mark.parametrize("script", BAD)
@pytest.mark.parametrize("flags,reason", [(["--outptu", "x"], "--outptu"), (["--output"], "--output")])
def test_a_flag_that_is_not_one_is_exit_code_2_and_named(script, flags, reason, run_script):
    result = run_script(script, *flags)
    assert result.code == 2 and reason in result.err and "Traceback" not in result.err


def test_a_prior_of_another_tokenizers_codes_is_refused_in_python(small_run, other_tokenizer):
    with pytest.raises(InputError, match="another tokenizer"):
        TwoStagePipeline.from_parts(other_tokenizer, small_run / "prior")

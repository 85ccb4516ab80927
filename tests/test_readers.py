"""Readers are given anything: what comes out is what was saved, or an InputError of one line.

Whole files of random bytes and JSON, and sound ones with a change; hypothesis looks for what breaks the rule.
"""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_model_folder import build_prior, build_tokenizer
from written_codes import HEADER, export, shard_of

from codegrid.data.codes import CodeDataset
from codegrid.data.npz import read_npz
from codegrid.errors import InputError
from codegrid.model_folder import fingerprint_of, load_model
from codegrid.registry import TABLES
from codegrid.tensors import digest_of

thorough = settings(
    deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

numbers = st.one_of(st.integers(), st.sampled_from([-1, 0, 1, 2, 3, 16, 2**31, 2**63, 10**12, 10**400]), st.floats())
words = st.one_of(st.text(max_size=8), st.sampled_from(["codes-00001.safetensors", "../x", "ema", "U8", "\x00"]))
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda children: st.one_of(st.lists(children, max_size=4), st.dictionaries(words, children, max_size=4)),
    max_leaves=8,
)


def places_in(value, path=()):
    """Every place in a JSON value, as a tuple of keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in items for place in places_in(child, (*path, key)))]


@st.composite
def changed_json(draw, value):
    """A copy of a JSON object in which one place holds something else, or is gone."""
    value = json.loads(json.dumps(value))
    place = draw(st.sampled_from([place for place in places_in(value) if place]))
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    if draw(st.booleans()) and draw(st.booleans()):
        del parent[place[-1]]
    else:
        parent[place[-1]] = draw(json_values)
    return value


@st.composite
def changed_bytes(draw, content):
    """Bytes with a bit flipped, a piece cut out or a piece put in."""
    at = draw(st.integers(0, len(content) - 1))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "end"]))
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    if kind == "cut":
        return content[:at] + content[at + draw(st.integers(1, 50)) :]
    return content[:at] + (draw(st.binary(min_size=1, max_size=20)) + content[at:] if kind == "insert" else b"")


class Sound:
    """A file of a sound folder, how it is read, and how its digests are made right again."""

    def __init__(self, path, read, seal):
        self.path, self.read, self.seal = path, read, seal
        self.content, self.expected = path.read_bytes(), read()

    def try_bytes(self, content):
        """Read `content` in the place of the file: what was saved, or an InputError."""
        self.path.write_bytes(content)
        try:
            assert self.read() == self.expected
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
        finally:
            self.path.write_bytes(self.content)


def read_model(folder):
    model = load_model(folder)
    return (
        TABLES[model.kind].name_of(type(model)),
        model.config,
        {name: tensor.tolist() for name, tensor in model.state_dict().items()},
    )


def seal_config(folder):
    tensors = load_file(folder / "model.safetensors")

    def seal(fields):
        if not isinstance(fields, dict):
            return fields
        fields = {name: value for name, value in fields.items() if name != "sha256" or not isinstance(value, dict)}
        if isinstance(fields.get("config"), dict) and isinstance(fields.get("fingerprint"), str):
            fields["fingerprint"] = fingerprint_of(fields.get("model"), fields["config"], tensors)
        checksum = json.loads((folder / "config.json").read_text())["sha256"]["model.safetensors"]
        return {"sha256": {"config.json": digest_of(fields), "model.safetensors": checksum}, **fields}

    return seal


def read_codes(folder):
    dataset = CodeDataset(folder)
    batch = dataset.batch(range(len(dataset)))
    tensors = [*batch.codes, *(dataset.tables()[name] for name in sorted(dataset.tables()))]
    columns = {name: column if isinstance(column, list) else column.tolist() for name, column in batch.columns.items()}
    return asdict(dataset.header), columns, [tensor.tolist() for tensor in tensors]


def seal_manifest(manifest):
    if not isinstance(manifest, dict):
        return manifest
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return {**rest, "sha256": digest_of(rest)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound file of each kind, by name."""
    files = {}
    for name, build in (("tokenizer", build_tokenizer), ("prior", build_prior)):
        folder = tmp_path_factory.mktemp("readers") / name
        build().save_pretrained(folder)

        def read(folder=folder):
            return read_model(folder)

        files[name] = Sound(folder / "config.json", read, seal_config(folder))
        files[f"{name} weights"] = Sound(folder / "model.safetensors", read, None)
    codes = tmp_path_factory.mktemp("readers") / "codes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codegrid.data.code_writer.SHARD_SIZE", 10)
        files_of = {"labels": [0, 1] * 13, "file": [f"{number}.png" for number in range(26)]}
        export(
            codes,
            replace(HEADER, columns={"file": {"kind": "text", "shape": []}}),
            lambda rows: shard_of(rows, columns=files_of),
            {"entries.0": torch.rand(300, 2)},
        )
    files["manifest"] = Sound(codes / "manifest.json", lambda: read_codes(codes), seal_manifest)
    files["shard"] = Sound(codes / "codes-00001.safetensors", lambda: read_codes(codes), None)
    files["tables"] = Sound(codes / "tables.safetensors", lambda: read_codes(codes), None)
    npz = tmp_path_factory.mktemp("readers") / "a.npz"
    np.savez_compressed(npz, codes=np.arange(30).reshape(2, 3, 5), labels=np.array([0, 1]))
    files["npz"] = Sound(npz, lambda: {name: array.tolist() for name, array in read_npz(npz).items()}, None)
    return files


BINARY = ["tokenizer", "tokenizer weights", "prior", "prior weights", "manifest", "shard", "tables", "npz"]
JSON = ["tokenizer", "prior", "manifest"]


@pytest.mark.parametrize("name", BINARY)
@given(data=st.data())
@thorough
def test_changed_bytes_are_never_taken_for_the_file(sound, name, data):
    file = sound[name]
    file.try_bytes(data.draw(st.one_of(changed_bytes(file.content), st.binary(max_size=60))))


@pytest.mark.parametrize("name", JSON)
@given(value=json_values, sealed=st.booleans())
@thorough
def test_any_json_is_refused_in_a_line(sound, name, value, sealed):
    file = sound[name]
    file.try_bytes(json.dumps(file.seal(value) if sealed else value).encode())


def agrees(says, told):
    """Whether what is read is what was told, where something was: None and missing keys stand for defaults."""
    if isinstance(told, dict):
        return all(key in says and agrees(says[key], value) for key, value in told.items())
    return told is None or says == told


@pytest.mark.parametrize("name", JSON)
@given(data=st.data())
@thorough
def test_a_stranger_who_computes_the_digests_is_taken_at_his_word_or_refused(sound, name, data):
    """What he may choose, names and rates say, is what is read; the tensors are those of the file."""
    file = sound[name]
    told = data.draw(changed_json(json.loads(file.content)))
    file.path.write_bytes(json.dumps(file.seal(told)).encode())
    try:
        what, says, tensors = file.read()
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert tensors == file.expected[2]
        assert what == told["header" if name == "manifest" else "model"]
        assert agrees(says, told.get("config", {}))
    finally:
        file.path.write_bytes(file.content)

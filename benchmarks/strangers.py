"""Untrusted files and requests: forged states and weights, claims beyond all memory, pages of other sites.

Each function provokes one fault, chosen at random, and returns what came of it: `WHOLE`, `REFUSED`, or what is wrong.
"""

import http.client
import io
import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

import codegrid.budget
from codegrid.model_folder import fingerprint_of
from codegrid.tensors import digest_of, sha256

from .children import REFUSED, WHOLE, Child, content_of, hear_signals, run, verdict
from .situations import Scene

NOT_NUMBERS = (np.nan, np.inf, -np.inf)
WRONG = (None, "x", [], {}, [None], {"a": []}, True, -1, 2**40, 0.5)
SIZES = {
    "tokenizer": ("hidden_channels", "num_embeddings", "embedding_dim", "num_residual_blocks", "downsampling"),
    "prior": ("channels", "num_layers", "kernel", "num_classes"),
}
READERS = {"tokenizer": ("export_codes", "sample"), "prior": ("sample",)}  # of a model in place of the scene's own
HUGE = (2**16, 2**24, 2**31, 2**40, 2**62)
MEMORY = 5 * 10**8  # bytes that the machine appears to have, as in a container
SECONDS = 60  # for a refusal
REQUESTS = 20  # to one viewer


def forged_states(scene: Scene) -> str:
    """Change a value of a training state to another type, or a weight to NaN or infinity, with a correct digest."""
    name = scene.choose("train_tokenizer")
    output = scene.place / "run"
    shutil.copytree(scene.artifacts / "stopped", output)
    newest = sorted((output / "state").iterdir())[-1]
    path = newest / "state.json"
    fields = json.loads(path.read_text())
    way = scene.draw.choice(("value", "weight", "pipe"))
    if way == "pipe":
        path = newest / scene.draw.choice(("state.json", "state.safetensors"))
        path.unlink()
        os.mkfifo(path)
        return scene.go_on(name, output)
    if way == "weight":
        what, fields["tensors"] = poison(newest / "state.safetensors", scene)
    else:
        what = _forge(fields, scene)
    del fields["sha256"]
    path.write_text(json.dumps({**fields, "sha256": digest_of(fields)}))
    met = scene.judge(name, output, *scene.run(name, output))
    weights = content_of(output).get("model.safetensors")
    # plausible values are accepted, and appear in the history, but must not change the weights
    if weights == scene.wholes[name][0]["model.safetensors"]:
        return WHOLE
    return met if met == REFUSED else f"{what}: {met}"


def _forge(fields: dict[str, Any], scene: Scene) -> str:
    """Replace a value by one of another type, and return which."""
    parent, key = scene.draw.choice([(parent, key) for parent, key in places_in(fields) if key != "sha256"])
    is_number = isinstance(parent[key], int | float)
    strange = [value for value in WRONG if not (is_number and isinstance(value, int | float))]
    was = parent[key]
    parent[key] = scene.draw.choice([value for value in strange if type(value) is not type(was)])
    return f"{key}: {str(parent[key])[:20]} for {str(was)[:40]}"


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Return every place in a JSON value, as its container and its key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places_in(value[key]))]


def poison(path: Path, scene: Scene) -> tuple[str, str]:
    """Put NaN or infinity into a random tensor of a file; return the tensor's name, and the file's digest."""
    tensors = load_file(path)
    name = scene.draw.choice([name for name in sorted(tensors) if tensors[name].dtype.kind == "f"])
    tensors[name].flat[scene.draw.randrange(tensors[name].size)] = scene.draw.choice(NOT_NUMBERS)
    save_file(tensors, path)
    return name, sha256(path.read_bytes())


def _read_model(scene: Scene, kind: str, change: Callable[[Path, dict[str, Any]], None], words: str) -> str:
    """Let a command read a model that was changed, with correct digests."""
    folder = scene.place / "model"
    shutil.copytree(scene.artifacts / kind, folder)
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    sums = fields.pop("sha256")
    change(folder, fields)
    sums["model.safetensors"] = sha256((folder / "model.safetensors").read_bytes())
    tensors = load_tensors(folder / "model.safetensors")
    fields["fingerprint"] = fingerprint_of(fields["model"], fields["config"], tensors)
    sums["config.json"] = digest_of(fields)
    path.write_text(json.dumps({**fields, "sha256": sums}))
    name = scene.draw.choice(READERS[kind])
    mine = str(scene.artifacts / kind)
    return _must_refuse(scene, name, [str(folder) if flag == mine else flag for flag in scene.lines[name]], words)


def _must_refuse(scene: Scene, command: str, flags: list[str], words: str = "") -> str:
    """Run a command that must refuse its input, soon and without much memory."""
    limit = scene.place / "memory.max"
    limit.write_text(str(MEMORY))

    def in_a_container() -> None:
        codegrid.budget.CONTAINER_LIMITS = (limit,)
        codegrid.budget.machine_memory.cache_clear()

    began, before = time.monotonic(), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = Child(command, [*flags, "--output", str(scene.place / "run")], scene.place / "log", in_a_container)
    met = verdict(child.wait(SECONDS), child.output(), False, words)
    if met == REFUSED and child.peak - before > MEMORY:
        return f"{command} took {child.peak - before:,} bytes: {child.output()[-200:]}"
    return met if time.monotonic() - began < SECONDS else f"{command} took over {SECONDS} s"


def weights_that_are_no_numbers(scene: Scene) -> str:
    """Put NaN or infinity into the weights of a model."""

    def change(folder: Path, fields: dict[str, Any]) -> None:
        poison(folder / "model.safetensors", scene)

    return _read_model(scene, scene.draw.choice(tuple(SIZES)), change, "must be finite")


def claims_of_a_model(scene: Scene) -> str:
    """Let a model claim a size beyond its weights."""
    kind = scene.draw.choice(tuple(SIZES))

    def change(folder: Path, fields: dict[str, Any]) -> None:
        fields["config"][scene.draw.choice(SIZES[kind])] = scene.draw.choice(HUGE)

    return _read_model(scene, kind, change, "")


def claims_of_a_file(scene: Scene) -> str:
    """Let a file claim much more than it holds."""
    name = scene.draw.choice(("hollow.npz", "packed.npz", "packed.parquet", "wide.png", "scans.jpg", "hollow codes"))
    path = scene.place / name
    data = ["--dataset", str(path), "--steps", "2"]
    if name == "hollow codes":
        shutil.copytree(scene.artifacts / "codes", path)
        os.truncate(sorted(path.glob("codes-*"))[0], 2**40)
        return _must_refuse(scene, "train_prior", ["--codes", str(path), "--steps", "2"], "are on disk")
    if name == "packed.parquet":
        run(lambda: write_parquet(path), [], scene.place / "log")  # in another process: threads would break later forks
        codes = ["--tokenizer", str(scene.artifacts / "tokenizer"), "--codes", str(path)]
        return _must_refuse(scene, "decode_codes", codes, "this machine has")
    if name.endswith(".npz"):
        hollow = name == "hollow.npz"
        np.savez_compressed(path, np.zeros((10 if hollow else MEMORY // 784 + 1, 28, 28), np.uint8))
        os.truncate(path, 2**40 if hollow else path.stat().st_size)
        return _must_refuse(scene, "train_tokenizer", data, "are on disk" if hollow else "this machine has")
    path.mkdir()
    for number in range(2):
        picture = jpeg_of(101 + scene.draw.randrange(1000)) if name == "scans.jpg" else png_of(10**4 * (2 + number))
        (path / f"{number}.{name[-3:]}").write_bytes(picture)
    return _must_refuse(scene, "train_tokenizer", data, "scans" if name == "scans.jpg" else "not a readable picture")


def write_parquet(path: Path) -> None:
    """Write a file of a few kilobytes whose codes need more memory than there is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sites = pa.array(np.zeros(49 * (MEMORY // 49 // 4), np.uint8))  # each takes a few bytes while it is read
    rows = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(sites, 7), 7)
    pq.write_table(pa.table({"codes": rows}), path, compression="zstd")


def png_of(side: int) -> bytes:
    """Return a PNG file that claims to be a square of this side in pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_of(scans: int) -> bytes:
    """Return a JPEG file that goes over its pixels this many times."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:]


def strangers_at_the_viewer(scene: Scene) -> str:
    """Send a viewer requests as pages of other sites do, and end it with a signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, flags = scene.place / "log", ["--run", str(scene.artifacts), "--port", str(port)]
    program = [sys.executable, "-X", "faulthandler", "-m", "codegrid", "view", *flags]
    with log.open("wb") as file:
        surroundings = {**os.environ, "TMPDIR": str(scene.place)}
        viewer = subprocess.Popen(
            program, stdout=file, stderr=subprocess.STDOUT, env=surroundings, preexec_fn=hear_signals
        )
    while b"in a browser" not in log.read_bytes() and viewer.poll() is None:
        time.sleep(0.05)
    wrong = [words for _ in range(REQUESTS) if (words := _ask(port, scene))] if viewer.poll() is None else ["it ended"]
    number = scene.draw.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    viewer.send_signal(number)
    try:
        code = viewer.wait(SECONDS)
    except subprocess.TimeoutExpired:
        viewer.send_signal(signal.SIGABRT)  # faulthandler prints where it hangs
        code = viewer.wait()
    wrong += [] if code == (0 if number == signal.SIGINT else 128 + number) else [f"{number.name}: exit code {code}"]
    wrong += [f"left behind: {path.name}" for path in scene.place.glob("codegrid-view-*")]
    return "; ".join([*wrong[:2], log.read_text(errors="replace")[-2000:]]) if wrong else REFUSED


def _ask(port: int, scene: Scene) -> str:
    """Send a request under a foreign name or from a foreign page; return what is wrong with the answer."""
    draw = scene.draw
    own = f"127.0.0.1:{port}"
    host = draw.choice(("evil.example", f"evil.example:{port}", f"localhost.evil.example:{port}", "10.0.0.1", ""))
    origin = draw.choice(("null", "http://evil.example", f"http://localhost:{port}", f"https://{own}0"))
    fetch = {"Sec-Fetch-Site": draw.choice(("cross-site", "same-site")), "Sec-Fetch-Mode": "cors"}
    headers = draw.choice(({"Host": host}, {"Host": own, "Origin": origin}, {"Host": own, **fetch}))
    method = draw.choice(("GET", "HEAD", "POST", "PUT", "OPTIONS"))
    path = draw.choice(("/", "/config", "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/file=/etc/hosts"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, None, headers)
    status = connection.getresponse().status
    connection.close()
    return "" if status == 403 else f"{status} for {method} {path} {headers}"


KINDS: dict[str, Callable[[Scene], str]] = {
    "forged training states": forged_states,
    "weights that are not numbers": weights_that_are_no_numbers,
    "a model's claims": claims_of_a_model,
    "claims of pictures and arrays": claims_of_a_file,
    "pages of others at the viewer": strangers_at_the_viewer,
}

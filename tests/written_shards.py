"""Tar shards of small pictures, written here, and a server that hands files out, and fails as it is told."""

import io
import tarfile
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from conftest import draw_bars
from PIL import Image


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members, **options):
    """Write a tar file of (name, content) or of `TarInfo`s without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def write_shards(folder, counts, named="shard-{:03d}.tar", classes=None):
    """Write bars into shards of so many pictures each; returns images (n, H, W, c) and labels (n,)."""
    images, labels = draw_bars(sum(counts))
    numbers = iter(range(len(images)))
    for number, count in enumerate(counts):
        members = []
        for i in (next(numbers) for _ in range(count)):
            text = str(labels[i]) if classes is None else classes[labels[i]]
            contents = {"png": as_png(images[i]), "cls": text.encode(), "txt": b"a bar"}
            members += [(f"{i:05d}.{ending}", content) for ending, content in contents.items()]
        write_tar(folder / named.format(number), members)
    return images, labels


class Served:
    """A folder behind a URL: `asked` counts what was asked for, and `faults` says how the next answers of a file fail.

    A fault is a status of HTTP; `cut`, half of the file; or `endless`, without its length.
    """

    def __init__(self, folder):
        self.folder, self.asked, self.faults, self.url = folder, Counter(), {}, ""

    def answer(self, handler):
        name = handler.path.partition("?")[0].lstrip("/")
        self.asked[name] += 1
        faults = self.faults.get(name, [])
        fault = faults.pop(0) if faults else 200
        path = self.folder / name
        if isinstance(fault, int) and (fault != 200 or not path.is_file()):
            return handler.send_error(fault if fault != 200 else 404)
        content = path.read_bytes()
        handler.send_response(200)
        if fault != "endless":
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2] if fault == "cut" else content)


@contextmanager
def serve(folder):
    """Hand out the files of a folder at `Served.url`."""
    served = Served(folder)
    answers = {"do_GET": lambda handler: served.answer(handler), "log_message": lambda *words: None}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (BaseHTTPRequestHandler,), answers))
    served.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()

"""Whom the viewer answers, what it lets be uploaded, what it leaves behind, and whether everyone can read it."""

import asyncio
import re
import signal
from contextlib import contextmanager
from functools import partial

import pytest

from codegrid.pipelines.view import View

pytest.importorskip("gradio")
from starlette.datastructures import Headers

from codegrid.pipelines.viewer import run
from codegrid.pipelines.viewer.guard import Guard, Trusted
from codegrid.pipelines.viewer.look import COLOURS, CSS, make_theme
from codegrid.pipelines.viewer.server import private_folder

OWN = {"host": "localhost:7860"}


@pytest.mark.parametrize("headers", [
    OWN, {"host": "127.0.0.1:7860"}, {"host": "[::1]:7860"}, {"host": "LOCALHOST"}, {"host": "proxy.example"},
    {**OWN, "origin": "http://localhost:7860"}, {"host": "proxy.example", "origin": "https://proxy.example"},
    {**OWN, "sec-fetch-site": "same-origin"}, {**OWN, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
])  # fmt: skip
def test_the_viewers_own_page_is_answered(headers):
    assert Trusted.of("127.0.0.1", ["proxy.example"]).refusal(Headers(headers)) is None


@pytest.mark.parametrize("headers", [
    {}, {"host": ""}, {"host": "evil.example"}, {"host": "localhost.evil.example"}, {"host": "10.0.0.1:7860"},
    {"host": "[::"}, {**OWN, "origin": "null"}, {**OWN, "origin": "http://evil.example"},
    {**OWN, "origin": "http://localhost:8888"}, {**OWN, "origin": "http://127.0.0.1:7860"},
    {**OWN, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    {**OWN, "sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
])  # fmt: skip
def test_what_another_page_asks_or_asks_by_another_name_is_refused(headers):
    assert Trusted.of("127.0.0.1").refusal(Headers(headers))


def test_a_viewer_of_the_whole_network_answers_to_addresses_but_to_no_strange_name():
    trusted = Trusted.of("0.0.0.0")
    assert trusted.refusal(Headers({"host": "10.0.0.1:7860"})) is None
    assert trusted.refusal(Headers({"host": "evil.example"}))
    assert trusted.refusal(Headers({"host": "10.0.0.1:7860", "origin": "http://evil.example"}))


def test_uploads_have_a_quota_over_all_of_them(tmp_path):
    (tmp_path / "earlier").write_bytes(b"x" * 50)
    codes = []

    async def upload(guard, size, path="/gradio_api/upload", **more):
        headers = {**OWN, **({} if size is None else {"content-length": str(size)}), **more}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": path, "headers": raw}

        async def send(message):
            codes.append(message.get("status") or message["body"].decode())

        await guard(scope, None, send)

    async def accept(scope, receive, send):
        if within:
            await upload(guard, within.pop())
        await send({"type": "http.response.start", "status": 200, "headers": []})

    guard, within = Guard(accept, Trusted.of("127.0.0.1"), tmp_path, in_all=100), []

    def ask(*sizes, **more):
        codes.clear()
        within[:] = sizes[1:]
        asyncio.run(upload(guard, sizes[0], **more))
        return codes

    assert ask(50) == [200] and ask(50, path="/gradio_api/queue/join") == [200]
    assert ask(51)[0] == 413 and "no room" in codes[1]
    assert ask(30, 30)[0] == 413 and ask(30, 20) == [200, 200]  # the second while the first is coming
    assert ask(None, **{"transfer-encoding": "chunked"})[0] == 411
    assert ask(2**27, path="/gradio_api/queue/join")[0] == 413


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_behind_when_a_signal_ends_the_viewer(monkeypatch, request, number):
    # those of a program that nohup started would be ignored, and waited for in vain
    request.addfinalizer(partial(signal.signal, number, signal.signal(number, signal.SIG_DFL)))
    folders, handlers = [], [signal.getsignal(each) for each in run.ENDING]

    @contextmanager
    def serve(settings):
        with private_folder() as folder:
            (folder / "upload.png").write_bytes(b"private")
            folders.append(folder)
            yield run.Served("http://127.0.0.1", None, folder)

    monkeypatch.setattr(run, "serve", serve)
    monkeypatch.setattr(run, "print_once", lambda line: signal.raise_signal(number))
    with pytest.raises(SystemExit) as end:
        run.view(View(run="anything"))
    assert end.value.code == (0 if number == signal.SIGINT else 128 + number) and not folders[0].exists()
    assert [signal.getsignal(each) for each in run.ENDING] == handlers


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(*colours):
    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def colour_of(name, suffix):
    theme = make_theme()
    value = getattr(theme, name + suffix)
    while value.startswith("*"):
        value = getattr(theme, f"{value[1:]}{suffix}", None) or getattr(theme, value[1:])
    return "#ffffff" if value == "white" else value


@pytest.mark.parametrize("suffix", ["", "_dark"])
@pytest.mark.parametrize("text,ground,least", [
    *[(name, ground, 4.5) for name in COLOURS if name.endswith("text_color") and "button" not in name
      for ground in ("background_fill_primary", "background_fill_secondary", "block_background_fill")],
    ("body_text_color_subdued", "background_fill_primary", 4.5),
    ("input_placeholder_color", "input_background_fill", 4.5),
    ("button_primary_text_color", "button_primary_background_fill", 4.5),
    ("button_secondary_text_color", "button_secondary_background_fill", 4.5),
    ("input_border_color", "input_background_fill", 3),
    ("slider_color", "block_background_fill", 3),
])  # fmt: skip
def test_what_is_written_stands_out_from_what_it_is_written_on(text, ground, least, suffix):
    assert contrast(colour_of(text, suffix), colour_of(ground, suffix)) >= least


def test_the_focus_stands_out_from_the_page():
    for focus, suffix in zip(re.findall(r"--focus: (#\w{6})", CSS), ("", "_dark"), strict=True):
        assert contrast(focus, colour_of("background_fill_primary", suffix)) >= 3
    assert "outline: 3px solid var(--focus)" in CSS

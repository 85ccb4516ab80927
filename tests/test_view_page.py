"""The viewer's page, served as a user is served it; no browser is needed. `make screenshots` looks at it in one."""

import http.client
import json
import re
import socket
import threading
import urllib.request
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from conftest import free_port
from untrained import make_pipeline

from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.view import View
from codegrid.stage2_prior.maskgit.network import MaskGIT

pytest.importorskip("gradio")
import gradio

from codegrid.pipelines.viewer import actions


@pytest.fixture(scope="module")
def served(small_run):
    """A viewer that runs, of a run's folder."""
    from codegrid.pipelines.viewer.run import serve

    with serve(View(run=str(small_run), port=free_port())) as served:
        yield served


@contextmanager
def serve_parts(tokenizer, pipeline, count=2, starts=None):
    """A viewer of models that are in memory: its page."""
    from codegrid.pipelines.viewer.examples import find_examples
    from codegrid.pipelines.viewer.guard import Trusted
    from codegrid.pipelines.viewer.page import build_page
    from codegrid.pipelines.viewer.server import listen, private_folder, serve_page

    port = free_port()
    with listen("127.0.0.1", port) as listener, private_folder() as folder:
        examples = find_examples(tokenizer, pipeline, None, count=count)
        page = build_page(tokenizer, pipeline, examples, "two grids", starts)
        with serve_page(page, listener, Trusted.of("127.0.0.1"), folder):
            yield page, f"http://127.0.0.1:{port}"
    assert not folder.exists()


def ask(address, path="/", method="GET", body=None, **headers):
    """Send a request with these headers, whatever they say; return the answer's status, headers and content."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read().decode(errors="replace")
    connection.close()
    return answer.status, answer.headers, content


class Tags(HTMLParser):
    """Collects the tags of a page, each with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_page_is_served_to_this_machine_alone(served):
    port = urlsplit(served.address).port
    assert served.address.startswith("http://127.0.0.1:") and not served.page.share
    own = [found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    for address in {*own} - {"127.0.0.1"}:
        with socket.socket() as other:
            other.settimeout(2)
            assert other.connect_ex((address, port)) != 0 or address.startswith("127.")


def test_the_browser_is_let_ask_no_other_host(served):
    status, headers, html = ask(served.address)
    assert status == 200
    rules = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
    # what has no rule of its own, such as fonts, pictures, frames and connections, follows the default
    assert set(rules) == {"default-src", "script-src", "form-action", "frame-ancestors", "base-uri"}
    sources = {source for rule in rules.values() for source in rule.split()}
    assert sources <= {"'self'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}
    # no policy covers connections that are made in advance, nor where a link or a refresh leads
    tags = Tags(html).found
    assert any(tag == "script" for tag, _ in tags)
    for tag, attributes in tags:
        assert not (tag == "meta" and attributes.get("http-equiv", "").lower() == "refresh")
        if tag in ("link", "a", "base"):
            assert urlsplit(attributes.get("href") or "").netloc in ("", urlsplit(served.address).netloc), attributes


@pytest.mark.parametrize("path", ["/config", "/theme.css"])
def test_every_answer_carries_the_policy(served, path):
    assert "default-src 'self'" in ask(served.address, path)[1]["content-security-policy"]


PATHS = ["/", "/config", "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/queue/data?session_hash=visitor"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", PATHS)
def test_a_page_of_another_site_is_refused_whatever_it_asks_for(served, path, method):
    preflight = {"access_control_request_method": "POST"}
    status, headers, _ = ask(served.address, path, method, origin="http://evil.example", **preflight)
    assert status == 403 and "access-control-allow-origin" not in headers
    assert ask(served.address, path, method, host="evil.example")[0] == 403


def test_a_foreign_websocket_is_refused(served):
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec_websocket_version": "13"}
    key = {"sec_websocket_key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    assert ask(served.address, "/gradio_api/queue/join", origin="http://evil.example", **upgrade, **key)[0] == 403


def upload(address, content=b"a picture"):
    body = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + content + b"\r\n--x--\r\n"
    return ask(address, "/gradio_api/upload", "POST", body, content_type="multipart/form-data; boundary=x")


def test_uploads_lie_in_a_folder_that_others_cannot_read(served):
    status, _, answer = upload(served.address)
    (path,) = json.loads(answer)
    assert status == 200 and Path(path).read_bytes() == b"a picture" and Path(path).is_relative_to(served.folder)
    assert served.folder.stat().st_mode & 0o777 == 0o700


def test_what_exceeds_the_room_for_uploads_is_refused_in_words(served, monkeypatch):
    from codegrid.pipelines.viewer import guard

    monkeypatch.setattr(guard, "AT_ONCE", 100)
    status, _, answer = upload(served.address, b"x" * 200)
    assert status == 413 and "too large" in answer


def test_the_page_makes_no_connections_in_advance():
    scripts = Path(gradio.__file__).parent.rglob("templates/frontend/**/*.js")
    assert not [path for path in scripts if re.search(rb"dns-prefetch|[\"']preconnect[\"']", path.read_bytes())]


def test_gradio_reports_nothing_to_its_makers(served):
    assert not served.page.analytics_enabled


def test_a_port_that_is_taken_is_one_line(small_run, run_script):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run_script("view", "--run", small_run, "--port", taken.getsockname()[1])
    assert result.code == 2 and "choose another --port" in result.err.strip().splitlines()[-1]


class Visitor:
    """Uses a served page as a browser does, which remembers nothing but its session."""

    def __init__(self, page, address, name="visitor"):
        self.page, self.address, self.name = page, f"{address}/gradio_api", name

    def post(self, path, sent):
        request = urllib.request.Request(
            f"{self.address}/{path}", json.dumps(sent).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def steps(self, event, name, data, about=None):
        """Trigger the action of a name by an event, and yield its outputs, or an error, each time that they change."""
        number = next(
            number
            for number, function in self.page.fns.items()
            if function.fn and function.name == name and any(event == its for _, its in function.targets)
        )
        sent = {"data": data, "fn_index": number, "session_hash": self.name}
        joined = self.post("queue/join", {**sent, "event_data": about})
        self.begun = {"session_hash": self.name, "fn_index": number, **joined}
        with urllib.request.urlopen(f"{self.address}/queue/data?session_hash={self.name}", timeout=20) as lines:
            for line in lines:
                message = json.loads(line.removeprefix(b"data:")) if line.startswith(b"data:") else {"msg": ""}
                if message["msg"] in ("process_generating", "process_completed"):
                    yield message["output"].get("data") or message["output"].get("error")
                if message["msg"] == "process_completed":
                    return

    def use(self, *event):
        return list(self.steps(*event))


@pytest.fixture(scope="module")
def two_grids():
    pipeline = make_pipeline(((0,), (1,)))
    with serve_parts(pipeline.tokenizer, pipeline) as served:
        yield served


CONTROLS = [1, 0, 1, 1, 0]  # of the untrained priors: temperature, top-k, top-p, guidance scale, seed


def test_the_parts_of_the_page_of_several_grids_and_priors_are_wired_to_its_answers(two_grids):
    visitor = Visitor(*two_grids)
    (filled,) = visitor.use("load", "fill", [])
    assert len(filled[0]) == 2 and filled[4] == 0 and filled[-1] == 0
    state = None  # stays on the server
    ((row, column, code, _),) = visitor.use("input", "choose", [state, 1])
    assert (row["value"], column["value"], code["maximum"]) == (1, 2, 15)
    before = code["value"]
    ((*_, words),) = visitor.use("input", "edit", [state, 1, 1, 2, (before + 1) % 16])
    assert "1 of 30 codes edited (grid 1: 1)" in words
    ((row, column, code, _),) = visitor.use("select", "click", [state, 1], {"index": [300, 200], "value": None})
    assert (row, column, code) == (1, 2, (before + 1) % 16)
    ((_, code, *_),) = visitor.use("click", "undo", [state, 1, 1, 2])
    assert code == before and visitor.use("input", "point", [state, 1, 1, 2])[0][0] == before
    assert visitor.use("click", "sample", [[1], 4, *CONTROLS])[-1][2] == "100% drawn"
    assert visitor.use("click", "complete", [state, 1, 4, -1, *CONTROLS])[-1][2] == "100% drawn"
    assert "Row 7" in visitor.use("input", "edit", [state, 1, 7, 2, 9])[0]
    (chosen,) = visitor.use("select", "pick", [], {"index": 1, "value": None})
    assert len(chosen) == 11 and 'alt="Input: 1"' in chosen[1]


def test_controls_that_are_left_alone_are_the_priors_own():
    pipeline = make_pipeline()
    prior = MaskGIT(pipeline.layout, num_classes=2, channels=8, num_layers=1, num_heads=2).eval()
    prior.provenance = pipeline.priors[0].provenance
    with serve_parts(pipeline.tokenizer, TwoStagePipeline(pipeline.tokenizer, prior)) as (page, address):
        (inputs,) = {tuple(function.inputs) for function in page.fns.values() if function.name == "sample"}
        labels, *values = (part.value for part in inputs)
        assert None not in values, "a browser sends 0 for a number without a value"
        assert Visitor(page, address).use("click", "sample", [labels, *values])[-1][2] == "100% drawn"


def test_one_visitor_does_not_wait_for_another(two_grids, monkeypatch):
    goes_on, original = threading.Event(), TwoStagePipeline.sample_steps

    def wait_for_the_second(self, request, rows):
        for number, progress in enumerate(original(self, request, rows)):
            yield progress
            assert request.seed != 1 or number < 5 or goes_on.wait(20)

    monkeypatch.setattr(TwoStagePipeline, "sample_steps", wait_for_the_second)
    first = Visitor(*two_grids, "first").steps("click", "sample", [[1], 4, *CONTROLS[:-1], 1])
    assert next(first)[2] == "33% drawn"
    assert Visitor(*two_grids, "second").use("click", "sample", [[1], 4, *CONTROLS])[-1][2] == "100% drawn"
    goes_on.set()
    assert list(first)[-1][2] == "100% drawn"


def triggers_of(page, *names):
    """The parts and events that trigger actions of these names."""
    return {
        target
        for function in page.fns.values()
        if function.fn and function.name in names
        for target in function.targets
    }


def cancelling(page, name):
    """The parts and events that cancel all actions of a name."""
    drawing = {number for number, function in page.fns.items() if function.fn and function.name == name}
    found = [function for function in page.fns.values() if drawing and set(function.cancels or ()) == drawing]
    return {target for function in found for target in function.targets}


def test_stop_ends_a_drawing_in_its_middle(two_grids, monkeypatch):
    stopped = threading.Event()

    def draw_for_ever(pipeline, request):
        try:
            while True:
                yield actions.Partial(torch.zeros(4, 1, 12, 20), (), 0.5, None)
        finally:
            stopped.set()

    monkeypatch.setattr(actions, "watch", draw_for_ever)
    visitor = Visitor(*two_grids)
    next(visitor.steps("click", "sample", [[1], 4, *CONTROLS]))
    visitor.post("cancel", visitor.begun)  # as the page does at a click on what cancels an event
    assert stopped.wait(20)
    page, _ = two_grids
    stops = triggers_of(page, "stop")
    assert [trigger in stops for act in ("sample", "complete") for trigger in cancelling(page, act)].count(True) == 2


def test_completions_go_when_the_picture_the_codes_or_the_rows_to_keep_change(two_grids):
    page, _ = two_grids
    changing = triggers_of(page, "pick", "upload", "edit", "undo")
    forgetting = triggers_of(page, "forget")
    (keep,) = forgetting - changing
    assert changing < forgetting and page.blocks[keep[0]].label == "Rows of codes to keep"
    assert forgetting < cancelling(page, "complete")  # what is being drawn, too


def test_every_control_of_the_page_has_a_name(two_grids):
    for part in two_grids[0].blocks.values():
        if isinstance(part, gradio.Button | gradio.UploadButton):
            assert part.value or part.label
        elif isinstance(part, gradio.components.FormComponent) and part.visible:
            assert part.label, part


def test_a_file_that_was_not_uploaded_is_not_read(small_run, served):
    forged = {"path": str(small_run / "prior" / "config.json"), "meta": {"_type": "gradio.FileData"}}
    (answer,) = Visitor(served.page, served.address).use("upload", "upload", [forged])
    assert not isinstance(answer, list) and not list(served.folder.rglob("config.json"))


def test_a_tokenizer_alone_is_looked_at_without_samples():
    with serve_parts(make_pipeline().tokenizer, None) as (page, address):
        visitor = Visitor(page, address)
        (filled,) = visitor.use("load", "fill", [])
        assert len(filled[0]) == 2 and "PSNR" in filled[-1]
        assert len(visitor.use("select", "pick", [], {"index": 1, "value": None})[0]) == 10
        assert not {"sample", "complete"} & {function.name for function in page.fns.values()}


def test_no_name_of_a_folder_or_class_breaks_the_page():
    from codegrid.pipelines.viewer.examples import Examples
    from codegrid.pipelines.viewer.page import build_page

    pipeline = make_pipeline()
    pipeline.priors[0].provenance["classes"] = ["$a$ <b>", "caf\udce9"]
    examples = Examples(torch.zeros(1, 1, 12, 20), "images of caf\udce9 *x*", names=["caf"])
    page = build_page(pipeline.tokenizer, pipeline, examples, "caf\udce9 `x`")
    sent = json.dumps(page.get_config_file(), ensure_ascii=False, default=str)
    sent.encode()  # an error where a browser could not be sent it
    assert "$a$ <b>" in sent and r"\\*x\\*" in sent

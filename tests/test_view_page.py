"""The viewer's page, served as a user is served it; no browser is needed. `make screenshots` looks at it in one."""

import json
import re
import socket
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from untrained import make_pipeline

from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.view import View

gradio = pytest.importorskip("gradio")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def served(small_run):
    """The settings of a viewer that runs, and its page."""
    from codegrid.pipelines.viewer.run import serve

    settings = View(run=str(small_run), port=free_port())
    page = serve(settings)
    yield settings, page
    page.close()


class Tags(HTMLParser):
    """Collects the tags of a page, each with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_page_is_served_to_this_machine_alone(served):
    settings, page = served
    assert settings.host == "127.0.0.1" and page.server_name == "127.0.0.1"
    assert not page.share and page.share_url is None
    own = [found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    for address in {*own} - {"127.0.0.1"}:
        with socket.socket() as other:
            other.settimeout(2)
            assert other.connect_ex((address, settings.port)) != 0 or address.startswith("127.")


def test_the_browser_is_let_ask_no_other_host(served):
    settings, _ = served
    home = f"127.0.0.1:{settings.port}"
    with urllib.request.urlopen(f"http://{home}/", timeout=20) as answer:
        html, policy = answer.read().decode(), answer.headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    # what has no rule of its own, such as fonts, pictures, frames and connections, follows the default
    assert set(rules) == {"default-src", "script-src", "form-action", "frame-ancestors", "base-uri"}
    sources = {source for rule in rules.values() for source in rule.split()}
    assert sources <= {"'self'", "'unsafe-inline'", "'wasm-unsafe-eval'", "data:", "blob:"}
    # no policy covers connections that are made in advance, nor where a link or a refresh leads
    tags = Tags(html).found
    assert any(tag == "script" for tag, _ in tags)
    for tag, attributes in tags:
        assert not (tag == "meta" and attributes.get("http-equiv", "").lower() == "refresh")
        if tag in ("link", "a", "base"):
            assert urlsplit(attributes.get("href") or "").netloc in ("", home), attributes


def test_every_answer_carries_the_policy(served):
    settings, _ = served
    for path in ("config", "theme.css"):
        with urllib.request.urlopen(f"http://127.0.0.1:{settings.port}/{path}", timeout=20) as answer:
            assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_the_page_makes_no_connections_in_advance():
    scripts = Path(gradio.__file__).parent.rglob("templates/frontend/**/*.js")
    assert not [path for path in scripts if re.search(rb"dns-prefetch|[\"']preconnect[\"']", path.read_bytes())]


def test_gradio_reports_nothing_to_its_makers(served):
    assert not served[1].analytics_enabled


def test_a_port_that_is_taken_is_one_line(small_run, run_script):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run_script("view", "--run", small_run, "--port", taken.getsockname()[1])
    assert result.code == 2 and "choose another --port" in result.err.strip().splitlines()[-1]


def test_what_is_done_on_the_page_follows_what_was_done_before(small_run):
    from codegrid.pipelines.viewer.actions import Actions, told
    from codegrid.pipelines.viewer.examples import find_examples

    pipeline = TwoStagePipeline.from_pretrained(small_run)
    actions = Actions(pipeline, find_examples(pipeline, Path(small_run), 3))
    encoded, codes, _, before, grid, row, column, code, _, _, _ = actions.pick(1)
    row, column, code = row["value"], column["value"], code["value"]
    assert code == int(codes[grid][0, row, column])
    edited, _, after = actions.edit(codes, grid, row, column, (code + 1) % 16)
    assert (edited[grid] != codes[grid]).sum() == 1 and (after != before).any()
    assert actions.point(edited, grid, row, column)[0] == (code + 1) % 16
    again, code_again, _, picture = actions.undo(encoded, grid, row, column)
    assert (again[grid] == codes[grid]).all() and code_again == code and (picture == before).all()
    assert actions.controls == ["temperature", "top_k", "top_p", "guidance_scale"]
    steps = list(actions.complete(edited, 1, 4, "1", 1.0, 0, 1.0, 1.0, 0))
    assert [progress for _, progress in steps] == ["50% drawn", "100% drawn"]
    assert len(list(actions.sample([], 4, 1.0, 0, 1.0, 1.0, None))) == 3
    with pytest.raises(gradio.Error, match="row 9"):
        told(actions.point)(codes, grid, 9, 0)
    with pytest.raises(gradio.Error, match="keep_rows"):
        next(told(actions.complete)(codes, 9, 4, "1", 1.0, 0, 1.0, 1.0, 0))


class Visitor:
    """Uses a served page as a browser does, which remembers nothing but its session."""

    def __init__(self, page):
        self.page, self.address = page, f"http://127.0.0.1:{page.server_port}/gradio_api/queue"

    def use(self, event, name, data, about=None):
        """Trigger the action of a name by an event, and return its outputs, or an error, each time that they change."""
        number = next(
            number
            for number, function in self.page.fns.items()
            if function.fn.__name__ == name and any(event == its for _, its in function.targets)
        )
        sent = {"data": data, "fn_index": number, "session_hash": "visitor", "event_data": about}
        request = urllib.request.Request(
            f"{self.address}/join", json.dumps(sent).encode(), {"content-type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=20).close()
        outputs = []
        with urllib.request.urlopen(f"{self.address}/data?session_hash=visitor", timeout=60) as lines:
            for line in lines:
                message = json.loads(line.removeprefix(b"data:")) if line.startswith(b"data:") else {"msg": ""}
                if message["msg"] in ("process_generating", "process_completed"):
                    outputs.append(message["output"].get("data") or message["output"]["error"])
                if message["msg"] == "process_completed":
                    return outputs


def test_the_parts_of_the_page_of_several_grids_and_priors_are_wired_to_its_actions(monkeypatch):
    from codegrid.pipelines.viewer.examples import find_examples
    from codegrid.pipelines.viewer.page import build_page
    from codegrid.pipelines.viewer.server import launch_page

    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    pipeline = make_pipeline(((0,), (1,)))
    page = build_page(pipeline, find_examples(pipeline, None, 2), "two grids")
    launch_page(page, "127.0.0.1", free_port())
    try:
        visitor = Visitor(page)
        (filled,) = visitor.use("load", "fill", [])
        assert len(filled[0]) == 2 and filled[5] == 0 and filled[-1] == "0"
        state = None  # stays on the server
        ((row, column, code, _),) = visitor.use("input", "choose", [state, 1])
        assert (row["value"], column["value"], code["maximum"]) == (1, 2, 15)
        before = code["value"]
        visitor.use("input", "edit", [state, 1, 1, 2, (before + 1) % 16])
        ((row, column, code, _),) = visitor.use("select", "click", [state, 1], {"index": [300, 200], "value": None})
        assert (row, column, code) == (1, 2, (before + 1) % 16)
        ((_, code, _, _),) = visitor.use("click", "undo", [state, 1, 1, 2])
        assert code == before and visitor.use("input", "point", [state, 1, 1, 2])[0][0] == before
        controls = [1, 0, 1, 1, 0]
        assert visitor.use("click", "sample", [["1"], 4, *controls])[-1][1] == "100% drawn"
        assert visitor.use("click", "complete", [state, 1, 4, "none", *controls])[-1][1] == "100% drawn"
        assert "row 7" in visitor.use("input", "edit", [state, 1, 7, 2, 9])[0]
        assert len(visitor.use("select", "pick", [], {"index": 1, "value": None})[0]) == 11
    finally:
        page.close()

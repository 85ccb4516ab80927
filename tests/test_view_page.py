"""The viewer's page, served as a user is served it; no browser is needed. `make screenshots` looks at it in one."""

import re
import socket
import urllib.request

import pytest

from codegrid.pipelines.running.use_configs import View

gradio = pytest.importorskip("gradio")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def served(small_run):
    """The settings of a viewer that runs, and its page."""
    from codegrid.pipelines.view import serve

    settings = View(run=str(small_run), port=free_port())
    page = serve(settings)
    yield settings, page
    page.close()


def test_the_page_is_served_to_this_machine_alone(served):
    settings, page = served
    assert settings.host == "127.0.0.1" and page.server_name == "127.0.0.1"
    assert not page.share and page.share_url is None
    own = [found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    for address in {*own} - {"127.0.0.1"}:
        with socket.socket() as other:
            other.settimeout(2)
            assert other.connect_ex((address, settings.port)) != 0 or address.startswith("127.")


def test_the_page_names_no_other_host_and_lets_the_browser_ask_none(served):
    settings, _ = served
    with urllib.request.urlopen(f"http://127.0.0.1:{settings.port}/", timeout=20) as answer:
        html, policy = answer.read().decode(), answer.headers["content-security-policy"]
    assert "<gradio-app" in html or "gradio_config" in html
    hosts = set(re.findall(r"https?://([^/\"'\s<>\\]+)", html))
    assert hosts <= {f"127.0.0.1:{settings.port}"}
    assert policy.startswith("default-src 'self'") and "http" not in policy


def test_addresses_of_other_hosts_are_taken_out_of_a_page():
    from codegrid.pipelines.viewer.server import without_foreign_hosts

    page = b'<a href="https://a.org/x"> "http://me:1/y" http://me:12 http://me:1.evil.org/z https://me:1'
    assert without_foreign_hosts(page, b"me:1") == b'<a href=""> "http://me:1/y"   https://me:1'


def test_gradio_reports_nothing_to_its_makers(served):
    assert not served[1].analytics_enabled


def test_a_port_that_is_taken_is_one_line(small_run, run_script):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run_script("view", "--run", small_run, "--port", taken.getsockname()[1])
    assert result.code == 2 and "choose another --port" in result.err.strip().splitlines()[-1]


def test_what_is_done_on_the_page_follows_what_was_done_before(small_run):
    from pathlib import Path

    from codegrid.pipelines import TwoStagePipeline
    from codegrid.pipelines.viewer.examples import find_examples
    from codegrid.pipelines.viewer.page_parts import Actions, told

    pipeline = TwoStagePipeline.from_pretrained(small_run)
    actions = Actions(pipeline, find_examples(pipeline, Path(small_run), 3))
    encoded, codes, _, before, row, column, code, _, _, _ = actions.pick(1)
    assert code == int(codes[0, row, column])
    edited, _, after = actions.edit(codes, row, column, (code + 1) % 16)
    assert (edited != codes).sum() == 1 and (after != before).any()
    assert actions.point(edited, row, column)[0] == (code + 1) % 16
    again, code_again, _, picture = actions.undo(encoded, row, column)
    assert (again == codes).all() and code_again == code and (picture == before).all()
    steps = list(actions.complete(edited, 1, 4, "1", 1.0, 0, 1.0, 1.0, 0))
    assert [progress for _, progress in steps] == ["2 of 3 rows of codes", "3 of 3 rows of codes"]
    assert len(list(actions.sample([], 4, 1.0, 0, 1.0, 1.0, None))) == 3
    with pytest.raises(gradio.Error, match="row 9"):
        told(actions.point)(codes, 9, 0)

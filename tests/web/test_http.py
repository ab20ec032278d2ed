"""The server as a program meets it that is not the page: other people's paths, wrong types in every place, files that are too large.

Whatever comes, no body holds a file's content, a traceback, or where the server's things lie; and an ordinary question is answered afterwards.
"""

import http.client
import json
import socket
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

import zeroline
from web.pictures import SVG, bomb, noise, sample, saved
from web.serving import LABELS, SECONDS, running

CHECKOUT = Path(zeroline.__file__).resolve().parents[2]
SECRET = "root:x:0:0"


@pytest.fixture(scope="module")
def events(server):
    return server.events()


@pytest.fixture(scope="module")
def explain(server, events):
    """The event of the button, and a question that is answered quickly."""
    usual = server.usual(events["Explain"])
    usual[5] = "gradient_x_input"
    return events["Explain"], usual


def clean(body, hostile=None):
    """No content of a file, no traceback, no place of the server's (``hostile``: the folder of a model)."""
    text = body if isinstance(body, str) else json.dumps(body) if isinstance(body, dict) else body.decode(errors="replace")
    for leak in (SECRET, "Traceback", 'File \\"', 'File "/', "site-packages", sys.prefix, *([str(hostile.parent)] if hostile else [])):
        assert leak not in text, (leak, text[:2000])
    return text


def well(server, explain):
    """An ordinary question is answered, and rightly."""
    event, usual = explain
    assert server.said(event, usual).startswith(
        '<p class="said" role="status">The logit of seven from the black baseline: f(x) - f(baseline) = 12.88'
    )


def test_the_page_is_reached_at_this_machine_alone(server):
    own = {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 9))  # nothing is sent: it only asks which address would be used
            own.add(outward.getsockname()[0])
        except OSError:
            pass
    for other in {*own, "127.0.0.2"} - {"127.0.0.1"}:
        with pytest.raises(ConnectionRefusedError), socket.create_connection((other, server.port), timeout=3):
            pass
    assert server.request("GET", "/")[0] == 200


def test_no_event_of_the_page_is_a_named_one_for_programs(server, events):
    assert json.loads(server.request("GET", "/gradio_api/info")[1]) == {"named_endpoints": {}, "unnamed_endpoints": {}}
    for event in events.values():
        for way in ("run", "api"):
            status, body = server.request(
                "POST", f"/gradio_api/{way}/{event['api_name']}", json.dumps({"data": []}), {"content-type": "application/json"}
            )
            assert status in (404, 422), body


# --- the server's files ----------------------------------------------------------------------------------------------------------


def places(hostile):
    return ("/etc/passwd", "../../etc/passwd", "../" * 12 + "etc/passwd", "file:///etc/passwd", str(hostile / "config.json"), str(hostile), str(CHECKOUT / "README.md"),
        str(CHECKOUT / "src/zeroline/zoo/samples/00.png"), "README.md", "/proc/self/environ", ".", "", "%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fetc/passwd", "//etc/passwd")  # fmt: skip


def test_no_address_gives_a_file_of_the_servers(server, hostile, explain):
    for place in places(hostile):
        for way in (
            "/gradio_api/file=",
            "/gradio_api/file/",
            "/file=",
            "/static/",
            "/assets/",
            "/svelte/",
            "/gradio_api/proxy=",
            "/gradio_api/custom_component/1/client/component/",
        ):
            status, body = server.request("GET", way + place)
            assert status != 500, (way, place)
            assert SECRET not in body.decode(errors="replace")
            assert b"model_type" not in body
            assert b"PATH=" not in body
            assert not body.startswith(b"\x89PNG")
            if status == 200:  # the page itself, for an address that comes down to it
                assert b"gradio" in body[:20_000], (way, place, body[:200])
    well(server, explain)


def test_no_file_of_the_servers_is_read_as_an_upload(server, hostile, explain):
    event, usual = explain
    for place in (*places(hostile), f"{server.address}/config", "http://127.0.0.1:9/x.png"):
        for told in ({"path": place}, {"url": place}, {"path": place, "url": place}, {"path": "x.png", "url": place}):
            for more in ({"meta": {"_type": "gradio.FileData"}}, {}):
                asked = [usual[0], {**told, **more}, *usual[2:]]
                status, ended = server.ask(event, asked)
                assert status in (200, 422)
                text = clean(ended, hostile)
                assert "The logit" not in text
    well(server, explain)


def test_an_upload_is_read_by_the_place_that_the_server_gave_it(server, explain):
    event, usual = explain
    known = server.uploaded(sample(1), "../../../tmp/x.png")
    assert Path(known["path"]).name == "x.png"
    assert ".." not in known["path"]
    said = server.said(event, [usual[0], known, *usual[2:]])
    assert "The logit of six" in said


@pytest.mark.parametrize("name", ["../../x.png", "/etc/passwd", "a\\..\\b.png", "é" * 80 + ".png", "x.html", ".png", "<b>.png", "con", "a" * 300])
def test_an_upload_is_called_what_it_likes_and_lies_where_the_server_says(server, explain, name):
    status, body = server.upload(sample(0), name)
    assert status == 200, body
    (path,) = json.loads(body)
    assert Path(path).resolve() == Path(path)
    assert Path(path).parent.parent.name == "gradio"
    assert server.request("GET", f"/gradio_api/file={path}")[0] in (200, 404)


def test_an_upload_that_holds_html_is_not_run_by_its_address(server):
    (path,) = json.loads(server.upload(b"<script>alert(1)</script>", "x.html")[1])
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", f"/gradio_api/file={path}")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert "attachment" in (answer.getheader("content-disposition") or "")


def test_an_upload_above_the_limit_is_refused_and_leaves_nothing(server, explain, hostile):
    status, body = server.upload(bytes(2**20 + 5_000), "large.png")
    assert status == 413
    assert len(body) < 500
    clean(body, hostile)
    well(server, explain)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (SVG, "no picture that is read here"),
        (bomb(12_000, 7_000), "12,000 x 7,000"),
        (sample(0)[:300], "cannot be read"),
    ],
    ids=["empty", "svg", "bomb", "cut"],
)
def test_an_upload_that_is_no_picture_is_one_sentence(server, explain, hostile, content, message):
    event, usual = explain
    said = server.said(event, [usual[0], server.uploaded(content), *usual[2:]])
    assert said.startswith('<p class="went-wrong" role="alert">')
    assert said.count("<p") == 1
    assert message in said
    clean(said, hostile)


def test_a_picture_of_every_kind_is_explained(server, explain):
    event, usual = explain
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF"):
        assert "The logit of" in server.said(event, [usual[0], server.uploaded(saved(noise(), kind), "a.txt"), *usual[2:]]), kind


# --- what is no question of the page ---------------------------------------------------------------------------------------------

NONSENSE = (
    None,
    0,
    -1,
    1e308,
    True,
    "",
    "x",
    [],
    ["x"],
    [[]],
    {},
    {"a": 1},
    {"path": "/etc/passwd"},
    "x" * 2**20,
    "\x00",
    "<img src=x onerror=alert(1)>",
    "é😀",
)


@pytest.mark.parametrize("name", ["Explain", "Compare", "Ground", "Rewrite"])
def test_any_value_in_any_place_of_a_question_is_refused_and_the_server_is_well(server, events, explain, name):
    event = events[name]
    usual = server.usual(event)
    for place in range(len(usual)):
        for number, value in enumerate(NONSENSE):
            if (place + number) % 3:
                continue  # a third of them in each place: another third in the next
            given = list(usual)
            given[2] = "folder:hostile"
            given[place] = value
            status, ended = server.ask(event, given)
            assert status in (200, 413, 422), (place, str(value)[:50])
            text = clean(ended)  # where a folder lies: see the test of it
            assert not ended.get("success") or "<img src=x" not in text
            assert len(text) < 3_000_000
    well(server, explain)


def test_any_value_for_the_other_events_is_refused_and_the_server_is_well(server, events, explain, hostile):
    for name, event in events.items():
        if name in ("Explain", "Compare", "Ground", "Rewrite"):
            continue
        usual = server.usual(event)
        for place in range(len(usual)):
            for value in NONSENSE:
                given = list(usual)
                given[place] = value
                status, ended = server.ask(event, given)
                assert status in (200, 422)
                clean(ended, hostile)
    well(server, explain)


@pytest.mark.parametrize("data", [[], [None], [None] * 50, {}, "x", None, 5, [[[]]]], ids=repr)
def test_too_few_or_too_many_values_are_refused_and_the_server_is_well(server, explain, hostile, data):
    status, ended = server.ask(explain[0], data)
    assert status in (200, 422)
    assert not ended.get("success") or "went-wrong" in json.dumps(ended)
    clean(ended, hostile)
    well(server, explain)


def test_a_model_that_is_not_offered_is_refused_before_it_is_looked_for(server, explain, hostile):
    event, usual = explain
    for model in (
        "hf:/etc",
        "hf:google/vit-base-patch16-224",
        "zoo:../x",
        "folder:../x",
        f"folder:{hostile}",
        str(hostile),
        "timm:vit_tiny_patch16_224",
    ):
        _, ended = server.ask(event, [*usual[:2], model, *usual[3:]])
        assert not ended["success"]
        assert "is not in the list of choices" in ended["output"]["error"]
        assert str(hostile.parent) not in json.dumps(ended).replace(model, "")


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b"\xff\xfe", b"{}", b'{"data": [1]}', b'{"fn_index": 0}', b'{"data": [], "fn_index": 99, "session_hash": "s"}',
    b'{"data": [], "fn_index": -1, "session_hash": "s"}', b'{"data": [], "fn_index": "x", "session_hash": 5}', b"[" * 100_000, b'{"data":' + b"[" * 5_000])  # fmt: skip
def test_what_is_no_question_is_refused_and_the_server_is_well(server, explain, hostile, body):
    for address in (
        "/gradio_api/queue/join",
        "/gradio_api/component_server",
        "/gradio_api/cancel",
        "/gradio_api/reset",
        "/gradio_api/upload",
        "/login",
    ):
        _, answer = server.request("POST", address, body, {"content-type": "application/json"})
        clean(answer, hostile)
    well(server, explain)


def test_what_gradio_has_for_developers_is_shut(server):
    for method, address in (
        ("GET", "/gradio_api/vibe-code"),
        ("POST", "/gradio_api/vibe-code"),
        ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/run-history/records"),
    ):
        body = json.dumps({"code": "print(1)", "prompt": "x", "hash": "x"}) if method == "POST" else None
        status, _ = server.request(method, address, body, {"content-type": "application/json"})
        assert status in (401, 403, 404), address


def test_no_history_of_questions_is_kept(server):
    assert server.config().get("run_history") is False
    assert server.request("GET", "/gradio_api/runs")[0] == 404


def test_another_sites_page_may_not_read_answers(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/config", headers={"Origin": "http://evil.example"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.getheader("access-control-allow-origin") in (None, "null")


def test_labels_that_are_html_are_escaped_in_an_answer(server, explain):
    event, usual = explain
    said, frame = server.ask(event, [*usual[:2], "folder:hostile", *usual[3:]])[1]["output"]["data"][:2]
    assert not any(label in said or label in frame for label in LABELS.values())
    assert 'sandbox="allow-scripts"' in frame


def test_an_error_about_a_folder_does_not_say_where_it_lies(server, explain, hostile):
    event, usual = explain
    given = [*usual[:2], "folder:hostile", usual[3], "a text", *usual[5:]]
    clean(server.said(event, given), hostile)


# --- the queue -------------------------------------------------------------------------------------------------------------------


def begun(server):
    """Until nobody waits: the question that was asked is worked on."""
    end = time.monotonic() + SECONDS
    while json.loads(server.request("GET", "/gradio_api/queue/status")[1])["queue_size"]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_full_queue_says_so_and_is_open_again_afterwards():
    with running("--max-waiting", "1", "--max-letters", "60") as small:
        event = small.events()["Explain"]
        usual = small.usual(event)  # integrated gradients at the input: some seconds
        sessions = [uuid.uuid4().hex for _ in range(5)]
        found = []
        for session in sessions:
            found.append(small.join(event, usual, session))
            if len(found) == 1:
                begun(small)
        assert [status for status, _ in found][:2] == [200, 200]
        refused = [(status, body) for status, body in found if status != 200]
        assert refused
        for status, body in refused:
            assert status == 503
            assert json.loads(body)["detail"] == "Queue is full. Max size is 1 and size is 1."
        ends = {}

        def listen(session):
            ends[session] = [one for one in small.told(session) if one["msg"] == "process_completed"]

        threads = [threading.Thread(target=listen, args=(session,)) for session in sessions[:2]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert all(ends[session][0]["success"] for session in sessions[:2])
        assert "The logit of seven" in small.said(event, usual)
        assert "Traceback" not in small.log.read_text()

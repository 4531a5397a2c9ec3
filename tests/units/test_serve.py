"""The pages of `consilium serve`: right answers, every wrong request a sentence, and nothing told of inputs."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_models import AGES, PICTURES, made_model
from PIL import Image
from starlette.types import ASGIApp

from consilium.client.data.base import Feature, Inputs
from consilium.client.served.summary import SHARES, Numbers, TrainingSummary
from consilium.common.errors import ConfigError, PortInUse
from consilium.common.model import Residuals, read_record, write_record
from consilium.common.study.features_task import FeaturesTask
from consilium.server.operations.authority import make_server_identity
from consilium.serving.serve import desk, receiving
from consilium.serving.serve.answering import Served, load_served
from consilium.serving.serve.app import build_app
from consilium.serving.serve.limits import MAX_JSON_BYTES, MAX_PARTS, MAX_PICTURES, MAX_ROWS, MAX_WAITING
from consilium.serving.serve.listening import listen, read_token
from consilium.serving.serve.recent import MOST_ROWS, Recent

HOSTS = ("localhost", "127.0.0.1", "::1")
TOKEN = "t" * 32
ROWS = [{"age": 1, "sex": "f"}, {"age": "secret", "sex": "m"}, {"age": -2, "sex": "m"}]


def app_of(folder: Path, token: str | None = None) -> ASGIApp:
    """Return the application for a model's folder."""
    return build_app(load_served(folder), hosts=HOSTS, token=token)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ASGIApp:
    """A model of tables: the logit of the second class is age + 2 [sex is m]."""
    return app_of(made_model(tmp_path_factory.mktemp("table") / "model"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ASGIApp:
    """A model of pictures of 4 x 4: the logit of the second class is the sum of the pixels less 8."""
    folder = tmp_path_factory.mktemp("pictures") / "model"
    return app_of(made_model(folder, PICTURES, weight=((1.0,) * 16,), bias=(-8.0,)))


def ask(app: ASGIApp, method: str = "POST", path: str = "/predict", **request: Any) -> httpx.Response:
    """Return the answer to one request."""

    async def sent() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8008") as client:
            return await client.request(method, path, **request)

    return asyncio.run(sent())


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """Return what the server wrote into its log."""
    return "\n".join(caplog.messages[place] for place, one in enumerate(caplog.records) if one.name != "httpx")


def png(value: int, size: int = 4) -> bytes:
    """Return a grey picture of one value."""
    file = io.BytesIO()
    Image.new("L", (size, size), value).save(file, "PNG")
    return file.getvalue()


def test_rows_are_answered_in_their_order_and_a_bad_one_has_a_reason(table: ASGIApp) -> None:
    """By hand: logits 1 and 0; the second row has no number. The answer says which model gave it."""
    answer = ask(table, json={"rows": ROWS}).json()
    first, second, third = answer["predictions"]
    assert ("1", "yes") == (first["name"], first["class"])
    assert 0.7310585786300049 == pytest.approx(first["probabilities"]["yes"], abs=1e-9)
    assert {"name": "2", "reason": "row 2, column 'age': expected a number, got text"} == second
    assert {"name": "3", "class": "no", "probabilities": {"no": 0.5, "yes": 0.5}} == third
    assert 1 == answer["unread"]
    assert ("hearts", "run-1", 3, "personal") == tuple(answer["model"][k] for k in ("study", "run", "round", "served"))
    assert ask(table, "GET", "/model").json()["digest"] == answer["model"]["digest"]


def test_rows_alone_that_cannot_be_read_have_their_reasons(table: ASGIApp) -> None:
    """A batch of nothing but bad rows is answered as any other."""
    answer = ask(table, json={"rows": ROWS[1:2]})
    assert (200, 1, ["name", "reason"]) == (
        answer.status_code,
        answer.json()["unread"],
        list(answer.json()["predictions"][0]),
    )


def test_numbers_have_bounds_where_the_model_is_calibrated(tmp_path: Path) -> None:
    """By hand: 1 * 2 + 0 in units of 10 around 50 is 70, and the calibration's width is 4."""
    folder = made_model(tmp_path / "model", AGES, weight=((1.0,),))
    assert [{"name": "1", "value": 70.0}] == ask(app_of(folder), json={"rows": [{"weight": 2}]}).json()["predictions"]
    write_record(folder, read_record(folder).model_copy(update={"calibration": Residuals(width=4, num=40)}))
    answer = ask(app_of(folder), json={"rows": [{"weight": "2"}]}).json()
    assert [{"name": "1", "value": 70.0, "low": 66.0, "high": 74.0}] == answer["predictions"]


def test_pictures_come_as_files_as_bytes_or_as_numbers_with_one_answer(pictures: ASGIApp) -> None:
    """A white picture sums to 16 in all three ways; files stand in the order of the form, a broken one in its place."""
    files = [("x", ("b.png", png(255))), ("x", ("broken.png", b"no")), ("x", ("a.png", png(0)))]
    found = ask(pictures, files=files).json()["predictions"]
    assert ["b.png", "broken.png", "a.png"] == [one["name"] for one in found]
    assert ["light", None, "dark"] == [one.get("class") for one in found]
    assert "reason" in found[1]
    single = ask(pictures, content=png(255), headers={"Content-Type": "image/png"}).json()["predictions"]
    whole = ask(pictures, json={"x": [[[255] * 4] * 4]}).json()["predictions"]
    floats = ask(pictures, json={"x": [[[1.0] * 4] * 4]}).json()["predictions"]
    assert {"picture"} == {one["name"] for one in single}
    assert [found[0]["probabilities"]] == [one["probabilities"] for one in single]
    assert single[0]["probabilities"] == whole[0]["probabilities"] == floats[0]["probabilities"]


def test_arrays_are_answered(tmp_path: Path) -> None:
    """By hand: the first number less the second is the logit; a number beyond float32 has a reason."""
    task = FeaturesTask(classes=("no", "yes"), shape=(2,))
    app = app_of(made_model(tmp_path / "model", task, weight=((1.0, -1.0),)))
    found = ask(app, json={"x": [[3, 1], [1e300, 0], [1, 3]]}).json()["predictions"]
    assert [("0", "yes"), ("1", None), ("2", "no")] == [(one["name"], one.get("class")) for one in found]
    assert 422 == ask(app, json={"x": [[1, 2, 3]]}).status_code
    assert 422 == ask(app, json={"rows": [{"a": 1}]}).status_code


PART = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n1\r\n'
FORM_TYPE = {"Content-Type": "multipart/form-data; boundary=x"}
JSON_TYPE = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("status", "words", "request_"),
    [
        (400, "no JSON", {"content": b'{"rows": [', "headers": JSON_TYPE}),
        (400, "no JSON", {"content": b"", "headers": JSON_TYPE}),
        (400, "NaN", {"content": b'{"rows": [{"age": NaN, "sex": "f"}]}', "headers": JSON_TYPE}),
        (400, "UTF-8", {"content": b"\xff\xfe\x00", "headers": JSON_TYPE}),
        (400, "too deep", {"content": b"[" * 200_000, "headers": JSON_TYPE}),
        (400, "digits", {"content": b'{"x": [' + b"9" * 5000 + b"]}", "headers": JSON_TYPE}),
        (400, "'age' twice", {"content": b'{"rows": [{"age": 1, "age": 2}]}', "headers": JSON_TYPE}),
        (400, "'rows' or 'x'", {"json": {"rows": [], "x": []}}),
        (400, "'rows' or 'x'", {"json": [1]}),
        (400, "at least one", {"json": {"rows": []}}),
        (400, "row 1 must be an object", {"json": {"rows": [1]}}),
        (400, "list or an object as 'age'", {"json": {"rows": [{"age": [1], "sex": "f"}]}}),
        (422, "no column 'sex'", {"json": {"rows": [{"age": 1}]}}),
        (422, "rows of a table", {"json": {"x": [[1, 2]]}}),
        (422, "no pictures", {"files": {"x": ("a.png", b"1")}}),
        (413, f"at most {MAX_ROWS}", {"json": {"rows": [{}] * (MAX_ROWS + 1)}}),
        (413, "lists and objects", {"content": b"[" * (MAX_PARTS + 1), "headers": JSON_TYPE}),
        (413, "longer than", {"content": b" " * (MAX_JSON_BYTES + 1), "headers": JSON_TYPE}),
        (415, "must be application/json", {"content": b'{"rows": []}', "headers": {"Content-Type": "text/plain"}}),
        (415, "must be application/json", {"content": b"{}"}),
        (415, "packed", {"content": b"{}", "headers": {**JSON_TYPE, "Content-Encoding": "gzip"}}),
        (400, "multipart", {"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data"}}),
        (400, "multipart", {"content": b"zzz", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}),
    ],
)
def test_wrong_request_is_a_sentence_with_its_status(
    table: ASGIApp, status: int, words: str, request_: dict[str, Any]
) -> None:
    """One sentence in JSON, with what was expected."""
    answer = ask(table, **request_)
    assert (status, ["error"]) == (answer.status_code, list(answer.json())), answer.text
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("status", "words", "request_"),
    [
        (422, "no rows of a table", {"json": {"rows": [{"a": 1}]}}),
        (422, "different lengths", {"json": {"x": [[1], [1, 2]]}}),
        (422, "no number", {"json": {"x": [["a"]]}}),
        (422, "no number", {"json": {"x": [10**30]}}),
        (422, "0..255", {"json": {"x": [[[256] * 4] * 4]}}),
        (422, "shape", {"json": {"x": [1, 2]}}),
        (400, "Too many files", {"files": [("x", (f"{n}.png", b"1")) for n in range(MAX_PICTURES + 1)]}),
        (400, "same file name", {"files": [("x", ("a.png", b"1")), ("x", ("../a.png", b"1"))]}),
        (400, "end is missing", {"content": PART, "headers": FORM_TYPE}),
        (400, "end is missing", {"content": PART + PART, "headers": FORM_TYPE}),
        (400, "end is missing", {"content": PART + b"--x?", "headers": FORM_TYPE}),
        (400, "damaged", {"content": PART + b"--x\r\n:", "headers": FORM_TYPE}),
        (400, "no picture file", {"data": {"x": "1"}, "files": {"y": ("", b"")}}),
    ],
)
def test_wrong_pictures_are_a_sentence_with_their_status(
    pictures: ASGIApp, status: int, words: str, request_: dict[str, Any]
) -> None:
    """The same for a model of pictures."""
    answer = ask(pictures, **request_)
    assert (status, ["error"]) == (answer.status_code, list(answer.json())), answer.text
    assert words in answer.json()["error"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rows", "x", "age", "sex", ""]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(kind=st.sampled_from(["rows", "x"]), value=JSON_VALUES)
def test_no_document_makes_the_server_fail(table: ASGIApp, pictures: ASGIApp, kind: str, value: object) -> None:
    """Whatever JSON it is, it is answered or refused, by a model of tables and one of pictures."""
    for app in (table, pictures):
        content = json.dumps({kind: value}).encode()
        assert ask(app, content=content, headers=JSON_TYPE).status_code in (200, 400, 422)


def test_error_of_ours_tells_nobody_the_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is one sentence, and the log has the kind and the place of the error without its text."""
    app = app_of(made_model(tmp_path / "model"))

    def failing(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Served, "answer", failing)
    with caplog.at_level(logging.INFO):
        answer = ask(app, json={"rows": ROWS})
    assert (500, ["error"]) == (answer.status_code, list(answer.json()))
    assert "secret" not in answer.text + logged(caplog)
    assert "error=RuntimeError" in logged(caplog)


def test_inputs_are_in_no_log_and_no_series(table: ASGIApp, caplog: pytest.LogCaptureFixture) -> None:
    """A value of a row that cannot be read, and a path that somebody made up, appear nowhere."""
    with caplog.at_level(logging.DEBUG):
        ask(table, json={"rows": ROWS})
        ask(table, "GET", "/secret")
    series = ask(table, "GET", "/metrics").text
    assert "secret" not in series + logged(caplog)
    assert 'consilium_serve_requests_total{path="other",status="404"} 1.0' in series
    assert 'consilium_serve_rows_total{outcome="unread"}' in series


def test_another_host_or_a_page_of_another_place_is_refused(table: ASGIApp) -> None:
    """A name that somebody points at this machine is not ours; a page elsewhere may not make a browser ask."""
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[::2]:8008"):
        assert 400 == ask(table, "GET", "/healthz", headers={"Host": host}).status_code, host
    for host in ("LOCALHOST:1", "[::1]:8008", "[0:0:0:0:0:0:0:1]", "127.0.0.1"):
        assert 200 == ask(table, "GET", "/healthz", headers={"Host": host}).status_code, host
    for origin in ("http://evil.example", "null"):
        assert 403 == ask(table, json={"rows": ROWS}, headers={"Origin": origin}).status_code
    assert 200 == ask(table, json={"rows": ROWS}, headers={"Origin": "http://localhost:8008"}).status_code
    allowed = ask(table, "OPTIONS", headers={"Origin": "http://localhost", "Access-Control-Request-Method": "POST"})
    assert not [name for name in allowed.headers if name.startswith("access-control")]


def test_token_is_wanted_for_everything_but_the_pulse(tmp_path: Path) -> None:
    """As a program's bearer token or a browser's password; a part of it, or none, is refused."""
    app = app_of(made_model(tmp_path / "model"), TOKEN)
    for path in ("/", "/model", "/metrics", "/openapi.json", "/nothing"):
        assert 401 == ask(app, "GET", path).status_code
    for shown in (f"Bearer {TOKEN[1:]}", "Bearer ", "Basic !", f"Bearer {TOKEN}x", TOKEN):
        refused = ask(app, json={"rows": ROWS}, headers={"Authorization": shown})
        assert 401 == refused.status_code
        assert "Bearer" in refused.headers["WWW-Authenticate"]
    assert 200 == ask(app, "GET", "/healthz").status_code
    assert 200 == ask(app, json={"rows": ROWS}, headers={"Authorization": f"Bearer {TOKEN}"}).status_code
    assert 200 == ask(app, "GET", "/", auth=("anybody", TOKEN)).status_code


def test_slow_body_is_given_up(table: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not come holds no place for longer than its time, and those who come after are answered."""
    monkeypatch.setattr(receiving, "BODY_SECONDS", 0.05)

    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    for _ in range(MAX_WAITING + 1):
        assert 408 == ask(table, content=body(), headers=JSON_TYPE).status_code
    assert 200 == ask(table, json={"rows": ROWS}).status_code


def test_too_many_at_once_are_told_to_come_again(table: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request beyond those that may wait is refused at once, and says when to come again."""
    monkeypatch.setattr(desk, "MAX_WAITING", 2)

    async def sent() -> list[httpx.Response]:
        transport = httpx.ASGITransport(table)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await asyncio.gather(*(client.post("/predict", json={"rows": ROWS}) for _ in range(4)))

    answers = asyncio.run(sent())
    assert [200, 200, 503, 503] == sorted(answer.status_code for answer in answers)
    assert {"1"} == {answer.headers["Retry-After"] for answer in answers if answer.status_code == 503}


def test_answer_that_takes_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: ASGIApp
) -> None:
    """Whoever asked is told so; the place is free again once the work has ended."""
    monkeypatch.setattr(desk, "ANSWER_SECONDS", 0.0)
    answer = ask(app_of(made_model(tmp_path / "model")), json={"rows": ROWS * 1000})
    assert 503 == answer.status_code
    assert "fewer at once" in answer.json()["error"]


def test_page_works_without_scripts_or_network(table: ASGIApp, pictures: ASGIApp) -> None:
    """A form that a browser sends is answered on the page; the policy allows one style and nothing else."""
    page = ask(table, "GET", "/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not {"<script", "http://", "https://"} & {
        word for word in ("<script", "http://", "https://") if word in page.text
    }
    assert "No medical device" in page.text
    answer = ask(table, path="/", data={"c0": "1", "c1": "f"})
    assert "<td>yes</td><td>no 26.9%, yes 73.1%</td>" in answer.text
    assert "no answer" in ask(table, path="/", data={"c0": "<b>", "c1": "f"}).text
    assert 415 == ask(table, path="/", files={"x": ("a.png", b"1")}).status_code
    shown = ask(pictures, path="/", files={"pictures": ("<i>.png", png(255))})
    assert "<td>&lt;i&gt;.png</td><td>light</td>" in shown.text


def test_model_page_says_nothing_of_the_sites_rows(table: ASGIApp) -> None:
    """What is expected and answered, and where it comes from; neither how many rows there are nor their digest."""
    told = ask(table, "GET", "/model").json()
    assert {"rows": {"age": "number", "sex": ["f", "m"]}} == told["expects"]
    assert {"classes": ["no", "yes"]} == told["answers"]
    assert not {"num_train", "data_digest", "seed"} & set(told["provenance"])
    assert "mean" not in json.dumps(told)


def test_pages_of_documentation_load_nothing_from_elsewhere(table: ASGIApp) -> None:
    """The description is there for programs; FastAPI's own pages, which load scripts, are not."""
    assert {"/predict", "/model", "/healthz", "/metrics"} == set(ask(table, "GET", "/openapi.json").json()["paths"])
    assert [404, 404, 405] == [ask(table, "GET", path).status_code for path in ("/docs", "/redoc", "/predict")]


def test_last_inputs_are_compared_with_training() -> None:
    """Ages twice as large as those of training are found, and no more rows are kept than the last ones."""
    points = tuple(float(round(100 * share)) for share in SHARES)
    counts = tuple(100 * share for share in SHARES)
    ages = Numbers(name="column 'weight'", known=100, missing=0, points=points, below=counts, up_to=counts)
    recent = Recent(TrainingSummary(task=AGES, num=100, patients=100, numbers=(ages,)))
    assert recent.drift() is None
    assert Recent(None).drift() is None
    rng = np.random.default_rng(1)

    def taken(scale: float, count: int) -> list[str]:
        x = torch.from_numpy(rng.uniform(0, 100 * scale, (count, 1)))
        recent.add(Inputs(x, ("",) * count, features=(Feature("weight", 0, 1, False),)))
        found = recent.drift()
        return [] if found is None else [one.column for one in found.findings]

    assert [] == taken(1, MOST_ROWS)
    assert ["column 'weight'"] == taken(2, MOST_ROWS)
    assert MOST_ROWS == len(recent)


def test_other_machines_need_a_token_and_a_certificate(tmp_path: Path) -> None:
    """Loopback needs nothing; elsewhere the sentence says what is missing and how it is made."""
    make_server_identity(tmp_path, hosts=["ai.example.org", "127.0.0.2"])
    certificate, key, token = tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    opened = listen("127.0.0.2:0", hosts=["ai.example.org"])
    opened.socket.close()
    assert (*HOSTS, "ai.example.org", "127.0.0.2") == opened.hosts
    lacking: list[dict[str, Any]] = [{}, {"token_file": token}, {"certificate": certificate, "key": key}]
    for parts in lacking:
        with pytest.raises(ConfigError, match="openssl rand"):
            listen("0.0.0.0:0", **parts)
    opened = listen("0.0.0.0:0", token_file=token, certificate=certificate, key=key)
    with opened.socket:
        assert TOKEN == opened.token
        assert opened.tls is not None
        assert {*HOSTS, "ai.example.org", "127.0.0.2"} == set(opened.hosts)
        port = opened.socket.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port}"):
            listen(f"127.0.0.1:{port}")


def test_wrong_files_for_listening_are_sentences(tmp_path: Path) -> None:
    """A token or key that others can read, a short token, half of TLS, a key of another certificate."""
    make_server_identity(tmp_path / "one", hosts=["localhost"])
    make_server_identity(tmp_path / "two", hosts=["localhost"])
    certificate, key = tmp_path / "one" / "server.pem", tmp_path / "two" / "server.key"
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(token)
    token.chmod(0o600)
    assert TOKEN == read_token(token)
    for text in ("short", "two words " * 5, ""):
        token.write_text(text)
        with pytest.raises(ConfigError, match="32 to 512"):
            read_token(token)
    for path, words in ((tmp_path / "none", "No such file"), (tmp_path, "is no file")):
        with pytest.raises(ConfigError, match=words):
            read_token(path)
    for parts, words in (
        ((certificate, None), "--key is missing"),
        ((None, key), "--certificate is missing"),
        ((certificate, key), "not of each other"),
        ((tmp_path / "none", key), "No such file"),
    ):
        with pytest.raises(ConfigError, match=words):
            listen("127.0.0.1:0", certificate=parts[0], key=parts[1])
    with pytest.raises(ConfigError, match="without a port"):
        listen("127.0.0.1:0", hosts=["ai.example.org:443"])
    with pytest.raises(ConfigError, match="must be host:port"):
        listen("8008")

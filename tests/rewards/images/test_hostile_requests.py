"""Requests that ask the reward server of examples/reward_server for too much, or for ever."""

import asyncio
import base64
import contextlib
import functools
import io
import json
import pickle
import socket
import struct
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from cpu_time import least_cpu_seconds
from example_modules import load_example
from example_server import reward_server
from image_helpers import FILE
from PIL import Image

JSON, PICKLE = "application/json", "application/octet-stream"


@pytest.fixture(scope="module")
def example():
    """The module examples/reward_server/server.py."""
    return load_example("server", "reward_server")


def png(width=8, height=8, level=0):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (level, level, level)).save(buffer, format="PNG")
    return buffer.getvalue()


def coded(message, as_json):
    if not as_json:
        return pickle.dumps(message)
    return json.dumps(message | {"images": [base64.b64encode(i).decode() for i in message["images"]]}).encode()


@pytest.mark.parametrize("as_json", [True, False])
def test_pixels_are_counted_over_the_whole_request_before_any_is_decoded(example, as_json, monkeypatch):
    limits = replace(example.Limits(), pixels=4 * 64)
    assert len(example.read_samples(coded({"images": [png()] * 4}, as_json), as_json, limits)) == 4
    monkeypatch.setattr(example, "read_image", lambda data: pytest.fail("decoded"))
    with pytest.raises(example.BadRequest, match="320 pixels together"):
        example.read_samples(coded({"images": [png()] * 5}, as_json), as_json, limits)


def test_twelve_references_to_one_large_image_are_refused(example):
    buffer = io.BytesIO()
    Image.new("1", (8192, 8192)).save(buffer, format="PNG")
    large = buffer.getvalue()
    assert len(large) < 300_000
    with pytest.raises(example.BadRequest, match="pixels"):
        example.read_samples(pickle.dumps({"images": [large] * 12}), False)


def test_the_number_of_images_is_bounded(example):
    limits = replace(example.Limits(), images=3)
    with pytest.raises(example.BadRequest, match="4 images"):
        example.read_samples(coded({"images": [png()] * 4}, False), False, limits)


def laughs(depth=60, width=2):
    """A list of lists of lists, each shared: small as a pickle, width^depth strings to whoever walks through it."""
    value = ["ha"]
    for _ in range(depth):
        value = [value] * width
    return value


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    "prompts", [5, "a", {"a": 1}, [5], [None], [["a"]], [{"a": "b"}], ["a", "b"]], ids=lambda value: repr(value)
)
def test_a_prompt_must_be_text(example, as_json, prompts):
    with pytest.raises(example.BadRequest, match="prompts"):
        example.read_samples(coded({"images": [png()], "prompts": prompts}, as_json), as_json)


def test_shared_lists_are_not_walked_through(example):
    for key in ("prompts", "meta_datas"):  # to walk through one takes for ever
        for value in (laughs(), [laughs()], [{"x": laughs()}]):
            with pytest.raises(example.BadRequest, match=key):
                example.read_samples(pickle.dumps({"images": [png()], key: value}), False)


def test_descriptions_of_usual_size_and_arrays_of_prompts_are_read(example):
    include = [{"class": "bench", "count": 1, "position": [["left", 0]]}] * 20
    message = {"images": [png()] * 2, "prompts": np.array(["a", "b"]), "meta_datas": [{"include": include}] * 2}
    found = example.read_samples(pickle.dumps(message), False)
    assert [sample.prompt for sample in found] == ["a", "b"] and found[1].metadata["include"] == include


@pytest.mark.parametrize(
    ("body", "as_json"),
    [
        (b"[" * 200_000, True),
        (b'{"images": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", True),
        (b'{"images": ' + b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"}", True),
        (b'{"images": [' + b"[]," * 2_000_000 + b"[]]}", True),
        (b'{"images": 5}', True),
        (b'{"images": ["\xff"]}', True),
        (b"\x80\x02}(" + b")" + b"2\x86" * 40 + b"K\x01u.", False),
        (b"\x80\x02}(" + b")" + b"\x85" * 1_000_000 + b"K\x01u.", False),
        (b"\x80\x02Nr" + struct.pack("<I", 2**27) + b".", False),
    ],
    ids=range(9),
)
def test_deep_and_long_bodies_are_bad_requests(example, body, as_json):
    def refused():
        with pytest.raises(example.BadRequest):
            example.read_samples(body, as_json)

    assert least_cpu_seconds(refused, 5) < 5


class Stream:
    """A request whose body comes in parts, and never ends where `hangs`."""

    def __init__(self, *parts, hangs=False):
        self.parts, self.hangs = parts, hangs

    async def stream(self):
        for part in self.parts:
            yield part
        if self.hangs:
            await asyncio.sleep(60)


def test_all_bodies_and_all_pixels_under_way_are_bounded_and_given_back(example):
    body = coded({"images": [png()]}, False)
    limits = replace(example.Limits(), seconds=0.3, request_bytes=2000, all_bytes=3000, all_pixels=64)

    async def status(load, *parts, hangs=False):
        try:
            load.release(await load.receive(Stream(*parts, hangs=hangs), False))
        except example.Refused as refused:
            return refused.status
        return 200

    async def go():
        load = example.Load(limits)
        assert await status(load, body) == 200
        assert await status(load, b"x" * 2001) == 413
        assert await asyncio.gather(*(status(load, b"x" * 1500, hangs=True) for _ in range(3))) == [408, 408, 503]
        samples = [await load.receive(Stream(body), False) for _ in range(2)]
        assert await status(load, body) == 503
        for each in samples:
            load.release(each)
        assert await status(load, body) == 200
        assert (load.bytes, load.pixels) == (0, 0)

    asyncio.run(go())


def test_a_server_of_json_alone_refuses_pickles(example):
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    worker = example.ScorerWorker(f"{FILE}:BrightnessScorer", {}, max_batch=4, max_wait_s=0)
    with TestClient(example.make_app(worker, json_only=True)) as client:
        assert client.get("/health").json()["formats"] == ["json"]
        body = {"images": [png(level=255)]}
        assert client.post("/", content=coded(body, False), headers={"Content-Type": PICKLE}).status_code == 415
        answer = client.post("/", content=coded(body, True), headers={"Content-Type": JSON})
        assert answer.json()["scores"] == [1.0]


@contextlib.contextmanager
def running_server(*arguments):
    """examples/reward_server with a scorer of brightness; gives its port, and must be alive at the end."""
    with reward_server("--scorer", f"{FILE}:BrightnessScorer", *arguments) as (url, process):
        yield int(url.rpartition(":")[2])
        assert process.poll() is None, "the server ended"


def post(port, body, kind=PICKLE):
    request = urllib.request.Request(f"http://127.0.0.1:{port}", data=body, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


HALVES = {
    "no byte": b"",
    "half a header": b"POST / HTTP/1.1\r\nHost: a\r\nContent-",
    "half a body": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf",
    "half a body elsewhere": b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf",
    "half a second request": b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost",
}


def test_half_sent_requests_are_ended_and_do_not_keep_others_waiting():
    with running_server("--request-seconds", "1.5") as port:
        waiting = {name: socket.create_connection(("127.0.0.1", port), timeout=20) for name in HALVES}
        for name, connection in waiting.items():
            connection.sendall(HALVES[name])
        assert post(port, coded({"images": [png()]}, False)) == 200
        assert post(port, b"[" * 100_000, JSON) == 400
        assert post(port, b"\x80\x02}(" + b")" + b"2\x86" * 40 + b"K\x01u.") == 400
        answers = {}
        for name, connection in waiting.items():
            with connection:
                answers[name] = read_to_the_end(connection)
        assert b" 408 " in answers["half a body"] and answers["no byte"] == answers["half a header"] == b""
        many = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(600)]
        assert sum(ended(connection) for connection in many) >= 80
        for connection in many:
            connection.close()
        assert post(port, coded({"images": [png()]}, False)) == 200


def read_to_the_end(connection):
    return b"".join(iter(functools.partial(connection.recv, 65536), b""))


def ended(connection):
    """Whether the server has closed the connection at once."""
    connection.settimeout(0.002)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True

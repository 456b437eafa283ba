"""Servers that lie to the remote scorer: where the key goes, how long it waits, and which errors it gives."""

import asyncio
import json
import pickle
import socket
import threading

import pytest
from cpu_time import least_cpu_seconds
from image_helpers import sample

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.rewards.images import ScorerUnavailable, get_scorer
from maskgrpo_plugin.rewards.images.reward_server import RemoteOptions, probe
from maskgrpo_plugin.rewards.images.scorers.remote import FINAL_SCORE, make_remote


class RawServer:
    """Answers each connection with what `answer(connection, request)` sends, then closes it."""

    def __init__(self, answer):
        self.answer, self.requests, self.ended = answer, [], threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection:
            request = b""
            while b"\r\n\r\n" not in request:
                part = connection.recv(65536)
                if not part:
                    return
                request += part
            self.requests.append(request)
            head, _, body = request.partition(b"\r\n\r\n")
            length = next((int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), 0)
            while len(body) < length:
                body += connection.recv(65536)
            try:
                self.answer(connection, request)
            except OSError:
                pass

    def close(self):
        self.ended.set()
        self.socket.close()


@pytest.fixture
def raw():
    servers = []

    def start(answer):
        servers.append(RawServer(answer if callable(answer) else lambda connection, _: connection.sendall(answer)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def http_answer(body, kind="application/json", status="200 OK"):
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("protocol", ["scores", "unifiedreward_chat"])
def test_a_key_does_not_follow_a_redirect(raw, monkeypatch, status, protocol):
    monkeypatch.setenv("REWARD_KEY", "secret")
    other = raw(http_answer(b"{}"))
    redirect = f"HTTP/1.1 {status}\r\nLocation: {other.url}/health\r\nContent-Length: 0\r\n\r\n".encode()
    server = raw(redirect)
    assert probe(RemoteOptions(server.url, protocol=protocol, api_key_env="REWARD_KEY")) == ("pickle",)
    assert b"Bearer secret" in server.requests[0] and other.requests == []
    with pytest.raises(ScorerUnavailable, match="HTTP 30"):
        options = {"url": server.url, "protocol": protocol, "api_key_env": "REWARD_KEY", "retries": 0}
        asyncio.run(make_remote(**options).score([sample()]))
    assert other.requests == []


def drip(server, first):
    """Sends `first`, then a byte every 0.1 s."""

    def answer(connection, _):
        connection.sendall(first)
        while not server[0].ended.wait(0.1):
            connection.sendall(b"x")

    return answer


@pytest.mark.parametrize(
    "first", [b"HTTP/1.1 200 O", b"HTTP/1.1 200 OK\r\nA: ", http_answer(b"").replace(b": 0", b": 9999")]
)
def test_the_time_to_say_that_it_is_there_is_a_whole(raw, first):
    server = []
    server.append(raw(drip(server, first)))
    with pytest.raises(ScorerUnavailable, match="health_timeout_s"):  # the server never ends its answer
        probe(RemoteOptions(server[0].url, health_timeout_s=0.5))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff nonsense\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        http_answer(b"[" * 60_000),
        http_answer(b'{"formats": 5}'),
        http_answer(b'{"formats": [["json"], {}]}'),
        http_answer(b'{"formats": "json"}'),
        http_answer(b"\xff\xfe"),
    ],
    ids=range(13),
)
def test_a_strange_answer_at_the_start_is_a_plain_client_or_the_scorers_own_error(raw, answer):
    server = raw(answer)
    try:
        assert probe(RemoteOptions(server.url, health_timeout_s=5)) == ("pickle",)
    except ScorerUnavailable:
        with pytest.raises(OptionError, match="no reward server answers there"):
            get_scorer("remote").check({"url": server.url, "health_timeout_s": 5})


@pytest.mark.parametrize("url", ["http://[::1", "http://a:99999", "http://a:x", "http://a b", "http://a\n", 5, None])
def test_a_url_that_is_none_is_a_wrong_option(url):
    with pytest.raises(OptionError, match=r"^url=.*write http://host:port"):
        RemoteOptions(url)


def test_a_password_in_the_url_is_refused_and_not_repeated():
    with pytest.raises(OptionError, match="api_key_env") as caught:
        RemoteOptions("http://user:hunter2@host")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b'{"scores": [' + b"9" * 400 + b"]}",
        b'{"scores": ' + b"[" * 100_000,
        b'{"scores": [[[1]]]}',
        b'{"scores": [{}]}',
        b'{"scores": 1e999}',
        b"\xff\xfe\x00",
        b"",
    ],
    ids=range(7),
)
@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream"])
def test_an_answer_that_makes_no_sense_is_the_scorers_own_error(raw, body, kind):
    scorer = make_remote(url=raw(http_answer(body, kind)).url, retries=0)
    with pytest.raises(ScorerUnavailable):
        asyncio.run(scorer.score([sample()]))


def test_a_pickle_is_read_only_where_one_was_sent(raw):
    answer = raw(http_answer(pickle.dumps({"scores": [0.5]}), "application/octet-stream"))
    assert asyncio.run(make_remote(url=answer.url, format="pickle").score([sample()])) == [0.5]
    with pytest.raises(ScorerUnavailable, match="unreadable"):
        asyncio.run(make_remote(url=answer.url, format="json").score([sample()]))


@pytest.mark.parametrize("value", [10**400, [10**400], [[1.0], [2.0]], {"a": 1}, b"1", "1" * 10_000])
def test_a_pickled_answer_without_numbers_is_the_scorers_own_error(raw, value):
    answer = http_answer(pickle.dumps({"scores": [value]}), "application/octet-stream")
    with pytest.raises(ScorerUnavailable) as caught:
        asyncio.run(make_remote(url=raw(answer).url, retries=0).score([sample()]))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", [5, ["Final Score: 3"], {"text": "x"}, None])
def test_a_chat_answer_that_is_no_text_has_no_score(raw, content):
    body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
    scorer = make_remote(url=raw(http_answer(body)).url, protocol="unifiedreward_chat", retries=0)
    (value,) = asyncio.run(scorer.score([sample()]))
    assert value != value


def test_a_deep_chat_answer_is_the_scorers_own_error(raw):
    scorer = make_remote(url=raw(http_answer(b"[" * 100_000)).url, protocol="unifiedreward_chat", retries=0)
    with pytest.raises(ScorerUnavailable, match="no chat completion"):
        asyncio.run(scorer.score([sample()]))


def test_the_score_is_found_in_time_linear_in_the_answer():
    for text in ("Final Score: 1." + "1" * 300_000 + ".1", "Final Score:" + " " * 300_000, "Final Score:" * 30_000):
        assert FINAL_SCORE.search(text) is None
        assert least_cpu_seconds(lambda text=text: FINAL_SCORE.search(text), 5) < 5

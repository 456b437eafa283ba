"""Remote scorers against real servers on loopback: the protocol, time-outs, retries, and answers that are refused."""

import asyncio
import contextlib
import http.server
import io
import json
import os
import pickle
import socket
import threading
import time

import numpy as np
import pytest
from image_helpers import sample
from PIL import Image

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.rewards.images import ScorerUnavailable, build_scorer, get_scorer
from maskgrpo_plugin.rewards.images.scorers.remote import FINAL_SCORE, backoff, make_remote


class Server:
    """An HTTP server whose answers a test decides: `reply(path, headers, body) -> (status, content type, body)`.

    `GET` answers 405, as the published servers do, unless `health` is set.
    """

    def __init__(self, reply, health=None):
        self.requests, self.reply, self.health = [], reply, health
        self.running, self.most, self.lock = 0, 0, threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send(*(outer.health or (405, "text/plain", b"")))

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with outer.lock:
                    outer.requests.append((self.path, dict(self.headers), body))
                    outer.running += 1
                    outer.most = max(outer.most, outer.running)
                try:
                    answer = outer.reply(self.path, self.headers, body)
                finally:
                    with outer.lock:  # before the client has its answer, and asks again
                        outer.running -= 1
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send(*answer)

            def send(self, status, kind, body):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def serve():
    """Start servers that end with the test."""
    servers = []

    def start(reply, health=None):
        servers.append(Server(reply, health))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


def pickled(answer):
    return lambda *_: (200, "application/octet-stream", pickle.dumps(answer))


def ask(scorer, *samples):
    return asyncio.run(scorer.score(list(samples)))


def remote(server, **options):
    return make_remote(url=server.url, **{"backoff_s": 0.01, "timeout_s": 5} | options)


def test_the_published_protocol(serve):
    server = serve(pickled({"scores": [5.0, 2.5]}))
    found = ask(remote(server, protocol="hpsv3"), sample(0, "a cat"), sample(255, "a dog", size=(16, 24)))
    assert found == [1.0, 0.5]  # divided by 5
    ((path, headers, body),) = server.requests
    message = pickle.loads(body)
    assert path in ("", "/") and headers["Content-Type"] == "application/octet-stream"
    assert message.keys() == {"images", "prompts"} and message["prompts"] == ["a cat", "a dog"]
    decoded = [np.asarray(Image.open(io.BytesIO(image), formats=["jpeg"])) for image in message["images"]]
    assert decoded[0].shape == (8, 8, 3) and decoded[1].shape == (16, 24, 3)
    assert decoded[0].mean() < 5 and decoded[1].mean() > 250


@pytest.mark.parametrize(
    ("protocol", "answer", "value"),
    [
        ("scores", {"scores": [3.0]}, 3.0),
        ("scores", {"scores": np.array([3.0], dtype=np.float32)}, 3.0),
        ("scores", {"scores": [np.float32(3.0)]}, 3.0),
        ("scores", {"scores": [[3.0]]}, 3.0),
        ("hpsv3", {"scores": [3.0]}, 0.6),
        ("unifiedreward", {"scores": [3.0]}, 0.6),
        ("deqa", {"outputs": [3.0]}, 3.0),
    ],
)
def test_keys_and_scales_of_the_servers(serve, protocol, answer, value):
    assert ask(remote(serve(pickled(answer)), protocol=protocol), sample()) == pytest.approx([value])


def test_geneval_gets_its_metadata(serve):
    answer = {"scores": [0.5], "rewards": [0.25], "strict_rewards": [1.0], "group_rewards": {"color": [1.0]}}
    server = serve(pickled(answer))
    meta = {"tag": "color_attr", "include": [{"class": "bench", "count": 1}]}
    one = sample(0, "a photo of a bench", **meta)
    assert ask(remote(server, protocol="geneval"), one) == [0.5]
    assert ask(remote(server, protocol="geneval", answer_key="strict_rewards", only_strict=False), one) == [1.0]
    first, second = (pickle.loads(body) for _, _, body in server.requests)
    assert first["meta_datas"] == [{**meta, "prompt": "a photo of a bench"}] and "prompts" not in first
    assert first["only_strict"] is True and second["only_strict"] is False
    with pytest.raises(ValueError, match=r"extra_info\.metadata"):
        ask(remote(server, protocol="geneval"), sample())


def test_json_where_the_server_offers_it(serve):
    health = (200, "application/json", b'{"status": "ok", "formats": ["json", "pickle"]}')
    server = serve(lambda *_: (200, "application/json", b'{"scores": [0.5, null]}'), health)
    found = ask(remote(server), sample(), sample())
    assert found[0] == 0.5 and np.isnan(found[1])
    _, headers, body = server.requests[0]
    assert headers["Content-Type"] == "application/json" and json.loads(body)["prompts"] == ["a grey square"] * 2
    server.reply = pickled({"scores": [0.25]})
    assert ask(remote(server, format="pickle"), sample()) == [0.25]
    assert pickle.loads(server.requests[-1][2])["prompts"] == ["a grey square"]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_answer_that_would_run_code_is_an_error_and_is_not_run(serve, tmp_path):
    server = serve(pickled({"scores": [1.0], "extra": Payload(tmp_path / "victim")}))
    with pytest.raises(ScorerUnavailable, match=r"posix\.mkdir"):
        ask(remote(server), sample())
    assert not (tmp_path / "victim").exists()
    assert len(server.requests) == 1  # it is not asked again for more


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"rewards": [1.0]}, "no 'scores'.*there is rewards"),
        ({"scores": [1.0, 2.0]}, "2 numbers for 1 images"),
        ({"scores": ["high"]}, "no numbers"),
        ({"scores": np.array([None])}, "only plain data|numbers"),
        ([1.0], "there is list"),
        ({"scores": 3.0}, "no numbers"),
    ],
)
def test_answers_of_another_form(serve, answer, message):
    with pytest.raises(ScorerUnavailable, match=message):
        ask(remote(serve(pickled(answer))), sample())


def test_server_errors_are_tried_again_a_bounded_number_of_times(serve, caplog):
    replies = iter([(500, "text/plain", b"boom"), (503, "text/plain", b"busy")])
    server = serve(lambda *_: next(replies, (200, "application/octet-stream", pickle.dumps({"scores": [1.0]}))))
    assert ask(remote(server), sample()) == [1.0]
    assert len(server.requests) == 3 and "boom" in caplog.text

    server = serve(lambda *_: (500, "text/plain", b"boom"))
    scorer = remote(server, retries=2)
    with pytest.raises(ScorerUnavailable, match=r"failed 3 times, last with HTTP 500: boom"):
        ask(scorer, sample())
    assert len(server.requests) == scorer.attempts == 3


def test_a_refused_request_is_not_tried_again(serve):
    server = serve(lambda *_: (400, "text/plain", b"no images"))
    with pytest.raises(ScorerUnavailable, match="HTTP 400: no images"):
        ask(remote(server), sample())
    assert len(server.requests) == 1


def test_a_redirect_is_not_followed(serve):
    server = serve(lambda *_: (307, "text/plain", b""))
    with pytest.raises(ScorerUnavailable, match="HTTP 307"):
        ask(remote(server), sample())


def test_a_slow_server_is_given_up_in_time(serve):
    server = serve(lambda *_: (time.sleep(10), (200, "text/plain", b""))[1])
    with pytest.raises(ScorerUnavailable, match=r"failed 2 times, last with no answer within 0\.2 s"):
        ask(remote(server, timeout_s=0.2, retries=1), sample())


def test_no_more_requests_at_once_than_asked(serve):
    from maskgrpo_plugin.rewards.images.worker import ScorerWorker

    server = serve(lambda *_: (time.sleep(0.3), pickled({"scores": [1.0]})())[1])
    options = {"url": server.url, "concurrency": 3}

    async def main():
        worker = ScorerWorker("remote", options, max_batch=1, max_wait_s=0)
        return await asyncio.gather(*(worker.score(sample()) for _ in range(9)))

    assert [scored.value for scored in asyncio.run(main())] == [1.0] * 9
    assert server.most == 3


def test_backoff_doubles_up_to_its_bound_with_jitter():
    for attempt, whole in ((1, 0.5), (2, 1.0), (3, 2.0), (9, 30.0), (99, 30.0)):
        waits = [backoff(attempt, 0.5, 30.0) for _ in range(200)]
        assert whole / 2 <= min(waits) and max(waits) <= whole
        assert len(set(waits)) > 100


def chat(text):
    return lambda *_: (200, "application/json", json.dumps({"choices": [{"message": {"content": text}}]}).encode())


def test_unified_reward_over_chat(serve):
    server = serve(chat("Good.\nFinal Score: 4.5"))
    found = ask(remote(server, protocol="unifiedreward_chat"), sample(255, "a {white} square"), sample())
    assert found == pytest.approx([0.9, 0.9])
    path, headers, body = next(r for r in server.requests if b"white" in r[2])
    message = json.loads(body)
    assert path == "/chat/completions" and message["temperature"] == 0 and "Authorization" not in headers
    picture, question = message["messages"][0]["content"]
    assert question["text"].endswith("Text Caption: [a {white} square]")
    data = picture["image_url"]["url"].removeprefix("data:image/png;base64,")
    import base64

    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), sample(255).image)


def test_chat_without_a_score_is_nan_and_without_a_completion_an_error(serve, monkeypatch):
    monkeypatch.setenv("REWARD_KEY", "secret")
    server = serve(chat("I cannot tell."))
    (value,) = ask(remote(server, protocol="unifiedreward_chat", api_key_env="REWARD_KEY"), sample())
    assert np.isnan(value)
    assert server.requests[0][1]["Authorization"] == "Bearer secret"
    server.reply = lambda *_: (200, "application/json", b"{}")
    with pytest.raises(ScorerUnavailable, match="no chat completion"):
        ask(remote(server, protocol="unifiedreward_chat"), sample())


@pytest.mark.parametrize(
    ("text", "score"),
    [("Final Score: 3", "3"), ("Final Score:4.25.", "4.25"), ("Final Score:** 2", "2"), ("Final Score: 42", None)],
)
def test_final_score(text, score):
    found = FINAL_SCORE.search(text)
    assert (found and found.group(1)) == score


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "gpu-7:18087"}, r"url='gpu-7:18087'.*http://host:port"),
        ({"url": "file:///etc/passwd"}, "http://host:port"),
        ({"protocol": "grpc"}, r"protocol='grpc'.*hpsv3.*unifiedreward_chat"),
        ({"format": "xml"}, "auto, json, pickle"),
        ({"retries": 1000}, "retries=1000.*from 0 to 100"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"speed": 1}, "speed=1.*there are url, protocol"),
        ({"protocol": "unifiedreward_chat", "question": "How good?"}, "must hold {prompt}"),
    ],
)
def test_options_are_checked(options, message):
    check = get_scorer("remote").check
    with pytest.raises(OptionError, match=message):
        check({"url": f"http://127.0.0.1:{free_port()}"} | options)


def test_a_dead_server_is_found_at_the_start(serve):
    check = get_scorer("remote").check
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(OptionError, match=r"no reward server answers there"):
        check({"url": url})
    with pytest.raises(ScorerUnavailable):
        build_scorer("remote", {"url": url})
    with pytest.raises(OptionError, match="HTTP 502"):
        check({"url": serve(None, (502, "text/plain", b"")).url})
    check({"url": serve(None).url})

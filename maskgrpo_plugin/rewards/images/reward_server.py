"""Reward servers: their protocols, the options of the scorer `remote`, and the question whether one is there.

The published protocol (Flow-GRPO's reward servers) is a POST of a pickled dict, JPEG images and their prompts,
answered by a pickled dict of lists. A server that says in `GET /health` that it knows JSON (`examples/reward_server`
does) is spoken to in JSON, images in base64.
"""

import asyncio
import json
import math
import os
import threading
import urllib.parse
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, NamedTuple

from maskgrpo_plugin.errors import OptionError, check_choice, check_number
from maskgrpo_plugin.rewards.images.registry import check_option_names
from maskgrpo_plugin.rewards.images.sample import ScorerUnavailable

JSON_TYPE = "application/json"
FORMATS = ("auto", "json", "pickle")
ANSWER_BYTES = 1 << 16
MAX_JSON_PARTS = 1_000_000
_GRACE_S = 0.5
# What UnifiedReward was trained to answer; the prompt goes in place of {prompt}.
UNIFIED_REWARD_QUESTION = (
    "<image>\nYou are given a text caption and a generated image based on that caption. Your task is to evaluate this "
    "image based on two key criteria:\n1. Alignment with the Caption: Assess how well this image aligns with the "
    "provided caption. Consider the accuracy of depicted objects, their relationships, and attributes as described in "
    "the caption.\n2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail "
    "preservation, color accuracy, and overall aesthetic appeal.\nBased on the above criteria, assign a score from 1 "
    "to 5 after 'Final Score:'.\nYour task is provided as follows:\nText Caption: [{prompt}]"
)


@dataclass(frozen=True)
class Protocol:
    """How one kind of server is spoken to.

    Attributes:
        answer_key: key of the answer's numbers, one per image.
        scale: each number is multiplied by it.
        prompts: whether prompts are sent.
        geneval: whether GenEval's `meta_datas` and `only_strict` are sent.
    """

    answer_key: str = "scores"
    scale: float = 1.0
    prompts: bool = True
    geneval: bool = False


PROTOCOLS = {
    "scores": Protocol(),
    "hpsv3": Protocol(scale=1 / 5),
    "unifiedreward": Protocol(scale=1 / 5),
    "geneval": Protocol(prompts=False, geneval=True),
    "deqa": Protocol(answer_key="outputs", prompts=False),
}
CHAT = "unifiedreward_chat"


@dataclass(frozen=True)
class RemoteOptions:
    """Options of a remote scorer.

    Attributes:
        url: of the server, `http://host:port`; of a chat endpoint with its version, `http://host:port/v1`.
        protocol: `scores`, `hpsv3`, `unifiedreward`, `geneval`, `deqa` or `unifiedreward_chat`.
        timeout_s: longest that one attempt may take, in seconds.
        retries: attempts after the first one, 0 or more.
        backoff_s, max_backoff_s: the n-th pause is between a half and the whole of backoff_s·2^(n−1), at most
            max_backoff_s, in seconds.
        concurrency: most requests at once.
        health_timeout_s: how long the server may take to say at the start that it is there, in seconds.
        answer_key, scale: in place of the protocol's (GenEval also answers `rewards` and `strict_rewards`).
        format: `json`, `pickle`, or `auto`: JSON where the server offers it.
        jpeg_quality: 1 to 95; 75 is what the published client sends.
        only_strict: GenEval's.
        model: name of the model at a chat endpoint.
        question: what a chat endpoint is asked, with `{prompt}`.
        api_key_env: environment variable with the endpoint's key, empty for none.

    Raises:
        OptionError: a value that cannot work.
    """

    url: str
    protocol: str = "scores"
    timeout_s: float = 60.0
    retries: int = 3
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    concurrency: int = 4
    health_timeout_s: float = 10.0
    answer_key: str | None = None
    scale: float | None = None
    format: str = "auto"
    jpeg_quality: int = 75
    only_strict: bool = True
    model: str = "UnifiedReward-7b-v1.5"
    question: str = UNIFIED_REWARD_QUESTION
    api_key_env: str = ""

    def __post_init__(self):
        _check_url(self.url)
        check_choice("protocol", self.protocol, (*PROTOCOLS, CHAT))
        check_choice("format", self.format, FORMATS)
        for option in ("timeout_s", "health_timeout_s"):
            if not 0 < getattr(self, option) < math.inf:
                raise OptionError(option, getattr(self, option), "allowed: more than 0 seconds")
        for option in ("backoff_s", "max_backoff_s"):
            if not 0 <= getattr(self, option) < math.inf:
                raise OptionError(option, getattr(self, option), "allowed: 0 or more seconds")
        for option, least, most in (("retries", 0, 100), ("concurrency", 1, 1024), ("jpeg_quality", 1, 95)):
            check_number(option, getattr(self, option), least, most, whole=True)
        if self.protocol == CHAT and "{prompt}" not in self.question:
            raise OptionError("question", self.question, "it must hold {prompt}")


def _check_url(url: Any) -> None:
    """Raise OptionError unless `url` is one of HTTP, without a user's name and password (they would be logged)."""
    try:
        parts = urllib.parse.urlsplit(url if isinstance(url, str) and url.isprintable() and " " not in url else "")
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        has_user = "@" in parts.netloc
    except ValueError:
        usable, has_user = False, False
    if has_user:
        raise OptionError("url", "…", "write http://host:port, and the key into the variable that api_key_env names")
    if not usable:
        raise OptionError("url", url, "write http://host:port")


def check_remote_options(options: Mapping[str, Any]) -> None:
    """Check the options and ask the server whether it is there.

    Raises:
        OptionError: a value that cannot work, or no server at the url.
    """
    check_option_names(RemoteOptions, options)
    settings = RemoteOptions(**options)
    try:
        probe(settings)
    except ScorerUnavailable as error:
        raise OptionError("url", settings.url, f"no reward server answers there: {error}") from error


def probe(settings: RemoteOptions) -> tuple[str, ...]:
    """Ask a server whether it is there.

    Any answer that is no server error will do: the published servers know no address but `POST /`. A redirect is such
    an answer, and is not followed.

    Returns:
        the formats it says it knows; `pickle` alone where it says nothing.

    Raises:
        ScorerUnavailable: no answer within `health_timeout_s`, or one of a server that cannot work.
    """
    answer = _within(_fetch(settings), settings.health_timeout_s)
    if answer.status >= 500:
        raise ScorerUnavailable(f"HTTP {answer.status}")
    if answer.status != 200 or answer.content_type != JSON_TYPE:
        return ("pickle",)
    try:
        known = read_json(answer.body)["formats"]
    except (ValueError, LookupError, TypeError):
        known = ()
    known = [name for name in known if isinstance(name, str)] if isinstance(known, list) else []
    return tuple(name for name in FORMATS if name in known) or ("pickle",)


class _Answer(NamedTuple):
    """An answer to the question whether a server is there; the body is its first ANSWER_BYTES."""

    status: int
    content_type: str
    body: bytes


async def _fetch(settings: RemoteOptions) -> _Answer:
    """Ask once, following no redirect: the header of the key is for the configured host alone.

    Raises:
        ScorerUnavailable: no answer, or none that is HTTP.
    """
    import aiohttp

    url = settings.url.rstrip("/") + ("/models" if settings.protocol == CHAT else "/health")
    limit = aiohttp.ClientTimeout(total=settings.health_timeout_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=limit) as session,
            session.get(url, headers=authorization(settings), allow_redirects=False) as answer,
        ):
            body = b""
            async for part in answer.content.iter_any():
                body += part
                if len(body) >= ANSWER_BYTES:
                    break
            return _Answer(answer.status, answer.content_type, body[:ANSWER_BYTES])
    except (TimeoutError, asyncio.TimeoutError):
        raise ScorerUnavailable(_too_late(settings.health_timeout_s)) from None
    except Exception as error:  # a url or an answer that makes no sense raises errors of many types
        cause = f"{type(error).__name__}: {error}"[:200]
        raise ScorerUnavailable(cause) from error


def _within(awaitable: Coroutine[Any, Any, _Answer], seconds: float) -> _Answer:
    """Run in an event loop of its own, in a thread: the caller may be in one, and a name server's answer may hang."""
    outcome: Future[_Answer] = Future()

    def work() -> None:
        try:
            outcome.set_result(asyncio.run(awaitable))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="reward-server-probe", daemon=True).start()
    try:
        return outcome.result(seconds + _GRACE_S)
    except FutureTimeoutError:
        raise ScorerUnavailable(_too_late(seconds)) from None


def _too_late(seconds: float) -> str:
    return f"no answer within {seconds} s (health_timeout_s)"


def read_json(body: bytes) -> Any:
    """A JSON message.

    Raises:
        ValueError: it is no JSON, too deep, or has so many parts that it would take far more memory than its text.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_JSON_PARTS:
        raise ValueError(f"JSON of more than {MAX_JSON_PARTS} parts")
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("JSON that is too deep") from None


def authorization(settings: RemoteOptions) -> dict[str, str]:
    """The header with the key of a chat endpoint; empty where there is none."""
    key = os.environ.get(settings.api_key_env, "") if settings.api_key_env else ""
    return {"Authorization": f"Bearer {key}"} if key else {}

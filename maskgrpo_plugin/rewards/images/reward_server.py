"""Reward servers: their protocols, the options of the scorer `remote`, and the question whether one is there.

The published protocol (Flow-GRPO's reward servers) is a POST of a pickled dict, JPEG images and their prompts,
answered by a pickled dict of lists. A server that says in `GET /health` that it knows JSON (`examples/reward_server`
does) is spoken to in JSON, images in base64.
"""

import json
import math
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskgrpo_plugin.errors import OptionError, check_choice, check_number
from maskgrpo_plugin.rewards.images.registry import check_option_names
from maskgrpo_plugin.rewards.images.sample import ScorerUnavailable

JSON_TYPE = "application/json"
FORMATS = ("auto", "json", "pickle")
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
        parts = urllib.parse.urlsplit(str(self.url))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OptionError("url", self.url, "write http://host:port")
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

    Any answer that is no server error will do: the published servers know no address but `POST /`.

    Returns:
        the formats it says it knows; `pickle` alone where it says nothing.

    Raises:
        ScorerUnavailable: no answer within `health_timeout_s`, or one of a server that cannot work.
    """
    path = "/models" if settings.protocol == CHAT else "/health"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(settings.url.rstrip("/") + path, headers=authorization(settings))
    try:
        with opener.open(request, timeout=settings.health_timeout_s) as answer:
            body, kind = answer.read(1 << 16), answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise ScorerUnavailable(f"HTTP {error.code}") from error
        return ("pickle",)
    except OSError as error:
        raise ScorerUnavailable(str(getattr(error, "reason", error))) from error
    try:
        known = json.loads(body).get("formats", ()) if kind == JSON_TYPE else ()
    except (ValueError, AttributeError):
        known = ()
    return tuple(name for name in FORMATS if name in known) or ("pickle",)


def authorization(settings: RemoteOptions) -> dict[str, str]:
    """The header with the key of a chat endpoint; empty where there is none."""
    key = os.environ.get(settings.api_key_env, "") if settings.api_key_env else ""
    return {"Authorization": f"Bearer {key}"} if key else {}

"""The scorer `remote`: a client of reward servers' HTTP protocol, and of chat endpoints.

Answers in pickle are read by `restricted_pickle`, never by pickle. Requests are repeated by a loop of our own: which
answers are tried again (`RETRIED_STATUS`) and which end the sample at once is most of it, and a retry library would
replace its last three lines.
"""

import asyncio
import base64
import io
import json
import logging
import math
import pickle
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from maskgrpo_plugin.rewards.images import restricted_pickle
from maskgrpo_plugin.rewards.images.registry import check_option_names, register_scorer
from maskgrpo_plugin.rewards.images.reward_server import (
    CHAT,
    JSON_TYPE,
    PROTOCOLS,
    RemoteOptions,
    authorization,
    check_remote_options,
    probe,
    read_json,
)
from maskgrpo_plugin.rewards.images.sample import ImageSample, ScorerUnavailable

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 64 * 2**20
PICKLE_TYPE = "application/octet-stream"
RETRIED_STATUS = frozenset({408, 425, 429, *range(500, 600)})
FINAL_SCORE = re.compile(r"Final Score:\**\s*([1-5](?:\.[0-9]{1,15})?)(?![\d.]*\d)")


@register_scorer("remote", check=check_remote_options)
def make_remote(**options: Any) -> "RemoteScorer":
    """Make the scorer of `protocol`; options as in `RemoteOptions`.

    Raises:
        OptionError: a value that cannot work.
        ScorerUnavailable: there is no server at the url.
    """
    check_option_names(RemoteOptions, options)
    settings = RemoteOptions(**options)
    return (ChatScorer if settings.protocol == CHAT else RemoteScorer)(settings)


class RemoteScorer:
    """Sends images and prompts to a reward server.

    Attributes:
        attempts: requests sent so far, retries counted.
    """

    def __init__(self, settings: RemoteOptions):
        formats = probe(settings)
        if settings.format == "auto":
            settings = replace(settings, format="json" if "json" in formats else "pickle")
        self.settings, self.concurrency, self.attempts = settings, settings.concurrency, 0
        self._encoded_type = PICKLE_TYPE if settings.format == "pickle" else JSON_TYPE
        protocol = PROTOCOLS.get(settings.protocol, PROTOCOLS["unifiedreward"])
        self.protocol = replace(
            protocol,
            answer_key=settings.answer_key or protocol.answer_key,
            scale=protocol.scale if settings.scale is None else settings.scale,
        )

    async def score(self, samples: Sequence[ImageSample]) -> list[float]:
        """The server's numbers, scaled; NaN where it has none for an image.

        Raises:
            ScorerUnavailable: no usable answer after all attempts.
            ValueError: a sample without what the protocol sends.
        """
        message = await asyncio.to_thread(self._message, samples)
        body, kind = self._encode(message)
        answer, answer_kind = await self._post(self.settings.url, body, kind)
        return [value * self.protocol.scale for value in self._read(answer, answer_kind, len(samples))]

    def _message(self, samples: Sequence[ImageSample]) -> dict[str, Any]:
        """The request before it is encoded."""
        message: dict[str, Any] = {"images": [encode_jpeg(s.image, self.settings.jpeg_quality) for s in samples]}
        if self.protocol.prompts:
            message["prompts"] = [sample.prompt for sample in samples]
        if self.protocol.geneval:
            message["meta_datas"] = [_geneval_metadata(sample) for sample in samples]
            message["only_strict"] = self.settings.only_strict
        return message

    def _encode(self, message: dict[str, Any]) -> tuple[bytes, str]:
        if self.settings.format == "pickle":
            return pickle.dumps(message, protocol=4), self._encoded_type
        images = [base64.b64encode(image).decode() for image in message["images"]]
        return json.dumps(message | {"images": images}).encode(), self._encoded_type

    def _read(self, body: bytes, kind: str, count: int) -> list[float]:
        """The numbers in an answer, `count` of them; a pickle is read only where the request was one.

        Raises:
            ScorerUnavailable: the answer is of another form.
        """
        try:
            is_json = JSON_TYPE in (kind, self._encoded_type)
            answer = read_json(body) if is_json else restricted_pickle.loads(body)
        except ValueError as error:
            raise ScorerUnavailable(f"{self.settings.url} gave an unreadable answer: {error}") from error
        key = self.protocol.answer_key
        if not isinstance(answer, Mapping) or key not in answer:
            names = ", ".join(str(name)[:40] for name in list(answer)[:20]) if isinstance(answer, Mapping) else ""
            found = names or type(answer).__name__
            raise ScorerUnavailable(f"{self.settings.url} gave no {key!r} (answer_key); there is {found}")
        try:
            values = [_number(value) for value in answer[key]]
        except (TypeError, ValueError, OverflowError) as error:
            raise ScorerUnavailable(f"{self.settings.url} gave no numbers in {key!r}: {error}") from error
        if len(values) != count:
            raise ScorerUnavailable(f"{self.settings.url} gave {len(values)} numbers for {count} images")
        return values

    async def _post(self, url: str, body: bytes, kind: str) -> tuple[bytes, str]:
        """Body and content type of the answer to a POST, tried up to 1 + `retries` times."""
        settings = self.settings
        cause = ""
        for attempt in range(settings.retries + 1):
            if attempt:
                await asyncio.sleep(backoff(attempt, settings.backoff_s, settings.max_backoff_s))
            self.attempts += 1
            cause, answer = await self._attempt(url, body, kind)
            if answer is not None:
                return answer
            logger.warning("%s: attempt %d of %d failed: %s", url, attempt + 1, settings.retries + 1, cause)
        raise ScorerUnavailable(f"{url} failed {settings.retries + 1} times, last with {cause}")

    async def _attempt(self, url: str, body: bytes, kind: str) -> tuple[str, tuple[bytes, str] | None]:
        """One POST: what went wrong, or the answer.

        Raises:
            ScorerUnavailable: the server refuses the request, so that trying again makes no sense.
        """
        import aiohttp

        headers = {"Content-Type": kind, "Accept": f"{JSON_TYPE}, {PICKLE_TYPE}"} | authorization(self.settings)
        limit = aiohttp.ClientTimeout(total=self.settings.timeout_s)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                content = await _read_limited(answer.content)
                if answer.status == 200:
                    return "", (content, answer.content_type)
                cause = f"HTTP {answer.status}: {content[:200].decode(errors='replace')}"
                if answer.status not in RETRIED_STATUS:
                    raise ScorerUnavailable(f"{url} refused the request with {cause}")
                return cause, None
        except (TimeoutError, asyncio.TimeoutError):
            return f"no answer within {self.settings.timeout_s} s", None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"[:500], None


class ChatScorer(RemoteScorer):
    """UnifiedReward behind an OpenAI-compatible chat endpoint: one question per image.

    The answer holds `Final Score: 1…5`, which is divided by 5.
    """

    async def score(self, samples: Sequence[ImageSample]) -> list[float]:
        """The scores, in [0.2, 1]; NaN where the answer has none.

        Raises:
            ScorerUnavailable: no usable answer after all attempts.
        """
        return list(await asyncio.gather(*(self._ask(sample) for sample in samples)))

    async def _ask(self, sample: ImageSample) -> float:
        url = self.settings.url.rstrip("/") + "/chat/completions"
        body = json.dumps(self._question(sample)).encode()
        answer, _ = await self._post(url, body, JSON_TYPE)
        try:
            text = read_json(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise ScorerUnavailable(f"{url} gave no chat completion: {answer[:200]!r}") from error
        found = FINAL_SCORE.search(text) if isinstance(text, str) else None
        return float(found.group(1)) * self.protocol.scale if found else math.nan

    def _question(self, sample: ImageSample) -> dict[str, Any]:
        picture = f"data:image/png;base64,{base64.b64encode(encode_png(sample.image)).decode()}"
        question = self.settings.question.replace("{prompt}", sample.prompt)
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
        return {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
        }


def backoff(attempt: int, first_s: float, most_s: float) -> float:
    """Seconds to wait before retry `attempt`, from 1: doubled each time, with jitter over its upper half."""
    return min(most_s, first_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """An image (H, W, 3) uint8 as JPEG."""
    return _encode_image(image, format="JPEG", quality=quality)


def encode_png(image: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as PNG."""
    return _encode_image(image, format="PNG")


def _encode_image(image: np.ndarray, **options: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **options)
    return buffer.getvalue()


def _geneval_metadata(sample: ImageSample) -> dict[str, Any]:
    """GenEval's description of what must be in the image, with the prompt."""
    if "include" not in sample.metadata:
        raise ValueError("the data row has no GenEval metadata (`tag`, `include`, …) in extra_info.metadata")
    return {"prompt": sample.prompt, **sample.metadata}


def _number(value: Any) -> float:
    """A number, or the only one in a list; None is NaN."""
    if isinstance(value, list | tuple | np.ndarray):
        (value,) = value
    if isinstance(value, str | bytes):
        raise TypeError(f"{value[:40]!r} is no number")
    return math.nan if value is None else float(value)


async def _read_limited(stream: Any) -> bytes:
    """All of a response's body, at most MAX_ANSWER_BYTES."""
    parts, size = [], 0
    async for part in stream.iter_chunked(1 << 16):
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise ScorerUnavailable(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)

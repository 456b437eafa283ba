"""Serve an image scorer over HTTP: `python examples/reward_server/server.py --scorer ocr --port 18087`.

It speaks the protocol of the published reward servers (a POST of a pickled dict) and JSON; see the README beside it.
Requests are read by a restricted unpickler that runs nothing, and a request's size, pixels and time are bounded, but
nobody is asked who they are: keep it on a network where you trust every machine.
"""

import argparse
import asyncio
import base64
import functools
import io
import json
import logging
import math
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from PIL import Image
from uvicorn.protocols.http.h11_impl import H11Protocol

from maskgrpo_plugin.rewards.images import ImageSample, restricted_pickle, scorer_kinds
from maskgrpo_plugin.rewards.images.reward_server import read_json
from maskgrpo_plugin.rewards.images.worker import Scored, ScorerWorker

logger = logging.getLogger(__name__)

JSON_TYPE, PICKLE_TYPE = "application/json", "application/octet-stream"
MAX_CONNECTIONS = 256
MAX_DEPTH = 16


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and what all that are under way may take; beyond the latter the answer is 503.

    Attributes:
        request_bytes: bytes of a request's body.
        images: images of a request.
        pixels: pixels of all images of a request; each takes three bytes until it has its score.
        parts: texts, numbers and containers in the description (`meta_datas`) of an image, counted as often as they
            are met on a walk through it.
        seconds: time that a request may take to arrive.
        readers: requests whose images are decoded at once.
        all_bytes: bytes of all bodies that are not decoded yet.
        all_pixels: pixels of all images that wait for their score.
    """

    request_bytes: int = 256 * 2**20
    images: int = 4096
    pixels: int = 128 * 2**20
    parts: int = 10_000
    seconds: float = 30.0
    readers: int = 2
    all_bytes: int = 512 * 2**20
    all_pixels: int = 512 * 2**20


class BadRequest(ValueError):
    """A request that cannot be understood; answered with status 400."""


class Refused(Exception):
    """A request that is not scored, with the status and the text of its answer."""

    def __init__(self, status: int, reason: str):
        super().__init__(status, reason)
        self.status, self.reason = status, reason


def make_app(worker: ScorerWorker, *, limits: Limits | None = None, json_only: bool = False) -> FastAPI:
    """The server's application.

    Args:
        worker: the scorer with its queue, shared by all requests.
        limits: of requests; None for the defaults.
        json_only: whether pickles are refused (415).
    """
    limits = limits or Limits()
    load = Load(limits)
    app = FastAPI(title="reward server", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "formats": ["json"] if json_only else ["json", "pickle"]}

    @app.post("/")
    async def score(request: Request) -> Response:
        as_json = request.headers.get("content-type", "").startswith(JSON_TYPE)
        if json_only and not as_json:
            return Response("this server reads JSON alone", 415, {"Connection": "close"}, "text/plain")
        try:
            samples = await load.receive(request, as_json)
        except Refused as error:
            # what is left of the body is not waited for
            return Response(error.reason, error.status, {"Connection": "close"}, "text/plain")
        try:
            found: list[Scored] = await asyncio.gather(*(worker.score(sample) for sample in samples))
        finally:
            load.release(samples)
        errors = [scored.error for scored in found if scored.failed]
        if samples and len(errors) == len(samples):
            return Response(f"no image could be scored: {errors[0]}", status_code=500, media_type="text/plain")
        return write_scores([scored.value for scored in found], as_json)

    return app


class Load:
    """The requests under way, and the bytes and pixels that they hold."""

    def __init__(self, limits: Limits):
        self.limits, self.bytes, self.pixels = limits, 0, 0
        self.readers = asyncio.Semaphore(limits.readers)

    async def receive(self, request: Request, as_json: bool) -> list[ImageSample]:
        """The samples of a request; to be given to `release` afterwards.

        Raises:
            Refused: it cannot be read, asks for too much, is late, or there is too much to do already.
        """
        body = bytearray()
        try:
            await asyncio.wait_for(self._fill(body, request), self.limits.seconds)
            async with self.readers:
                if self.pixels > self.limits.all_pixels:
                    raise Refused(503, "too many images wait for their score")
                samples = await asyncio.to_thread(read_samples, bytes(body), as_json, self.limits)
        except BadRequest as error:
            raise Refused(400, str(error)) from error
        except (TimeoutError, asyncio.TimeoutError):
            raise Refused(408, f"the request did not arrive within {self.limits.seconds} s") from None
        finally:
            self.bytes -= len(body)
        self.pixels += count_pixels(samples)
        return samples

    def release(self, samples: Sequence[ImageSample]) -> None:
        """The samples have their scores."""
        self.pixels -= count_pixels(samples)

    async def _fill(self, body: bytearray, request: Request) -> None:
        async for part in request.stream():
            if len(body) + len(part) > self.limits.request_bytes:
                raise Refused(413, f"a request of more than {self.limits.request_bytes} bytes")
            if self.bytes + len(part) > self.limits.all_bytes:
                raise Refused(503, "too many requests are being received")
            self.bytes += len(part)
            body += part


def count_pixels(samples: Sequence[ImageSample]) -> int:
    """Pixels of all images."""
    return sum(sample.image.size // 3 for sample in samples)


def read_samples(body: bytes, as_json: bool, limits: Limits | None = None) -> list[ImageSample]:
    """The samples of a request: `images` (JPEG or PNG; in base64 in JSON), and for each `prompts` and `meta_datas`.

    Raises:
        BadRequest: the body is of another form, or asks for more than the limits allow.
    """
    limits = limits or Limits()
    try:
        message = read_json(body) if as_json else restricted_pickle.loads(body, text_arrays=True)
        if not isinstance(message, Mapping):
            raise TypeError(f"a {type(message).__name__} where a dict belongs")
        coded = entries(message["images"], "images", bytes if not as_json else str)
        if len(coded) > limits.images:
            raise ValueError(f"{len(coded)} images, at most {limits.images} are scored at once")
        prompts = column(message, "prompts", str, len(coded), "")
        metadata = column(message, "meta_datas", dict, len(coded), {})
        for description in metadata:
            check_size(description, limits.parts)
        images = read_images([base64.b64decode(image) for image in coded] if as_json else coded, limits.pixels)
        return [
            ImageSample(image, prompt, description.get("ground_truth"), description)
            for image, prompt, description in zip(images, prompts, metadata, strict=True)
        ]
    except (ValueError, KeyError, TypeError, SyntaxError, OSError, Image.DecompressionBombError) as error:
        cause = f"{type(error).__name__}: {error}"[:500]
        raise BadRequest(f"not a request for scores: {cause}") from error


def entries(values: Any, key: str, kind: type) -> list[Any]:
    """The entries of a list (or a numpy array of texts), all of one type."""
    found = values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else values
    if not isinstance(found, list | tuple) or not all(isinstance(value, kind) for value in found):
        raise TypeError(f"{key} must be a list of {kind.__name__}")
    return list(found)


def column(message: Mapping[str, Any], key: str, kind: type, length: int, default: Any) -> list[Any]:
    """One entry per image; defaults where the request has none."""
    if message.get(key) is None:
        return [default] * length
    values = entries(message[key], key, kind)
    if len(values) != length:
        raise ValueError(f"{len(values)} {key} for {length} images")
    return values


def check_size(value: Any, parts: int) -> None:
    """Raise ValueError where a walk through a description meets more than `parts` parts or goes deeper than MAX_DEPTH;
    a pickle can describe a very long walk in a few bytes.
    """
    left, waiting = parts, [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        if isinstance(part, Mapping):
            inner = list(part.values())
        else:
            inner = list(part) if isinstance(part, list | tuple | set | frozenset) else []
        left -= 1 + len(inner)
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError(f"meta_datas hold more than {parts} parts or are nested more than {MAX_DEPTH} deep")
        waiting += [(entry, depth + 1) for entry in inner]


def read_images(coded: Sequence[bytes], pixels: int) -> list[np.ndarray]:
    """JPEGs or PNGs as (H, W, 3) uint8.

    Raises:
        ValueError: together they have more than `pixels` pixels; none is decoded then.
    """
    total = sum(width * height for width, height in map(image_size, coded))
    if total > pixels:
        raise ValueError(f"images of {total} pixels together, at most {pixels} are scored at once")
    return [read_image(data) for data in coded]


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height that a JPEG or PNG says it has."""
    with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
        return image.size


def read_image(data: bytes) -> np.ndarray:
    """A JPEG or PNG as (H, W, 3) uint8."""
    with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
        return np.asarray(image.convert("RGB"))


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP, but a connection that sends no whole header within `seconds` is closed, and so is each one beyond
    2 · MAX_CONNECTIONS.
    """

    def __init__(self, *args: Any, seconds: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.seconds = seconds

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        if len(self.connections) > 2 * MAX_CONNECTIONS:
            transport.close()
        self.loop.call_later(self.seconds, self._close_unless_asked, None)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self.loop.call_later(self.seconds, self._close_unless_asked, self.cycle)

    def _close_unless_asked(self, last: Any) -> None:
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()


def write_scores(values: Sequence[float], as_json: bool) -> Response:
    """The answer; `outputs` and `rewards` say what `scores` does, for clients of DeQA and GenEval servers."""
    numbers = [None if as_json and math.isnan(value) else value for value in values]
    answer = {"scores": numbers, "outputs": numbers, "rewards": numbers}
    if as_json:
        return Response(json.dumps(answer), media_type=JSON_TYPE)
    return Response(pickle.dumps(answer, protocol=4), media_type=PICKLE_TYPE)


def main(arguments: list[str] | None = None) -> int:
    """Run the command until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scorer", required=True, help=f"{', '.join(scorer_kinds())}; or package.module:factory, FILE:factory"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the scorer; value as JSON"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=18087)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--max-wait-ms", type=float, default=10.0)
    parser.add_argument("--json-only", action="store_true", help="refuse pickles, which published clients send")
    parser.add_argument("--request-seconds", type=float, default=30.0, help="time that a request may take to arrive")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        worker = ScorerWorker(
            options.scorer,
            dict(map(read_option, options.option)),
            max_batch=options.max_batch,
            max_wait_s=options.max_wait_ms / 1000,
        )
    except (ValueError, ImportError) as error:
        sys.stderr.write(f"--scorer {options.scorer}: {error}\n")
        return 2
    app = make_app(worker, limits=Limits(seconds=options.request_seconds), json_only=options.json_only)
    serve(app, options.host, options.port, options.request_seconds)
    return 0


def serve(app: FastAPI, host: str, port: int, seconds: float) -> None:
    """Serve until interrupted; while there are MAX_CONNECTIONS connections, new requests are answered with 503."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        http=functools.partial(PatientProtocol, seconds=seconds),  # type: ignore[arg-type]
        limit_concurrency=MAX_CONNECTIONS,
    )


def read_option(text: str) -> tuple[str, Any]:
    """NAME=VALUE; the value is JSON, or text where it is none."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--option {text}: write NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.exit(main())

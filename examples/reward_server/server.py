"""Serve an image scorer over HTTP: `python examples/reward_server/server.py --scorer ocr --port 18087`.

It speaks the protocol of the published reward servers (a POST of a pickled dict) and JSON; see the README beside it.
Requests are read by a restricted unpickler that runs nothing, but the server has no other protection: keep it on a
network where you trust every machine.
"""

import argparse
import asyncio
import base64
import io
import json
import logging
import math
import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from PIL import Image

from maskgrpo_plugin.rewards.images import ImageSample, restricted_pickle, scorer_kinds
from maskgrpo_plugin.rewards.images.worker import Scored, ScorerWorker

logger = logging.getLogger(__name__)

JSON_TYPE, PICKLE_TYPE = "application/json", "application/octet-stream"
MAX_PIXELS = 64 * 2**20


class BadRequest(ValueError):
    """A request that cannot be understood; answered with status 400."""


def make_app(worker: ScorerWorker, *, max_request_bytes: int = 256 * 2**20) -> FastAPI:
    """The server's application.

    Args:
        worker: the scorer with its queue, shared by all requests.
        max_request_bytes: larger requests are refused.
    """
    app = FastAPI(title="reward server", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "formats": ["json", "pickle"]}

    @app.post("/")
    async def score(request: Request) -> Response:
        as_json = request.headers.get("content-type", "").startswith(JSON_TYPE)
        try:
            body = await read_body(request, max_request_bytes)
            samples = await asyncio.to_thread(read_samples, body, as_json)
        except BadRequest as error:
            return Response(str(error), status_code=400, media_type="text/plain")
        found: list[Scored] = await asyncio.gather(*(worker.score(sample) for sample in samples))
        errors = [scored.error for scored in found if scored.failed]
        if samples and len(errors) == len(samples):
            return Response(f"no image could be scored: {errors[0]}", status_code=500, media_type="text/plain")
        return write_scores([scored.value for scored in found], as_json)

    return app


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body.

    Raises:
        BadRequest: it is longer than `limit` bytes.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise BadRequest(f"a request of more than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


def read_samples(body: bytes, as_json: bool) -> list[ImageSample]:
    """The samples of a request: `images` (JPEG or PNG; in base64 in JSON), and for each `prompts` and `meta_datas`.

    Raises:
        BadRequest: the body is of another form.
    """
    try:
        message = json.loads(body) if as_json else restricted_pickle.loads(body, text_arrays=True)
        images = [read_image(base64.b64decode(image) if as_json else image) for image in message["images"]]
        prompts = column(message, "prompts", len(images), "")
        metadata = column(message, "meta_datas", len(images), {})
        return [
            ImageSample(image, str(prompt), description.get("ground_truth"), description)
            for image, prompt, description in zip(images, prompts, metadata, strict=True)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OSError, Image.DecompressionBombError) as error:
        raise BadRequest(f"not a request for scores: {type(error).__name__}: {error}") from error


def column(message: Mapping[str, Any], key: str, length: int, default: Any) -> Sequence[Any]:
    """One entry an image; defaults where the request has none."""
    values = message.get(key)
    if values is None:
        return [default] * length
    if len(values) != length:
        raise ValueError(f"{len(values)} {key} for {length} images")
    return list(values)


def read_image(data: bytes) -> np.ndarray:
    """A JPEG or PNG as (H, W, 3) uint8."""
    with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"an image of {image.width} × {image.height} pixels")
        return np.asarray(image.convert("RGB"))


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
    uvicorn.run(make_app(worker), host=options.host, port=options.port, log_level="warning")
    return 0


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

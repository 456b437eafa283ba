"""The reward manager `maskgrpo_image` with scorers in real Ray actors, and with a real reward server that dies."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import forked_python
import numpy as np
import pytest
import torch
from example_server import reward_server
from image_helpers import FILE, text_image
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[3]
HERE = str(Path(__file__).parent)
BRIGHTNESS = {"factory": f"{FILE}:BrightnessScorer", "max_wait_ms": 200}
LENGTH = {"factory": f"{FILE}:AsyncScorer"}


@pytest.fixture(scope="module")
def session():
    """A small Ray session, whose actors of the scorers `light` and `length` stay while it lasts: each takes 10 s of CPU
    to start, and managers that ask for the same settings share them.
    """
    import ray

    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), HERE, os.environ.get("PYTHONPATH", "")])}
    workers = {"env_vars": environment, "py_executable": forked_python.for_ray()}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=workers)
    actors = make_manager({"light": BRIGHTNESS, "length": LENGTH})
    yield ray
    del actors
    ray.shutdown()


def make_manager(scorers, tokenizer=None, **settings):
    from maskgrpo_plugin.rewards.images.manager import ImageRewardManager

    config = OmegaConf.create({"reward": {"image": {"scorers": scorers, "startup_timeout_s": 300, **settings}}})
    return ImageRewardManager(config, tokenizer)


def rollout(image, content="a grey square", ground_truth="", tokens=(0, 0, 0, 0), **extra_info):
    """verl's batch of one rollout, as the agent loop makes it."""
    from verl import DataProto

    rows = {
        "raw_prompt": [{"role": "user", "content": content}],
        "reward_model": {"ground_truth": ground_truth, "style": "model"},
        "extra_info": extra_info,
        "tool_extra_fields": {"image": image, "turn_scores": []} if image is not None else {},
        "data_source": "images",
    }
    columns = {}
    for key, value in rows.items():
        columns[key] = np.empty(1, dtype=object)
        columns[key][0] = value
    responses = torch.tensor([tokens])
    tensors = {"responses": responses, "attention_mask": (responses > 0).long()}
    return DataProto.from_dict(tensors=tensors, non_tensors=columns)


def grey(level):
    return rollout(np.full((8, 8, 3), level, dtype=np.uint8))


def run_all(manager, *batches):
    async def main():
        return await asyncio.gather(*(manager.run_single(batch) for batch in batches))

    return asyncio.run(main())


def test_the_reward_is_the_weighted_sum_and_every_part_is_a_float(session):
    scorers = {
        "light": {**BRIGHTNESS, "weight": 2.0},
        "length": {**LENGTH, "weight": -0.5},
    }
    manager = make_manager(scorers)
    (result,) = run_all(manager, grey(51))
    info = result["reward_extra_info"]
    assert result["reward_score"] == info["score"] == pytest.approx(2 * 0.2 - 0.5 * len("a grey square"))
    assert info["light"] == pytest.approx(0.2) and info["length"] == len("a grey square")
    assert info["reward_failed"] == info["light_failed"] == info["length_failed"] == 0.0
    assert 0 < info["light_latency_s"] < 60 and info["light_batch_size"] == 1.0
    assert all(type(value) is float for value in info.values())


def test_rollouts_are_batched_and_managers_share_the_actors(session, tmp_path):
    log = tmp_path / "log"
    scorers = {"light": {**BRIGHTNESS, "options": {"log": str(log)}, "max_batch": 8, "max_wait_ms": 500}}
    first, second = make_manager(scorers), make_manager(scorers)

    async def main():
        each = [manager.run_single(grey(level)) for level in range(100, 116) for manager in (first, second)]
        return await asyncio.gather(*each)

    results = asyncio.run(main())
    assert [r["reward_score"] for r in results[::2]] == pytest.approx([level / 255 for level in range(100, 116)])
    processes, sizes = zip(*(line.split() for line in log.read_text().splitlines()), strict=True)
    assert len(set(processes)) == 1 and int(processes[0]) != os.getpid()
    assert sizes == ("8",) * 4


def test_replicas_share_the_work(session, tmp_path):
    log = tmp_path / "log"
    scorers = {"light": {**BRIGHTNESS, "options": {"log": str(log)}, "replicas": 2, "max_batch": 1}}
    run_all(make_manager(scorers), *(grey(level) for level in range(100, 108)))
    processes = [line.split()[0] for line in log.read_text().splitlines()]
    assert sorted(processes.count(process) for process in set(processes)) == [4, 4]


def test_bad_scores_are_counted_and_cost_only_their_sample(session, caplog):
    manager = make_manager({"light": BRIGHTNESS, "length": LENGTH})
    raised, nan, good = run_all(manager, grey(13), grey(14), grey(255))
    for bad in (raised, nan):
        assert bad["reward_score"] == 0.0 and bad["reward_extra_info"]["reward_failed"] == 1.0
        assert bad["reward_extra_info"]["light_failed"] == 1.0 and bad["reward_extra_info"]["light"] == 0.0
        assert bad["reward_extra_info"]["length_failed"] == 0.0
        assert bad["reward_extra_info"].keys() == good["reward_extra_info"].keys()
        assert all(np.isfinite(value) for value in bad["reward_extra_info"].values())
    assert good["reward_score"] == 1.0 + len("a grey square") and good["reward_extra_info"]["reward_failed"] == 0.0
    assert "unlucky" in caplog.text and "the score is nan" in caplog.text


def test_a_scorer_that_takes_too_long_is_a_failure_in_time(session):
    manager = make_manager({"light": {**BRIGHTNESS, "timeout_s": 0.5, "options": {"slow_s": 600}}})
    start = time.monotonic()
    (slow,) = run_all(manager, grey(15))
    assert slow["reward_extra_info"]["light_failed"] == 1.0
    assert time.monotonic() - start < 500


def test_a_scorer_whose_process_dies_comes_back(session):
    manager = make_manager({"light": {**BRIGHTNESS, "timeout_s": 30}})
    (dead,) = run_all(manager, grey(16))
    assert dead["reward_extra_info"]["light_failed"] == 1.0
    deadline = time.monotonic() + 120
    while (back := run_all(manager, grey(255))[0])["reward_extra_info"]["light_failed"]:
        assert time.monotonic() < deadline
    assert back["reward_score"] == 1.0


def test_a_scorer_that_cannot_be_made_ends_the_start(session):
    with pytest.raises(RuntimeError, match=r"'x' could not be made(.|\n)*no weights here"):
        make_manager({"x": {"factory": f"{FILE}:broken"}})


def test_a_rollout_without_an_image_is_a_mistake_in_the_setup(session):
    manager = make_manager({"light": BRIGHTNESS})
    with pytest.raises(ValueError, match=r"no 'image'.*image model"):
        run_all(manager, rollout(None, modality="t2i"))


def test_rows_that_ask_for_no_image_are_scored_as_texts(session, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "rewards" / "text")
    from test_scorers import CharacterTokenizer

    manager = make_manager({"light": BRIGHTNESS}, tokenizer=CharacterTokenizer())
    image, *texts = run_all(
        manager,
        grey(51),
        rollout(None, ground_truth="5", tokens=[ord("5"), 1, 0], task="arithmetic"),
        rollout(None, ground_truth="seven", tokens=[*map(ord, "Seven"), 1], task="short_answer", modality="mmu"),
        rollout(None, ground_truth="6", tokens=[ord("5"), 1, 0], task="arithmetic"),
    )
    assert image["reward_score"] == pytest.approx(0.2)
    assert [text["reward_score"] for text in texts] == [1.0, 1.0, 0.0]
    assert all("light" not in text["reward_extra_info"] for text in texts)


def test_what_the_scorers_see_of_a_row():
    from maskgrpo_plugin.rewards.images.manager import image_sample

    image = np.zeros((8, 8, 3), dtype=np.uint8)
    include = np.array([{"class": "cow", "count": np.int64(1), "color": None}], dtype=object)
    data = rollout(image, "a cow", "7", metadata={"tag": "counting", "include": include})
    found = image_sample(data[-1].non_tensor_batch)
    assert (found.prompt, found.ground_truth) == ("a cow", "7")
    assert found.metadata == {"tag": "counting", "include": [{"class": "cow", "count": 1}]}
    parts = [{"type": "image"}, {"type": "text", "text": "a dog"}]
    assert image_sample(rollout(image, parts)[-1].non_tensor_batch).prompt == "a dog"
    assert image_sample(rollout(image, "wrapped: a cat", prompt="a cat")[-1].non_tensor_batch).prompt == "a cat"
    assert image_sample(rollout(image, metadata='{"tag": "x"}')[-1].non_tensor_batch).metadata == {"tag": "x"}


def test_verl_knows_the_manager():
    import verl  # noqa: F401
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

    from maskgrpo_plugin.rewards.images.manager import ImageRewardManager

    assert get_reward_manager_cls("maskgrpo_image") is ImageRewardManager


def test_a_server_that_dies_in_the_middle_gives_counted_failures_and_the_run_goes_on(session, caplog):
    from maskgrpo_plugin.rewards.failures import resolve_failed_rewards

    with reward_server("--scorer", f"{FILE}:BrightnessScorer") as (url, process):
        options = {"url": url, "retries": 1, "backoff_s": 0.05, "timeout_s": 5}
        scorers = {"remote": {"options": options, "max_batch": 2}, "light": BRIGHTNESS}
        manager = make_manager(scorers, on_failure="mean_of_group")
        levels = (0, 51, 102, 255)
        before = run_all(manager, *map(grey, levels))
        # JPEG keeps grey levels but for rounding
        assert [r["reward_score"] for r in before] == pytest.approx([2 * level / 255 for level in levels], abs=0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        after = run_all(manager, *map(grey, levels))
    infos = [result["reward_extra_info"] for result in before + after]
    assert [info["remote_failed"] for info in infos] == [0.0] * 4 + [1.0] * 4
    assert [info["light_failed"] for info in infos] == [0.0] * 8
    assert "failed 2 times" in caplog.text
    rewards = torch.tensor([result["reward_score"] for result in before + after])
    failed = torch.tensor([info["reward_failed"] for info in infos])
    resolved, keep = resolve_failed_rewards(rewards, failed, ["a", "b"] * 4, manager.settings.on_failure)
    assert keep.all() and resolved[4:].tolist() == pytest.approx([0.4, 1.2] * 2, abs=0.02)


@pytest.fixture(scope="module")
def ocr_server():
    pytest.importorskip("rapidocr_onnxruntime", reason="the extra `ocr` is not installed")
    with reward_server("--scorer", "ocr", "--max-batch", "4") as (url, _):
        yield url


@pytest.mark.parametrize("form", ["json", "pickle", "auto"])
def test_the_server_speaks_both_forms_to_our_client(ocr_server, form):
    from maskgrpo_plugin.rewards.images import ImageSample
    from maskgrpo_plugin.rewards.images.scorers.remote import make_remote

    scorer = make_remote(url=ocr_server, format=form)
    assert scorer.settings.format == ("pickle" if form == "pickle" else "json")
    image = text_image("Hello World")
    prompts = ['says "Hello World"', 'says "Goodbye"', "says nothing"]
    found = asyncio.run(scorer.score([ImageSample(image, prompt) for prompt in prompts]))
    assert found[0] == 1.0 and found[1] < 0.4 and np.isnan(found[2])


def post(url, body, kind="application/octet-stream"):
    request = urllib.request.Request(url, data=body, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_server_understands_published_clients(ocr_server):
    import io
    import pickle

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(text_image("Hello World")).save(buffer, format="JPEG")
    # published clients send prompts as a numpy array of strings
    body = pickle.dumps({"images": [buffer.getvalue()], "prompts": np.array(['says "Hello World"'])})
    status, answer = post(ocr_server, body)
    assert status == 200 and pickle.loads(answer)["scores"] == [1.0] == pickle.loads(answer)["outputs"]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_server_runs_nothing_and_names_what_is_wrong(ocr_server, tmp_path):
    import pickle

    victim = tmp_path / "victim"
    for body, kind, message in [
        (pickle.dumps({"images": [Payload(victim)]}), "application/octet-stream", b"posix.mkdir"),
        (pickle.dumps({"images": [b"no image"]}), "application/octet-stream", b"cannot identify"),
        (pickle.dumps({"pictures": []}), "application/octet-stream", b"images"),
        (b'{"images": ["!!"]}', "application/json", b"not a request"),
        (b"[]", "application/json", b"not a request"),
        (b"", "application/octet-stream", b"not a readable pickle"),
    ]:
        status, answer = post(ocr_server, body, kind)
        assert status == 400 and message in answer
    assert not victim.exists()
    assert post(ocr_server, pickle.dumps({"images": []}))[0] == 200


def test_the_server_refuses_an_unknown_scorer_in_one_line():
    command = [sys.executable, str(ROOT / "examples/reward_server/server.py"), "--scorer", "sharpness"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert (
        result.stderr.strip()
        .splitlines()[-1]
        .startswith("--scorer sharpness: scorer='sharpness' is not usable; unknown scorer; available: aesthetic")
    )

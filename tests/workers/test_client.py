"""The client of the rollout servers: whole answers with all that the server says, and life without a dead server."""

import asyncio
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.router import GlobalRequestLoadBalancer

from maskgrpo_plugin.workers.rollout import client as client_module
from maskgrpo_plugin.workers.rollout.client import WholeAnswerClient


def handle(target):
    """A stand-in for a Ray handle: each method of `target` behind `.remote`."""

    class Handle:
        def __getattr__(self, name):
            async def call(*args, **options):
                result = getattr(target, name)(*args, **options)
                return await result if asyncio.iscoroutine(result) else result

            def remote(*args, **options):
                return asyncio.ensure_future(call(*args, **options))

            return SimpleNamespace(remote=remote)

    return Handle()


class Server:
    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    async def generate(self, **request):
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def whole(step=4):
    fields = {"global_steps": step, "reveal_step": [0, 1], "image": "pixels"}
    return TokenOutput(token_ids=[5, 6], stop_reason="completed", extra_fields=fields)


def ask(servers):
    balancer = GlobalRequestLoadBalancer({name: handle(server) for name, server in servers.items()})
    client = WholeAnswerClient(SimpleNamespace(), handle(balancer))

    async def go():
        return await client.generate("r", prompt_ids=[1], sampling_params={"temperature": 1.0}, is_image=True)

    return asyncio.run(asyncio.wait_for(go(), 20)), balancer


def test_everything_that_the_server_says_arrives_also_after_aborts(monkeypatch):
    monkeypatch.setattr(client_module, "ASK_AGAIN_S", 0.0)
    aborted = TokenOutput(token_ids=[], stop_reason="aborted", extra_fields={"global_steps": 3})
    server = Server(aborted, aborted, whole())
    output, balancer = ask({"one": server})
    assert output.token_ids == [5, 6]
    assert output.extra_fields["reveal_step"] == [0, 1] and output.extra_fields["image"] == "pixels"
    assert output.extra_fields["min_global_steps"] == output.extra_fields["max_global_steps"] == 4
    assert len(server.asked) == 3 and all(request["is_image"] for request in server.asked)
    assert balancer.get_total_inflight() == 0


def test_another_server_answers_for_one_that_died():
    dead, alive = Server(ActorDiedError()), Server(whole())
    for _ in range(4):  # the balancer draws one at random
        output, _ = ask({"dead": dead, "alive": alive})
        assert output.token_ids == [5, 6]
    assert len(alive.asked) == 4


def test_where_all_died_the_error_names_them():
    with pytest.raises(RuntimeError, match=r"every rollout server died: (one, two|two, one)"):
        ask({"one": Server(ActorDiedError()), "two": Server(ActorDiedError())})


def test_an_error_of_the_request_is_the_requests_own():
    with pytest.raises(ValueError, match="token 9"):
        ask({"one": Server(ValueError("token 9"))})
    assert issubclass(ActorDiedError, ray.exceptions.RayActorError)

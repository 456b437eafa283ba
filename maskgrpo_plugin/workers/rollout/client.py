"""How a completion is asked of the rollout servers: whole answers, and none of a server that died."""

import asyncio
import logging
from typing import Any

from ray.exceptions import RayActorError
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

logger = logging.getLogger(__name__)

ASK_AGAIN_S = 0.2


class WholeAnswerClient(LLMServerClient):
    """verl's client for servers that answer as a whole.

    An answer that an abort took away is asked for again, as from verl's `FullyAsyncLLMServerClient`; that one puts
    partial answers together and so keeps tokens alone, while an image, the order of revealing and whatever else the
    server says is in `extra_fields`. A server that died is taken out of the balancer, and another one is asked.

    Attributes:
        dead: names of the servers that this client saw die.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.dead: list[str] = []

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **kwargs: Any
    ) -> TokenOutput:
        """Ask until a server answers; see `RolloutServer.generate`.

        Raises:
            RuntimeError: every server died, with the names of those that this client saw.
        """
        while True:
            server_id, server = await self._next_server(request_id)
            try:
                output = await server.generate.remote(
                    request_id=request_id, prompt_ids=prompt_ids, sampling_params=sampling_params, **kwargs
                )
            except RayActorError as error:
                if server_id not in self.dead:
                    self.dead.append(server_id)
                logger.error("the rollout server %s died: %s", server_id, error)
                await self._load_balancer.remove_servers.remote([server_id])
                continue
            finally:
                self._release_server(server_id, request_id=request_id)
            if output.stop_reason not in ("aborted", "abort"):
                step = output.extra_fields.get("global_steps")
                output.extra_fields |= {"min_global_steps": step, "max_global_steps": step}
                return output
            await asyncio.sleep(ASK_AGAIN_S)

    async def _next_server(self, request_id: str) -> tuple[str, Any]:
        try:
            return await self._acquire_server(request_id)
        except RuntimeError as error:
            if "No available servers" not in str(error):
                raise
            names = ", ".join(self.dead) or "another process saw which, see above in the log"
            raise RuntimeError(f"every rollout server died: {names}") from error

"""The Ray server of an autoregressive baseline: ancestral sampling on transformers."""

from verl.workers.rollout.replica import TokenOutput

from maskgrpo_plugin.workers.rollout.batches import noise, pad_prompts
from maskgrpo_plugin.workers.rollout.left_to_right import decode_left_to_right
from maskgrpo_plugin.workers.rollout.request_queue import Batch
from maskgrpo_plugin.workers.rollout.server import RolloutServer


class TransformersServer(RolloutServer):
    """Serves an autoregressive transformers model by ancestral sampling with a key-value cache."""

    def _generate(self, batch: Batch) -> None:
        requests = batch.requests
        input_ids, attention_mask = pad_prompts([each.prompt_ids for each in requests], self.pad_token_id, self.device)
        responses = decode_left_to_right(
            self.model,
            input_ids,
            attention_mask,
            noise([each.seed for each in requests], self.device),
            temperature=batch.kind.temperature,
            response_length=self.config.response_length,
            stop_token_ids=self.stop_token_ids,
        )
        self.queue.metrics.model_calls += max(map(len, responses))
        self.queue.metrics.row_model_calls += sum(map(len, responses))
        for request, response in zip(requests, responses, strict=True):
            fields = {"model_calls": len(response)}
            self._answer(batch, request, TokenOutput(token_ids=response, stop_reason="completed", extra_fields=fields))

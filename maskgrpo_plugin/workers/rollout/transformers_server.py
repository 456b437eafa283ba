"""The Ray server of an autoregressive baseline: ancestral sampling on transformers."""

import torch
from verl.workers.rollout.replica import TokenOutput

from maskgrpo_plugin.workers.rollout.request_queue import Batch
from maskgrpo_plugin.workers.rollout.server import RolloutServer


class TransformersServer(RolloutServer):
    """Serves an autoregressive transformers model by ancestral sampling with a key-value cache."""

    def _generate(self, batch: Batch) -> None:
        input_ids, attention_mask, generators = self._inputs(batch.requests)
        temperature = batch.kind.temperature
        rows = input_ids.shape[0]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        stops = torch.tensor(self.stop_token_ids, device=self.device)
        alive = torch.ones(rows, dtype=torch.bool, device=self.device)
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        responses: list[list[int]] = [[] for _ in range(rows)]
        cache, tokens = None, input_ids
        for _ in range(self.config.response_length):
            output = self.model(
                input_ids=tokens,
                attention_mask=attention_mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            self.queue.metrics.model_calls += 1
            self.queue.metrics.row_model_calls += int(alive.sum())
            cache = output.past_key_values
            chosen = self._choose(output.logits[:, -1].float(), generators, temperature, alive)
            for row in alive.nonzero().flatten().tolist():
                responses[row].append(int(chosen[row]))
            alive &= ~torch.isin(chosen, stops)
            if not alive.any():
                break
            tokens = chosen.unsqueeze(-1)
            positions = positions[:, -1:] + 1
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(rows, 1)], dim=-1)
        for request, response in zip(batch.requests, responses, strict=True):
            fields = {"model_calls": len(response)}
            self._answer(batch, request, TokenOutput(token_ids=response, stop_reason="completed", extra_fields=fields))

    @staticmethod
    def _choose(
        logits: torch.Tensor, generators: list[torch.Generator], temperature: float, alive: torch.Tensor
    ) -> torch.Tensor:
        """Greedy at temperature 0, else one draw per row from the row's own generator; (B, V) -> (B,)."""
        if temperature == 0:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits / temperature, dim=-1)
        draws = [
            torch.multinomial(row, 1, generator=generator) if living else row.new_zeros(1, dtype=torch.long)
            for row, generator, living in zip(probabilities, generators, alive.tolist(), strict=True)
        ]
        return torch.cat(draws)

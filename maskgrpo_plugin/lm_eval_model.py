"""The model `maskgrpo` of lm-evaluation-harness: `python -m maskgrpo_plugin.lm_eval_model --model maskgrpo …`.

The harness (0.4.13) finds models in a list of its own and loads none from elsewhere, so its command is started here,
with the model registered; all arguments are those of `lm_eval`.
"""

import asyncio
import atexit
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import verl  # noqa: F401  (loads the plugin into its registries)
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

import maskgrpo_plugin.registration  # noqa: F401
from maskgrpo_plugin.config import DiffusionRolloutConfig, SamplerSettings
from maskgrpo_plugin.diffusion.monte_carlo import conditional_log_likelihood
from maskgrpo_plugin.diffusion.samplers import SAMPLERS, build_sampler, option_names
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.evaluation.checkpoints import resolve_checkpoint, temporary_merged_dir
from maskgrpo_plugin.evaluation.servers import is_diffusion, load_model_config, rollout_config
from maskgrpo_plugin.models.registry import block_length_of
from maskgrpo_plugin.models.special_tokens import answer_length
from maskgrpo_plugin.sampler_arguments import DEFAULT_BLOCK, DEFAULT_SAMPLERS
from maskgrpo_plugin.workers.rollout.requests import request_seed
from maskgrpo_plugin.workers.rollout.server import DiffusionServer

logger = logging.getLogger(__name__)

IGNORED = ("max_batch_size", "device")
Encoded = tuple[tuple[str, str], list[int], list[int]]


@register_model("maskgrpo")
class MaskGRPOLM(TemplateLM):
    """A masked diffusion model, for tasks that generate and for tasks that compare likelihoods.

    Texts come from the rollout server. Likelihoods are the Monte-Carlo estimate of arXiv 2502.09992, Eq. 6.

    Args:
        pretrained: a published folder or hub name, a verl checkpoint, or a LoRA adapter; as `--model` of
            `maskgrpo_plugin.evaluate`.
        base_model: what a LoRA adapter goes onto.
        merged_dir: folder for the merged model of a verl checkpoint or adapter, which is used again; default: one in a
            folder of the temporary folder that is this user's alone.
        max_gen_toks: tokens of a text where the task names none.
        steps: denoising steps of a text; None: half of its tokens. A block-causal checkpoint has `steps_per_block`.
        block_length: tokens per block; None: 32, or those of a block-causal checkpoint. Texts of others are made in
            whole blocks and cut.
        mc_samples: masks of a likelihood.
        check_greedy: whether to find out if greedy decoding gives the text whose likelihood is asked, which takes a
            forward pass for each of its tokens; tasks such as LAMBADA need it. False answers no.
        max_length: longest sequence; None: the model's positions.
        add_bos_token: put the tokenizer's bos before each text that has no chat template.
        batch_size: largest number of sequences per forward pass.
        dtype: torch's name of one; None: bfloat16, on the CPU float32.
        seed: of noise and masks.
        **options: further options of the sampler, `semi_autoregressive` or `block_causal`, such as `ordering`.

    Raises:
        OptionError: an argument that cannot work.
    """

    def __init__(
        self,
        pretrained: str,
        base_model: str | None = None,
        merged_dir: str | None = None,
        max_gen_toks: int = 256,
        steps: int | None = None,
        block_length: int | None = None,
        mc_samples: int = 128,
        check_greedy: bool = True,
        max_length: int | None = None,
        add_bos_token: bool = False,
        batch_size: int | str = 32,
        dtype: str | None = None,
        seed: int = 0,
        **options: Any,
    ):
        super().__init__()
        known = {*IGNORED, *(option for name in SAMPLERS for option in option_names(name))}
        for name, value in options.items():
            if name not in known:
                raise OptionError(f"--model_args {name}", value, "no such argument; see maskgrpo_plugin.lm_eval_model")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise OptionError("--batch_size", batch_size, "allowed: whole numbers from 1")
        target = Path(merged_dir) if merged_dir else temporary_merged_dir(pretrained)
        path = resolve_checkpoint(pretrained, target, base_model)
        if not is_diffusion(path):
            raise OptionError("--model_args pretrained", pretrained, "no masked diffusion model; use `--model hf`")
        self.model_config = load_model_config(path)
        self.own_blocks = block_length_of(self.model_config.hf_config)
        self.sampler = DEFAULT_SAMPLERS["text" if self.own_blocks is None else "blocks"]
        for name, value in {**options, **({} if steps is None else {"steps": steps})}.items():
            if name not in IGNORED + option_names(self.sampler):
                allowed = f"{self.sampler} has no such argument; see maskgrpo_plugin.lm_eval_model"
                raise OptionError(f"--model_args {name}", value, allowed)
        self.tokenizer = self.model_config.tokenizer
        self.pretrained, self.max_gen_toks, self.steps = pretrained, int(max_gen_toks), steps
        self.block_length = None if block_length is None else int(block_length)
        self.sampler_options = {name: value for name, value in options.items() if name not in IGNORED}
        self.mc_samples, self.check_greedy, self.add_bos_token = int(mc_samples), check_greedy, add_bos_token
        self.batch_size, self.dtype, self.seed = int(batch_size), dtype, int(seed)
        self.max_length = int(max_length or self.model_config.hf_config.max_position_embeddings)
        self.server = DiffusionServer(self._rollout_config(self.max_gen_toks, 0.0), self.model_config, 0)
        self._loop = asyncio.new_event_loop()
        atexit.register(_close, self._loop)

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the tokenizer's bos, else its end token."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's cache of requests."""
        return self.pretrained.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's chat template where the harness asks for it."""
        return (self.tokenizer.chat_template or "") if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation; without `add_generation_prompt` its last message is left open."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text; special tokens are added only by `add_bos_token`, and never with False."""
        ids = list(self.tokenizer(string, add_special_tokens=False)["input_ids"])
        bos = self.tokenizer.bos_token_id
        wanted = self.add_bos_token and add_special_tokens is not False and bos is not None
        return [bos, *ids] if wanted and ids[:1] != [bos] else ids

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first of each request's `until` or the first stop token, in the order of the requests."""
        settings = [normalize_gen_kwargs(dict(request.args[1]), self.max_gen_toks) for request in requests]
        answers: dict[int, str] = {}
        kinds = [(int(s["max_gen_toks"]), float(s.get("temperature", 0.0))) for s in settings]
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generations") as bar:
            for kind in dict.fromkeys(kinds):
                numbers = [number for number, other in enumerate(kinds) if other == kind]
                work = self._generate([(n, requests[n].args[0], settings[n]["until"]) for n in numbers], *kind, bar)
                answers |= self._loop.run_until_complete(work)
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, answers[number])
        return [answers[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows of the longest sequence where a text is longer."""
        results = []
        for request in tqdm(requests, disable=disable_tqdm, desc="likelihoods"):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            total = sum(self._log_likelihood(context, continuation) for context, continuation in pairs)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            results.append(total)
        return results

    def _loglikelihood_tokens(
        self, requests: list[Encoded], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        results = []
        for texts, context, continuation in tqdm(requests, disable=disable_tqdm, desc="likelihoods"):
            context = context[max(0, len(context) + len(continuation) - self.max_length) :]
            found = (self._log_likelihood(context, continuation), self._is_greedy(context, continuation))
            self.cache_hook.add_partial("loglikelihood", texts, found)
            results.append(found)
        return results

    def _log_likelihood(self, context: Sequence[int], continuation: Sequence[int]) -> float:
        if not continuation:
            return 0.0
        return conditional_log_likelihood(
            self.server.model,
            self._tensor(context),
            self._tensor(continuation),
            mask_token_id=self.server.family.mask_token_id,
            samples=self.mc_samples,
            batch_size=self.batch_size,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _is_greedy(self, context: Sequence[int], continuation: Sequence[int]) -> bool:
        """Whether revealing the most probable token at a time gives the continuation."""
        if not self.check_greedy or not continuation:
            return not continuation
        length = len(continuation)
        steps = {} if self.own_blocks is not None else {"steps": length}
        sampler = build_sampler(self.sampler, response_length=length, **steps)
        with torch.inference_mode():
            output = sampler.generate(
                self.server.model, self._tensor(context)[None], mask_token_id=self.server.family.mask_token_id
            )
        return output.sequences[0, -length:].tolist() == list(continuation)

    async def _generate(
        self, asked: Sequence[tuple[int, str, list[str]]], tokens: int, temperature: float, bar: Any
    ) -> dict[int, str]:
        config = self._rollout_config(tokens, temperature)
        await self.server.reconfigure(config)

        async def one(number: int, context: str, until: list[str]) -> tuple[int, str]:
            prompt_ids = self.tok_encode(context)[-(self.max_length - config.response_length) :]
            seed = request_seed(self.seed, 0, number, 0, prompt_ids)
            output = await self.server.generate(str(number), prompt_ids, {"temperature": temperature, "seed": seed})
            ids = output.token_ids[:tokens]
            end = answer_length(ids, self.server.stop_token_ids)
            bar.update()
            text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
            return number, postprocess_generated_text(text, until, None)

        return dict(await asyncio.gather(*(one(*each) for each in asked)))

    def _rollout_config(self, tokens: int, temperature: float) -> DiffusionRolloutConfig:
        length, defaults = tokens, {} if self.block_length is None else {"block_length": self.block_length}
        if self.own_blocks is None:
            block = min(self.block_length or DEFAULT_BLOCK, tokens)
            length = -(-tokens // block) * block
            defaults = {"steps": self.steps or max(length // block, length // 2), "block_length": block}
        sampler = SamplerSettings(name=self.sampler, options={**defaults, **self.sampler_options})
        try:
            sampler.build(response_length=length, temperature=temperature)
        except OptionError as error:
            raise OptionError(f"--model_args {error.key}", error.value, error.allowed) from None
        return rollout_config(
            sampler, response_length=length, temperature=temperature, batch_size=self.batch_size, dtype=self.dtype
        )

    def _tensor(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(list(ids), dtype=torch.long, device=self.server.device)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """End the server's queue, which waits for requests for ever."""

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop.run_until_complete(end())
    loop.close()


def main() -> None:
    """Run lm-evaluation-harness's own command."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()

"""MMaDA (arXiv 2505.15809): text and images in one vocabulary, prompts of a fixed length before an image."""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from maskgrpo_plugin.models.families.base import ImageFamily, Messages, Prompt, pad_left

PAD = "[iPAD]"
TEXT_TO_IMAGE = "<|t2i|>"
UNDERSTANDING = "<|mmu|>"
IMAGE_START, IMAGE_END = "<|soi|>", "<|eoi|>"


class MMaDAFamily(ImageFamily):
    """MMaDA's models. The ids below are those of LLaDA's reserved tokens that MMaDA took.

    A text-to-image prompt is padded on the left to the text length. The published MMaDA-8B-Base was trained with this
    padding attended to, like any other token, and the published images come from such forward passes; MMaDA's code
    later hid the padding. The config's `attend_to_padding` chooses, and `Prompt.prompt_mask` says so to all that
    follows: false (default) leaves the padding out; true keeps it, in sampler, estimation and server alike. A run sets
    it by `+actor_rollout_ref.model.override_config.attend_to_padding=true`, or in the checkpoint's config.json.
    """

    name = "mmada"
    model_types = ("mmada",)
    published_mask_token_id = 126336
    published_special_tokens = {  # noqa: RUF012
        IMAGE_START: 126084,
        IMAGE_END: 126085,
        TEXT_TO_IMAGE: 126088,
        UNDERSTANDING: 126089,
        PAD: 126093,
    }

    def __init__(self, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase):
        super().__init__(config, tokenizer)
        self.attend_to_padding: bool = getattr(config, "attend_to_padding", False)

    def text_to_image(self, text: str, grid: tuple[int, int] | None = None) -> Prompt:
        """`[iPAD]`…, `<|t2i|>`, bos, text, eos to the text length; `<|soi|>`; image tokens; `<|eoi|>`.

        See `ImageFamily.text_to_image`; the unconditional prompt is the same with an empty text.
        """
        rows, columns = grid or self.default_grid()
        prompt_ids, prompt_mask = self._opening(text)
        uncond_ids, uncond_mask = self._opening("")
        count = rows * columns
        return Prompt(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=(self.mask_token_id,) * count + (self.token_id(IMAGE_END),),
            response_mask=(1,) * count + (0,),
            uncond_ids=uncond_ids,
            uncond_mask=uncond_mask,
        )

    def understanding(
        self,
        codes: Sequence[int],
        messages: Messages,
        response_length: int,
        grid: tuple[int, int] | None = None,
        **template_kwargs: Any,
    ) -> Prompt:
        """`<|mmu|>`, `<|soi|>`, image tokens, `<|eoi|>`, the conversation with its bos, masks for the answer.

        See `ImageFamily.understanding`; the layout does not depend on the grid.
        """
        if grid is not None and grid[0] * grid[1] != len(codes):
            raise ValueError(f"{len(codes)} image codes do not fill a grid of {grid[0]} × {grid[1]}")
        chat = self.encode_chat(messages, **template_kwargs)
        bos = self._bos()
        ids = [
            self.token_id(UNDERSTANDING),
            self.token_id(IMAGE_START),
            *self.image_token_ids(codes),
            self.token_id(IMAGE_END),
            *([] if chat[:1] == [bos] else [bos]),
            *chat,
        ]
        return self.finish_text(ids, response_length)

    def _opening(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens up to and with `<|soi|>`, and their mask: 1 = token, or padding that is attended to."""
        eos = self.tokenizer.eos_token_id
        ids = [self.token_id(TEXT_TO_IMAGE), self._bos(), *self.encode(text), eos]
        self.check_text_length(text, len(ids))
        ids.append(self.token_id(IMAGE_START))
        padded, mask = pad_left(ids, self.text_length + 1, self.token_id(PAD))
        return padded, (1,) * len(padded) if self.attend_to_padding else mask

    def _bos(self) -> int:
        if self.tokenizer.bos_token_id is None or self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer names no bos or no eos token; MMaDA's prompts need both")
        return self.tokenizer.bos_token_id

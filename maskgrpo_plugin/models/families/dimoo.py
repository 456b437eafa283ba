"""Lumina-DiMOO (arXiv 2510.06308): LLaDA's classes with image tokens; a newline token ends each row of an image."""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from maskgrpo_plugin.models.families.base import ImageFamily, Messages, Prompt, pad_left
from maskgrpo_plugin.models.grids import filled_grid

IMAGE_START, IMAGE_END = "<image>", "</image>"
ANSWER_START, ANSWER_END = "<answer>", "</answer>"
NEWLINE = "<newline>"
UNCONDITION = "<uncondition>"
ARCHITECTURE = "LLaDAForMultiModalGeneration"
SYSTEM_PROMPTS = {"text_to_image": "Generate an image according to the text prompt."}


class DiMOOFamily(ImageFamily):
    """Lumina-DiMOO's models. A checkpoint is told from LLaDA's by its architecture, or by its `<uncondition>` token.

    An answer ends with `</answer>`, which also ends a text. The config's `system_prompts` are texts by task:
    `text_to_image`, and `understanding`, which has no default: set it to the one that the checkpoint was trained with.
    They are set in the checkpoint's config.json, or by a run:
    `+actor_rollout_ref.model.override_config.system_prompts.understanding='…'`.
    """

    name = "dimoo"
    model_types = ("llada",)
    published_mask_token_id = 126336
    published_text_length = 1024
    published_special_tokens = {  # noqa: RUF012
        NEWLINE: 126084,
        IMAGE_START: 126349,
        IMAGE_END: 126350,
        UNCONDITION: 126351,
        ANSWER_START: 126354,
        ANSWER_END: 126355,
    }
    end_tokens = (ANSWER_END,)

    @classmethod
    def recognises(cls, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether a checkpoint is DiMOO's; one saved by the plugin names LLaDA's class, so the tokenizer counts too."""
        if not super().recognises(config, tokenizer):
            return False
        return ARCHITECTURE in (config.architectures or ()) or UNCONDITION in tokenizer.get_vocab()

    def text_to_image(self, text: str, grid: tuple[int, int] | None = None) -> Prompt:
        """System and user text; answer and image start; rows of image tokens with newlines; image and answer end.

        See `ImageFamily.text_to_image`; the unconditional prompt has `<uncondition>` for the text, and the shorter of
        the two is padded on the left.
        """
        rows, columns = grid or self.default_grid()
        system = self._system("text_to_image")
        opening = [self.token_id(ANSWER_START), self.token_id(IMAGE_START)]
        cond = self.encode(f"{system}<user>{text}</user>")
        uncond = self.encode(f"{system}<user>{UNCONDITION}</user>")
        self.check_text_length(text, len(cond))
        length = max(len(cond), len(uncond)) + len(opening)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        prompt_ids, prompt_mask = pad_left(cond + opening, length, pad)
        uncond_ids, uncond_mask = pad_left(uncond + opening, length, pad)
        image = self._with_newlines([self.mask_token_id] * (rows * columns), columns)
        closing = [self.token_id(IMAGE_END), self.token_id(ANSWER_END)]
        return Prompt(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=(*image, *closing),
            response_mask=tuple(int(token == self.mask_token_id) for token in (*image, *closing)),
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
        """System text; user with the question and the image; answer start; masks for the answer; answer end.

        See `ImageFamily.understanding`; the layout has no chat template.
        """
        tokens = self.image_token_ids(codes)
        _, columns = filled_grid(len(tokens), grid)
        question = "\n".join(message["content"] for message in messages if message["role"] == "user")
        ids = [
            *self.encode(f"{self._system('understanding')}<user>{question}"),
            self.token_id(IMAGE_START),
            *self._with_newlines(tokens, columns),
            self.token_id(IMAGE_END),
            *self.encode("</user>"),
            self.token_id(ANSWER_START),
        ]
        return self.finish_text(ids, response_length, closing=(self.token_id(ANSWER_END),))

    def _system(self, task: str) -> str:
        prompts = {**SYSTEM_PROMPTS, **(getattr(self.config, "system_prompts", None) or {})}
        if task not in prompts:
            raise ValueError(
                f"config.system_prompts names no {task!r}; set the one that the checkpoint was trained with"
            )
        return f"<system>{prompts[task]}</system>"

    def _with_newlines(self, tokens: list[int], columns: int) -> list[int]:
        newline = self.token_id(NEWLINE)
        rows = [[*tokens[start : start + columns], newline] for start in range(0, len(tokens), columns)]
        return [token for row in rows for token in row]

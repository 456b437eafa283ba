"""From a data row to a request: the prompt that the checkpoint's family lays out, its seed, what a server is given."""

import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.random import combine_seed
from maskgrpo_plugin.diffusion.samplers.base import hide_prompt
from maskgrpo_plugin.models.families import Family, ImageFamily
from maskgrpo_plugin.models.families.base import Messages, Prompt, encode_chat, visible
from maskgrpo_plugin.models.families.base import pad_left as pad_row
from maskgrpo_plugin.models.image_tokenizers import image_tokenizer_config

if TYPE_CHECKING:
    from maskgrpo_plugin.config import ImageSettings

MODALITIES = ("text", "t2i", "mmu")


def request_seed(run_seed: int, step: int, row: int, session: int, prompt_ids: Sequence[int]) -> int:
    """Seed of one completion: a function of the run, the step, the data row, the completion's number and the prompt.

    Returns:
        A whole number from 0 below 2^63, the same in a resumed run and on any number of workers.
    """
    return combine_seed(run_seed, step, row, session, zlib.crc32(array("q", prompt_ids).tobytes()))


@dataclass(frozen=True)
class CanvasRequest:
    """What a request has beside its prompt where more than masks follows it.

    Attributes:
        canvas_ids: R tokens after the prompt: mask tokens where the model writes, and what the family fixes.
        uncond_ids: of an image under guidance: the prompt without its text; unpadded, may be empty.
        is_image: whether an image is written, or text.
    """

    canvas_ids: tuple[int, ...]
    uncond_ids: tuple[int, ...] = ()
    is_image: bool = False


@dataclass(frozen=True)
class RowRequest:
    """A data row as a server and the training take it.

    Attributes:
        prompt_ids: P tokens that the model attends to.
        response_mask: R, 1 where the model writes, 0 where the family fixes a token.
        uncond_ids: the prompt without its text as the model attends to it, for guidance; empty for an autoregressive
            checkpoint.
        canvas: of an image, and of a text in whose response the family fixes tokens.
        prefix_ids: the end of `prompt_ids` that is the beginning of the answer.
    """

    prompt_ids: list[int]
    response_mask: list[int]
    uncond_ids: list[int]
    canvas: CanvasRequest | None = None
    prefix_ids: tuple[int, ...] = ()

    @property
    def new_tokens(self) -> int:
        """Tokens that the model writes."""
        return sum(self.response_mask)

    @property
    def arguments(self) -> dict[str, Any]:
        """What a server's `generate` takes besides the prompt's tokens."""
        return {} if self.canvas is None else asdict(self.canvas)


@dataclass(frozen=True)
class RequestBuilder:
    """Makes the requests of one checkpoint.

    Attributes:
        tokenizer: the checkpoint's.
        family: the checkpoint's; None where it is autoregressive, which takes texts alone.
        grid: rows and columns of image tokens; None: the checkpoint's square.
        template_kwargs: settings of the chat template.
        longest_text: most tokens of a text's prompt; None: any number.
    """

    tokenizer: Any
    family: Family | None
    grid: tuple[int, int] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    longest_text: int | None = None

    def build(
        self, messages: Messages, extra_info: Mapping[str, Any], response_length: int, *, answer_prefix: str = ""
    ) -> RowRequest:
        """The request of one data row.

        Args:
            messages: the conversation; for an image its last message is the text to draw.
            extra_info: of the row; `modality` is `text` (default), `t2i`, or `mmu` with the image's codes in
                `image_codes`.
            response_length: tokens of a text answer, with those that the family closes it by.
            answer_prefix: the beginning of a text answer, which is given to the model.

        Raises:
            ValueError: an unknown modality, one that the checkpoint does not have, or a prompt that does not fit it
                or is longer than `longest_text`.
        """
        modality = extra_info.get("modality") or "text"
        if modality not in MODALITIES:
            raise ValueError(f"extra_info.modality={modality!r}: allowed are {', '.join(MODALITIES)}")
        prefix: tuple[int, ...] = ()
        if answer_prefix and modality != "t2i":
            prefix = tuple(self.tokenizer(answer_prefix, add_special_tokens=False)["input_ids"])
        if self.family is None:
            if modality != "text":
                raise ValueError(f"extra_info.modality={modality!r}: an autoregressive checkpoint takes texts alone")
            ids = self._checked(encode_chat(self.tokenizer, messages, **self.template_kwargs))
            return RowRequest([*ids, *prefix], [1] * response_length, [], prefix_ids=prefix)
        prompt = self._lay_out(self.family, modality, messages, extra_info, response_length)
        ids = visible(prompt.prompt_ids, prompt.prompt_mask)
        ids = [*(self._checked(ids) if modality == "text" else ids), *prefix]
        uncond = visible(prompt.uncond_ids, prompt.uncond_mask)
        canvas = None
        if modality == "t2i":
            canvas = CanvasRequest(prompt.response_ids, tuple(uncond), is_image=True)
        elif not all(prompt.response_mask):
            canvas = CanvasRequest(prompt.response_ids)
        if modality != "t2i" and not uncond:
            uncond = hide_prompt(torch.tensor(ids), self.family.mask_token_id).tolist()
        return RowRequest(ids, list(prompt.response_mask), uncond, canvas, prefix)

    def _lay_out(
        self, family: Family, modality: str, messages: Messages, extra_info: Mapping[str, Any], response_length: int
    ) -> Prompt:
        if modality == "text":
            return family.text_to_text(messages, response_length, **self.template_kwargs)
        if not isinstance(family, ImageFamily):
            raise ValueError(f"extra_info.modality={modality!r}: models of the family {family.name!r} have no images")
        if modality == "t2i":
            return family.text_to_image(str(messages[-1]["content"]), self.grid)
        codes = [int(code) for code in extra_info["image_codes"]]
        prompt = family.understanding(codes, messages, response_length, **self.template_kwargs)
        closing = len(prompt.response_ids) - response_length
        if closing:
            prompt = family.understanding(codes, messages, response_length - closing, **self.template_kwargs)
        return prompt

    def _checked(self, ids: list[int]) -> list[int]:
        if self.longest_text is not None and len(ids) > self.longest_text:
            raise ValueError(
                f"a prompt of {len(ids)} tokens; rollout.prompt_length={self.longest_text} is the most, and none is cut"
            )
        return ids


_image_tokenizer_config = lru_cache(maxsize=4)(image_tokenizer_config)


def image_grid(image: "ImageSettings", family: Family | None) -> tuple[int, int] | None:
    """Rows and columns of image tokens that `rollout.image` asks for; None: the checkpoint's square.

    Raises:
        ValueError: sides that the image tokenizer does not divide, or one that is not the checkpoint's.
    """
    if not isinstance(family, ImageFamily) or image.height is None or image.width is None:
        return None
    return family.image_grid(_image_tokenizer_config(str(image.tokenizer_path)), image.height, image.width)


def pad_left(rows: Sequence[Sequence[int]], width: int, padding: int) -> tuple[Tensor, Tensor]:
    """Rows of tokens padded on the left to `width`: tokens (B, width), and their mask (B, width) with 1 = token.

    >>> pad_left([(7, 8), (9,)], 3, 0)
    (tensor([[0, 7, 8], [0, 0, 9]]), tensor([[0, 1, 1], [0, 0, 1]]))
    """
    padded = [pad_row(list(row), width, padding) for row in rows]
    tokens = torch.tensor([ids for ids, _ in padded], dtype=torch.long)
    return tokens, torch.tensor([mask for _, mask in padded], dtype=torch.long)

"""What a family is: the special tokens of its checkpoints, and how its prompts are laid out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from maskgrpo_plugin.models.grids import filled_grid
from maskgrpo_plugin.models.special_tokens import mask_token_problem, stop_token_ids

Messages = Sequence[Mapping[str, str]]


class ImageTokenizerConfig(Protocol):
    """What a family must know of an image tokenizer; `MAGVITv2Config` has it."""

    @property
    def codebook_size(self) -> int:
        """Number of codes."""

    @property
    def downsampling(self) -> int:
        """Pixels per token along each side."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image; ValueError for sides it does not divide."""


@dataclass(frozen=True)
class ImageTokens:
    """Where the image tokens lie in the vocabulary.

    Attributes:
        offset: id of code 0.
        codebook_size: number of codes, whose ids follow one another.
        count: number of tokens of an image at the checkpoint's resolution.
    """

    offset: int
    codebook_size: int
    count: int

    @property
    def vocab_slice(self) -> tuple[int, int]:
        """(start, stop) of the ids of image tokens."""
        return self.offset, self.offset + self.codebook_size

    def to_codes(self, tokens: Tensor) -> Tensor:
        """Codes of the ids of image tokens, any shape.

        Raises:
            ValueError: an id that is no image token.
        """
        first, stop = self.vocab_slice
        if tokens.numel() and not first <= int(tokens.min()) <= int(tokens.max()) < stop:
            low, high = int(tokens.min()), int(tokens.max())
            raise ValueError(f"image token ids {low} to {high}: allowed are {first} to {stop - 1}")
        return tokens - first


@dataclass(frozen=True)
class Prompt:
    """A prompt and the canvas that follows it, as token ids.

    An image of two tokens, by MMaDA with a text length of 4:

        prompt_ids      [iPAD] <|t2i|> bos eos <|soi|>        prompt_mask      0 1 1 1 1
        response_ids    mask mask <|eoi|>                     response_mask    1 1 0

    Attributes:
        prompt_ids: the P tokens that stay.
        prompt_mask: P numbers, 1 = token, 0 = padding, which is left out wherever the prompt goes.
        response_ids: the R tokens after them: the mask token where the model is to write, and what stands between and
            after (a newline, the end of the image or of the answer).
        response_mask: R numbers, 1 where the model is to write.
        uncond_ids, uncond_mask: the prompt without its text, for guidance, likewise; empty where the family has none.
    """

    prompt_ids: tuple[int, ...]
    prompt_mask: tuple[int, ...]
    response_ids: tuple[int, ...]
    response_mask: tuple[int, ...]
    uncond_ids: tuple[int, ...] = ()
    uncond_mask: tuple[int, ...] = ()

    @property
    def canvas_ids(self) -> tuple[int, ...]:
        """Prompt and response, P + R tokens."""
        return self.prompt_ids + self.response_ids


class Family:
    """A family bound to one checkpoint; subclasses say how it differs.

    Args:
        config: the checkpoint's config.
        tokenizer: the checkpoint's tokenizer.

    Attributes:
        name: name of the family.
        model_types: transformers' `model_type` of its checkpoints.
        published_mask_token_id: id of the mask token where neither config nor tokenizer names it; None for none.
        published_special_tokens: ids by name in the published checkpoints, for tokens that config and tokenizer do
            not name.
        end_tokens: special tokens that end a text, besides the tokenizer's end and end-of-turn tokens.
        vocabulary: number of rows of the embedding.
        mask_token_id: id of the mask token.
        stop_token_ids: ids that end a text.

    Raises:
        ValueError: the config names no mask token, or one that cannot be it; or an end token has no id.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    published_mask_token_id: ClassVar[int | None] = None
    published_special_tokens: ClassVar[Mapping[str, int]] = {}
    end_tokens: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase):
        self.config = config
        self.tokenizer = tokenizer
        self.vocabulary = self.vocabulary_size(config)
        mask: Any = getattr(config, "mask_token_id", None)
        if mask is None:
            mask = self.default_mask_token_id(tokenizer)
        problem = mask_token_problem(mask, self.vocabulary, tokenizer)
        if problem is not None:
            raise ValueError(f"config mask_token_id={mask!r}: {problem}")
        self.mask_token_id: int = mask
        ends = [self.token_id(token) for token in self.end_tokens]
        self.stop_token_ids: tuple[int, ...] = tuple(dict.fromkeys((*stop_token_ids(tokenizer), *ends)))

    @staticmethod
    def vocabulary_size(config: PretrainedConfig) -> int:
        """Rows of the embedding of a checkpoint with this config."""
        return getattr(config, "embedding_size", None) or config.vocab_size

    @classmethod
    def default_mask_token_id(cls, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """Id of the mask token where the config names none: the tokenizer's, else the published one, else None."""
        return cls.published_mask_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id

    @classmethod
    def recognises(cls, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether a checkpoint is of this family."""
        return config.model_type in cls.model_types

    def token_id(self, name: str) -> int:
        """Id of a special token: the config's `special_token_ids`, else the tokenizer's, else the published one.

        Raises:
            ValueError: none of them has it, or the id is outside the vocabulary.
        """
        given = getattr(self.config, "special_token_ids", None) or {}
        known = given.get(name, self.tokenizer.get_vocab().get(name, self.published_special_tokens.get(name)))
        if known is None:
            raise ValueError(f"special token {name!r}: neither config.special_token_ids nor the tokenizer names it")
        if not 0 <= known < self.vocabulary:
            raise ValueError(
                f"special token {name!r} has the id {known}: allowed are 0 to {self.vocabulary - 1}, the checkpoint's "
                "vocabulary; name its id in the tokenizer or in config.special_token_ids"
            )
        return known

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without anything added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_chat(self, messages: Messages, **template_kwargs: Any) -> list[int]:
        """Token ids of a conversation, see `encode_chat`."""
        return encode_chat(self.tokenizer, messages, **template_kwargs)

    def text_to_text(self, messages: Messages, response_length: int, **template_kwargs: Any) -> Prompt:
        """A conversation, and masks for the answer.

        Args:
            messages: the conversation.
            response_length: number of masks.
            **template_kwargs: see `encode_chat`.

        Raises:
            ValueError: no room for an answer.
        """
        return self.finish_text(self.encode_chat(messages, **template_kwargs), response_length)

    def finish_text(self, prompt_ids: Sequence[int], response_length: int, closing: Sequence[int] = ()) -> Prompt:
        """Put `response_length` masks behind unpadded prompt tokens, and behind those the fixed tokens `closing`.

        Raises:
            ValueError: no room for an answer.
        """
        if response_length < 1:
            raise ValueError(f"response_length={response_length}: allowed are 1 or more")
        return Prompt(
            prompt_ids=tuple(prompt_ids),
            prompt_mask=(1,) * len(prompt_ids),
            response_ids=(self.mask_token_id,) * response_length + tuple(closing),
            response_mask=(1,) * response_length + (0,) * len(closing),
        )


class ImageFamily(Family, ABC):
    """A family that also writes and reads images as tokens; subclasses lay out the prompts.

    Attributes:
        image: where the image tokens lie.
        text_length: most tokens of a text-to-image prompt before the image.

    Raises:
        ValueError: the image tokens do not fit the vocabulary.
    """

    published_codebook_size: ClassVar[int] = 8192
    published_image_tokens: ClassVar[int] = 1024
    published_text_length: ClassVar[int] = 257

    def __init__(self, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase):
        super().__init__(config, tokenizer)
        offset = len(tokenizer) + getattr(config, "num_new_special_tokens", 0)
        codebook = getattr(config, "codebook_size", self.published_codebook_size)
        if offset + codebook > self.vocabulary:
            raise ValueError(
                f"config codebook_size={codebook}: with the {offset} tokens of the tokenizer before it, it passes the "
                f"vocabulary of {self.vocabulary}; allowed are 1 to {self.vocabulary - offset}"
            )
        self.image = ImageTokens(offset, codebook, getattr(config, "num_vq_tokens", self.published_image_tokens))
        self.text_length: int = getattr(config, "max_text_length", self.published_text_length)

    def image_grid(self, image_tokenizer: ImageTokenizerConfig, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image that the checkpoint's image tokenizer makes.

        Args:
            image_tokenizer: config of the image tokenizer.
            height, width: sides of the image in pixels.

        Raises:
            ValueError: a codebook that is not the checkpoint's, or sides that the tokenizer does not divide.
        """
        if image_tokenizer.codebook_size != self.image.codebook_size:
            raise ValueError(
                f"the image tokenizer has {image_tokenizer.codebook_size} codes; allowed for this checkpoint are "
                f"{self.image.codebook_size}, its config's codebook_size"
            )
        return image_tokenizer.grid(height, width)

    def default_grid(self) -> tuple[int, int]:
        """The square grid of the checkpoint's image tokens.

        Raises:
            ValueError: their number is no square.
        """
        try:
            return filled_grid(self.image.count)
        except ValueError:
            raise ValueError(
                f"config num_vq_tokens={self.image.count} is no square; give the grid of the image"
            ) from None

    @abstractmethod
    def text_to_image(self, text: str, grid: tuple[int, int] | None = None) -> Prompt:
        """A text, and masks for the image's tokens.

        Args:
            text: what the image shows.
            grid: rows and columns of image tokens; None: `default_grid`.

        Raises:
            ValueError: the text is longer than the checkpoint's prompts.
        """

    @abstractmethod
    def understanding(
        self,
        codes: Sequence[int],
        messages: Messages,
        response_length: int,
        grid: tuple[int, int] | None = None,
        **template_kwargs: Any,
    ) -> Prompt:
        """An image, a conversation about it, and masks for the answer.

        Args:
            codes: the image's codes in [0, codebook size), row by row.
            messages: the conversation; the last message is the user's.
            response_length: number of masks.
            grid: rows and columns of the image; None: a square.
            **template_kwargs: see `encode_chat`; of no effect where a family's layout has no chat template.

        Raises:
            ValueError: a code outside the codebook, codes that fill no such grid, or no room for an answer.
        """

    def image_token_ids(self, codes: Sequence[int]) -> list[int]:
        """Token ids of an image's codes.

        Raises:
            ValueError: no codes, or one outside the codebook.
        """
        wrong = [code for code in codes if not 0 <= code < self.image.codebook_size]
        if wrong or not codes:
            shown = wrong[0] if wrong else "none"
            raise ValueError(f"image codes ({shown}): allowed are 0 to {self.image.codebook_size - 1}")
        return [code + self.image.offset for code in codes]

    def check_text_length(self, text: str, used: int) -> None:
        """Raise ValueError where a prompt of `used` tokens passes the checkpoint's text length."""
        if used > self.text_length:
            shown = text if len(text) <= 40 else f"{text[:40]}…"
            raise ValueError(
                f"the prompt {shown!r} takes {used} tokens with its special tokens; allowed are {self.text_length}, "
                "the text length of the checkpoint"
            )


def encode_chat(tokenizer: Any, messages: Messages, **template_kwargs: Any) -> list[int]:
    """Token ids of a conversation as the tokenizer's chat template renders it, up to the assistant's turn."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **template_kwargs)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def pad_left(ids: list[int], length: int, pad_token_id: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pad tokens on the left to `length`; returns the ids and their mask (1 = token, 0 = padding)."""
    missing = length - len(ids)
    return (pad_token_id,) * missing + tuple(ids), (0,) * missing + (1,) * len(ids)


def visible(ids: Sequence[int], mask: Sequence[int]) -> list[int]:
    """The tokens that the family's mask lets the model attend to; its padding stays where the mask says 1."""
    return [token for token, kept in zip(ids, mask, strict=True) if kept]

"""The data sources of a supervised run: their files read into examples."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, ListConfig, OmegaConf
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from maskgrpo_plugin.data.preference_rows import PairReader
from maskgrpo_plugin.data.row_files import SUFFIXES, json_rows
from maskgrpo_plugin.data.sft_rows import RowReader, read_examples
from maskgrpo_plugin.errors import OptionError, first_line
from maskgrpo_plugin.models.families import build_family
from maskgrpo_plugin.models.special_tokens import stop_token_ids

ALL = "all"  # the one source of a run without a mixture


@dataclass(frozen=True)
class SourceFiles:
    """A data source as the config names it.

    Attributes:
        name: of the source.
        key: of its section, such as `data` or `data.mixture.text`.
        train, validation: its files.
        share: of the rows of a batch, relative to the other sources'.
        weight: of its loss.
    """

    name: str
    key: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    share: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True)
class Source:
    """A data source.

    Attributes:
        files: what it was read from.
        train, validation: its examples, or pairs of them.
    """

    files: SourceFiles
    train: Sequence[Any]
    validation: Sequence[Any]

    @property
    def name(self) -> str:
        """Of the source."""
        return self.files.name

    @property
    def share(self) -> float:
        """Of the rows of a batch."""
        return self.files.share

    @property
    def weight(self) -> float:
        """Of its loss."""
        return self.files.weight

    def check_count(self, count: int) -> None:
        """Raise OptionError where the source has fewer examples than rows in a batch."""
        if len(self.train) < count:
            allowed = f"{self.files.key}.train_files has {len(self.train)} examples for {count} rows of a batch"
            raise OptionError("data.train_batch_size", count, allowed)


def source_files(config: DictConfig) -> list[SourceFiles]:
    """The sources that `data` names: those of `data.mixture`, or one.

    Raises:
        OptionError: none has files.
    """
    data = config.data
    if not data.mixture:
        return [SourceFiles(ALL, "data", _names("data.train_files", data.train_files), _names("", data.val_files))]
    return [
        SourceFiles(
            str(name),
            f"data.mixture.{name}",
            _names(f"data.mixture.{name}.train_files", section.get("train_files")),
            _names("", section.get("val_files")),
            float(section.get("share", 1.0)),
            float(section.get("weight", 1.0)),
        )
        for name, section in data.mixture.items()
    ]


def read_sources(config: DictConfig, hf_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> list[Source]:
    """Read the run's files.

    Args:
        config: the run's.
        hf_config, tokenizer: the checkpoint's.

    Raises:
        OptionError: a file or a row that cannot be used.
    """
    data = config.data
    is_diffusion = config.model.model_type == "masked_diffusion"
    family = build_family(hf_config, tokenizer) if is_diffusion else None
    template: Any = OmegaConf.to_container(data.apply_chat_template_kwargs, resolve=True)
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise OptionError("model.path", config.model.path, "its tokenizer names no end token")
    of_rows = RowReader(
        tokenizer=tokenizer,
        stop_token_ids=family.stop_token_ids if family else stop_token_ids(tokenizer),
        end_token_id=end,
        family=family,
        messages_key=data.messages_key,
        turns=data.assistant_turns if config.preference is None else "last",
        template_kwargs=template,
    )
    reader = of_rows if config.preference is None else PairReader(of_rows)

    def read(names: tuple[str, ...], key: str, most: int) -> Sequence[Any]:
        found = []
        for name in names:
            rows = _rows(key, name)
            examples = read_examples(
                rows if most < 0 else rows[:most],
                reader,
                key=key,
                name=name,
                max_length=data.max_length,
                truncation=data.truncation,
                bad_rows=data.bad_rows,
            )
            found.append(examples)
        return Chain(found)

    return [
        Source(
            files,
            read(files.train, f"{files.key}.train_files", data.train_max_samples),
            read(files.validation, f"{files.key}.val_files", data.val_max_samples),
        )
        for files in source_files(config)
    ]


def _names(key: str, value: Any) -> tuple[str, ...]:
    """The files that a setting names; a folder stands for its parquet files."""
    given = [str(name) for name in (value if isinstance(value, ListConfig | list) else [value] if value else [])]
    if key and not given:
        raise OptionError(key, value, "name at least one parquet or jsonl file, or a folder of parquet files")
    names: list[str] = []
    for name in given:
        folder = Path(os.path.expanduser(name))
        if folder.is_dir():
            inside = sorted(str(file) for file in folder.glob("*.parquet"))
            if not inside:
                raise OptionError(key or "val_files", name, "the folder holds no parquet file")
            names += inside
        else:
            names.append(name)
    return tuple(names)


class TableRows(Sequence[Mapping[str, Any]]):
    """The rows of an Arrow table as dicts, each made when it is asked for."""

    def __init__(self, table: pa.Table):
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return TableRows(self.table[number])
        return self.table.slice(number, 1).to_pylist()[0]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from batch.to_pylist()


class Chain(Sequence[Any]):
    """Sequences of examples, one after another."""

    def __init__(self, parts: Sequence[Sequence[Any]]):
        self.parts = parts
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, number: Any) -> Any:
        part = bisect_right(self.ends, number)
        return self.parts[part][number - (self.ends[part - 1] if part else 0)]


def _rows(key: str, name: str) -> Sequence[Mapping[str, Any]]:
    """The rows of a file."""
    path = Path(os.path.expanduser(name))
    if not path.is_file():
        raise OptionError(key, name, "the file does not exist")
    if not name.endswith(SUFFIXES):
        raise OptionError(key, name, f"allowed: files that end in {', '.join(SUFFIXES)}")
    try:
        if name.endswith(".parquet"):
            return TableRows(pq.read_table(path))
        return json_rows(str(path))
    except (OSError, ValueError) as error:
        raise OptionError(key, name, f"it cannot be read: {first_line(error)}") from None

"""Samples of a run for `trainer.rollout_data_dir` and `trainer.validation_data_dir`: whole groups, a few of a step.

A training step's rows hold more than verl's: the rewards' components, the advantage, the data row, and of a text the
tokens with the sampler's step that revealed each.
"""

import copy
import json
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.profiler import marked_timer

from maskgrpo_plugin.files import written_whole
from maskgrpo_plugin.models.special_tokens import answer_length, stop_token_ids
from maskgrpo_plugin.token_text import token_pieces

logger = logging.getLogger(__name__)

FIELDS = (
    "prompts",
    "responses",
    "response_mask",
    "rm_scores",
    "advantages",
    "extra_fields",
    "raw_prompt",
    "extra_info",
    "reward_model",
    "data_source",
    "index",
)
DEFAULT_ROWS = 32


class DumpingTrainer(PPOTrainer):
    """verl's trainer with dumps of at most `trainer.dump_rows` rows, training's every `trainer.dump_freq` steps."""

    _dump_executor: Any
    _dump_futures: list[Any]

    def _log_rollout_data(self, batch: KVBatchMeta, timing_raw: dict, rollout_data_dir: str) -> None:
        every, most = self.config.trainer.get("dump_freq", 1), self.config.trainer.get("dump_rows", DEFAULT_ROWS)
        if every <= 0 or self.global_steps % every:
            return
        with marked_timer("dump_rollout_generations", timing_raw, color="green"):
            real = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
            keys = [real[n] for n in chosen_rows([group_of(key) for key in real], most, self.global_steps)]
            if not keys:
                return
            data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=list(FIELDS))
            columns = {name: _listed(data[name]) if name in data else [None] * len(keys) for name in FIELDS}
            self._submit(self._rows_of(keys, columns), rollout_data_dir)

    def _rows_of(self, keys: Sequence[str], columns: Mapping[str, list[Any]]) -> Callable[[], list[dict[str, Any]]]:
        """What makes the rows of a step, later and in another thread."""
        if not hasattr(self, "_dump_tokenizer"):  # a tokenizer that two threads use may refuse one of them
            self._dump_tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer, step = self._dump_tokenizer, self.global_steps
        stops = frozenset(stop_token_ids(tokenizer))

        def decode(ids: list[int]) -> str:
            return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

        def make() -> list[dict[str, Any]]:
            rows = [{name: column[n] for name, column in columns.items()} for n in range(len(keys))]
            return [sample_row(key, row, step, decode, stops) for key, row in zip(keys, rows, strict=True)]

        return make

    def _submit(self, make_rows: Callable[[], Sequence[Mapping[str, Any]]], folder: str) -> None:
        """Write the step's rows in verl's thread, whose shutdown waits for them."""
        file = Path(folder).expanduser() / f"{self.global_steps}.jsonl"
        self._dump_futures = [future for future in self._dump_futures if not future.done()]
        self._dump_futures.append(self._dump_executor.submit(write_samples, make_rows, file))

    def _dump_generations(
        self,
        inputs: list[str],
        outputs: list[str],
        gts: list[Any],
        scores: list[float],
        reward_extra_infos_dict: dict[str, list[Any]],
        dump_path: str,
    ) -> None:
        """verl's dump of a validation, of the same prompts each time."""
        groups = [group_of(str(key)) for key in reward_extra_infos_dict["uid"]]
        by_prompt = sorted(range(len(groups)), key=lambda n: inputs[n])
        most = self.config.trainer.get("dump_rows", DEFAULT_ROWS)
        chosen = [by_prompt[n] for n in chosen_rows([groups[n] for n in by_prompt], most, seed=0)]
        columns = {"input": inputs, "output": outputs, "gts": gts, "score": scores, **reward_extra_infos_dict}
        step = self.global_steps
        rows = [{name: column[n] for name, column in columns.items()} | {"step": step} for n in chosen]
        self._submit(lambda: rows, dump_path)


def chosen_rows(groups: Sequence[str], most: int, seed: int) -> list[int]:
    """Positions of the rows of groups drawn at random, whole ones as long as they fit, in the groups' order.

    With groups `a a b b c c` and most 5, two of the three groups; with most 1, one row.

    Args:
        groups: of each row, the name of its group.
        most: rows that may be chosen; 0 for none.
        seed: of the draw.
    """
    places: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    order = list(places)
    random.Random(seed).shuffle(order)
    chosen: list[int] = []
    for group in order:
        if len(chosen) + len(places[group]) <= most:
            chosen += places[group]
        elif not chosen:
            chosen = places[group][: max(most, 0)]
    return sorted(chosen)


def group_of(key: str) -> str:
    """The group of a key of verl's, `<group>_<completion>_<turn>`."""
    return key.rsplit("_", 2)[0]


def sample_row(
    key: str, fields: Mapping[str, Any], step: int, decode: Callable[[list[int]], str], stops: frozenset[int]
) -> dict[str, Any]:
    """A completion as plain data: verl's keys, and the plugin's beside them.

    Args:
        key: verl's, `<group>_<completion>_<turn>`.
        fields: those of `FIELDS`, of one row; what the run does not have is None.
        step: of the training.
        decode: from tokens to text, special tokens among them.
        stops: ids that end a text.

    Returns:
        `input`, `output`, `gts`, `score`, `step` and `uid` as verl writes them, `group`, `row` (of the data),
        `data_source`, `modality`, `rewards` (components), `advantage`, `length` (tokens before the end), and of a text
        `pieces` and `reveal_step`, one for each token up to the end token, where the sampler tells the step.
    """
    extra, info = fields["extra_fields"] or {}, fields["extra_info"] or {}
    modality = info.get("modality") or "text"
    row: dict[str, Any] = {
        "input": prompt_text(fields["raw_prompt"]),
        "output": "",
        "gts": (fields["reward_model"] or {}).get("ground_truth"),
        "score": float(np.sum(fields["rm_scores"])),
        "step": step,
        "uid": key,
        "group": group_of(key),
        "row": int(fields["index"]),
        "data_source": fields["data_source"],
        "modality": modality,
        "rewards": extra.get("reward_extra_info", {}),
        "advantage": _advantage(fields["advantages"], fields["response_mask"]),
    }
    if modality == "t2i":
        return row | {"length": len(fields["responses"])}
    ids = [int(token) for token in fields["responses"]]
    length = answer_length(ids, stops)
    shown = ids[: length + 1]
    pieces = token_pieces(decode, shown)
    row |= {"output": "".join(pieces[:length]), "length": length, "pieces": pieces}
    reveal = extra.get("reveal_step")
    if reveal is not None:
        row["reveal_step"] = [int(n) for n in reveal[: len(shown)]]
    return row


def prompt_text(messages: Any) -> str:
    """The text of a conversation; of several messages, each after its role."""
    texts = [(str(message["role"]), _content(message["content"])) for message in messages]
    if len(texts) == 1:
        return texts[0][1]
    return "\n\n".join(f"{role}: {text}" for role, text in texts)


def write_rows(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write rows as JSONL, whole or not at all; the folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as unfinished, unfinished.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")


def write_samples(make_rows: Callable[[], Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Make and write rows; where that fails the run goes on without them, and its log says so."""
    try:
        write_rows(make_rows(), file)
    except Exception:
        logger.exception("the samples of a step could not be written to %s", file)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))


def _advantage(advantages: Any, mask: Any) -> float | None:
    """The mean over the tokens that count; None where none does."""
    if advantages is None:
        return None
    values = np.asarray(advantages, dtype=np.float64)[: len(mask)][np.asarray(mask, dtype=bool)]
    value = float(values.mean()) if values.size else math.nan
    return value if math.isfinite(value) else None


def _listed(column: Any) -> list[Any]:
    """A column of TransferQueue's as plain values, one per row."""
    return [part.tolist() if hasattr(part, "tolist") else part for part in _parts(column)]


def _parts(column: Any) -> Sequence[Any]:
    if getattr(column, "is_nested", False):
        return column.unbind()
    return column.tolist() if hasattr(column, "tolist") else list(column)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)

"""From chat files to the rows of an SFT data set: read, split by a share, bad records counted."""

import json
import logging
from pathlib import Path

from maskgrpo_plugin.data.chats import TEMPLATES, chat_messages
from maskgrpo_plugin.data.faults import Faults
from maskgrpo_plugin.data.records import DataError, read_file
from maskgrpo_plugin.data.rows import Row
from maskgrpo_plugin.data.splits import is_in_share
from maskgrpo_plugin.data.templates import Template
from maskgrpo_plugin.errors import check_number

logger = logging.getLogger(__name__)


def read_chats(
    path: Path, *, answer_form: str = "plain", template: Template = TEMPLATES.default, skip_bad: bool = False
) -> list[Row]:
    """Rows with the column `messages`, in the order of the file.

    Args:
        path: .jsonl, .json or .parquet; see `read_file`.
        answer_form, template: see `chat_messages`.
        skip_bad: whether unusable records are left out, with a warning that counts them by reason.

    Raises:
        DataError: the file cannot be read, no record of it can be used, or, unless `skip_bad`, one cannot.
    """
    faults, rows = Faults(), []
    for place, record in read_file(path):
        try:
            rows.append({"messages": chat_messages(record, answer_form, template)})
        except DataError as error:
            faults.add(place, error)
    faults.refuse_unless(skip_bad)
    if faults.total:
        logger.warning("left out of %s: %s", path, faults.report())
    if not rows:
        raise DataError(f"no usable row in {path}")
    return rows


def split_rows(rows: list[Row], share: float, seed: int) -> dict[str, list[Row]]:
    """Rows of `train` and `validation`, by a hash of each row; without `validation` where `share` is 0.

    Raises:
        OptionError: a share that is none.
        DataError: a part without rows.
    """
    check_number("--validation-share", share, 0, 1)
    if share == 0:
        return {"train": rows}
    held_out = [is_in_share(json.dumps(row, sort_keys=True).encode(), share, seed) for row in rows]
    parts = {
        "train": [row for row, held in zip(rows, held_out, strict=True) if not held],
        "validation": [row for row, held in zip(rows, held_out, strict=True) if held],
    }
    for name, part in parts.items():
        if not part:
            raise DataError(
                f"--validation-share={share} of {len(rows)} rows leaves none for {name}; choose another share or "
                "--seed, or 0 for no validation"
            )
    return parts

"""Scorers: pure functions from a completion and its ground truth to named numbers, with no verl import."""

STOP_TEXTS = ("<|eot_id|>", "<|endoftext|>")


def cut_at_stop(completion: str) -> str:
    """The part of `completion` before the first stop token's text; all of it where there is none."""
    ends = [end for end in (completion.find(text) for text in STOP_TEXTS) if end >= 0]
    return completion[: min(ends)] if ends else completion

"""A reward that differs between the outputs of an untrained model, so that training moves its weights."""

import zlib


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """A number in [0, 1) that depends on the text alone."""
    return {"score": zlib.crc32(solution_str.encode()) % 1000 / 1000, "acc": 0.0}

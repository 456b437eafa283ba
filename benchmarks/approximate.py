"""Speed against accuracy of the approximate sampling modes, on a checkpoint and rows with known answers, in one run.

  python benchmarks/approximate.py --model runs/quickstart/trained --data runs/quickstart/data/validation.parquet \
    --length 8 --block-length 4 --steps 8

Greedy decoding; accuracy is the row's own `acc`. `same` is the share of answers that are token for token those of the
exact mode; `calls` counts forward passes a row. `make_chain_model.py` makes a checkpoint with longer answers.
"""

import argparse
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from common import add_device_options, device_of, side_by_side, write_table
from transformers import AutoModelForCausalLM, AutoTokenizer

from maskgrpo_plugin.diffusion.samplers import SamplerOutput, build_sampler
from maskgrpo_plugin.models.special_tokens import stop_token_ids
from maskgrpo_plugin.rewards import score
from maskgrpo_plugin.workers.rollout.requests import pad_left

MODES: dict[str, dict[str, Any]] = {
    "exact": {},
    "prefix cache": {"cache": "prefix"},
    "dual cache": {"cache": "dual"},
    **{f"threshold {t}": {"parallel": "threshold", "threshold": t} for t in (0.95, 0.9, 0.8, 0.6)},
    **{f"factor {f}": {"parallel": "factor", "factor": f} for f in (0.25, 0.5, 1.0)},
    **{f"hierarchical {t}": {"parallel": "hierarchical", "threshold": t} for t in (0.95, 0.9)},
    **{f"credit {t}": {"parallel": "credit", "threshold": t} for t in (0.95, 0.9)},
    "dual cache, threshold 0.9": {"cache": "dual", "parallel": "threshold", "threshold": 0.9},
    "dual cache, factor 0.5": {"cache": "dual", "parallel": "factor", "factor": 0.5},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    parser.add_argument("--model", required=True, help="folder of a checkpoint")
    parser.add_argument("--data", required=True, help="parquet of maskgrpo_plugin.data.prepare")
    parser.add_argument("--length", type=int, default=256, help="tokens of the response")
    parser.add_argument("--block-length", type=int, default=32)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--limit", type=int, help="rows")
    parser.add_argument(
        "--modes", nargs="+", choices=list(MODES), default=list(MODES), help="beside exact; default: all"
    )
    options = parser.parse_args()
    device, dtype = device_of(options)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(device).eval()
    rows = pq.read_table(Path(options.data)).to_pylist()[: options.limit]
    stops = stop_token_ids(tokenizer)
    batches = [prompts(tokenizer, rows[i : i + options.batch], device) for i in range(0, len(rows), options.batch)]

    def run(mode: dict[str, Any]) -> list[SamplerOutput]:
        sampler = build_sampler(
            "semi_autoregressive",
            response_length=options.length,
            block_length=options.block_length,
            steps=options.steps,
            temperature=0.0,
            stop_token_ids=stops,
            **mode,
        )
        return [sampler.generate(model, ids, mask, mask_token_id=model.config.mask_token_id) for ids, mask in batches]

    modes = {name: mode for name, mode in MODES.items() if name == "exact" or name in options.modes}
    measured = side_by_side(
        {name: lambda mode=mode: run(mode) for name, mode in modes.items()}, device, options.repeats
    )
    answers = {name: texts(tokenizer, result.result, options.length, stops) for name, result in measured.items()}
    table = []
    for name, result in measured.items():
        correct = [
            score(row["extra_info"]["task"], text, row["reward_model"]["ground_truth"])["acc"]
            for row, (_, text) in zip(rows, answers[name], strict=True)
        ]
        same = [a == b for (a, _), (b, _) in zip(answers[name], answers["exact"], strict=True)]
        calls = torch.cat([output.row_model_calls for output in result.result]).float().mean()
        table.append(
            [
                name,
                f"{measured['exact'].seconds / result.seconds:.2f}×",
                f"{calls:.2f}",
                f"{100 * sum(correct) / len(correct):.1f} %",
                f"{100 * sum(same) / len(same):.1f} %",
            ]
        )
    write_table(["mode", "speed", "calls", "accuracy", "same"], table)


def prompts(tokenizer: Any, rows: list[dict], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts (B, P) of data rows, padded on the left, and their mask."""
    texts = [tokenizer.apply_chat_template(r["prompt"], tokenize=False, add_generation_prompt=True) for r in rows]
    ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    tokens, mask = pad_left(ids, max(map(len, ids)), tokenizer.pad_token_id or 0)
    return tokens.to(device), mask.to(device)


def texts(tokenizer: Any, outputs: list[SamplerOutput], length: int, stops: tuple[int, ...]) -> list[tuple]:
    """Each answer's tokens up to its end, and its text."""
    found = []
    for output in outputs:
        for row in output.sequences[:, -length:].tolist():
            end = next((n for n, token in enumerate(row) if token in stops), len(row))
            found.append((row[:end], tokenizer.decode(row[:end], skip_special_tokens=True)))
    return found


if __name__ == "__main__":
    main()

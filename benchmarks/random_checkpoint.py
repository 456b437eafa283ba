"""Write a LLaDA with random weights in the published format, and a tokenizer of its whole vocabulary.

  python benchmarks/random_checkpoint.py --size 8b --output-dir runs/random_8b

A run's config takes it as `actor_rollout_ref.model.path`: what a step costs does not depend on what the weights say. A
word of a prompt is one token, which it shares with all words; ids of an answer decode to `w17 `.
"""

import argparse
from pathlib import Path

from common import SIZES, add_device_options, device_of, make_model

from maskgrpo_plugin.quickstart import SPECIAL_TOKENS, make_tokenizer

WORDS = r"\s*\S+|\s+"


def main() -> None:
    """Write model and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    parser.add_argument("--size", choices=SIZES, default="256x4")
    parser.add_argument("--vocabulary", type=int, default=126464)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.set_defaults(dtype="bfloat16")
    options = parser.parse_args()
    tokenizer = make_tokenizer([f"w{n} " for n in range(options.vocabulary - len(SPECIAL_TOKENS))], WORDS)
    model = make_model(options.size, options.vocabulary, *device_of(options))
    for name in ("mask", "eos", "pad", "bos"):
        setattr(model.config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    model.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)


if __name__ == "__main__":
    main()

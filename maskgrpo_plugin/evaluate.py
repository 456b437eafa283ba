"""`python -m maskgrpo_plugin.evaluate`: accuracy of a checkpoint on tasks, or images and their scores.

Every generation is a line of <output-dir>/generations.jsonl; the same command again takes up where it stopped.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskgrpo_plugin.data import prepare
from maskgrpo_plugin.data.records import DataError
from maskgrpo_plugin.diffusion.samplers import SAMPLERS, SamplerOptionError
from maskgrpo_plugin.diffusion.samplers.blocks.cache import CACHES
from maskgrpo_plugin.diffusion.samplers.blocks.parallel import PARALLEL
from maskgrpo_plugin.diffusion.samplers.blocks.sampler import ORDERINGS
from maskgrpo_plugin.errors import ConfigError
from maskgrpo_plugin.evaluation.checkpoints import fingerprint, resolve_checkpoint
from maskgrpo_plugin.evaluation.image_files import LAYOUTS, check_layout, write_dpg_squares
from maskgrpo_plugin.evaluation.report import table
from maskgrpo_plugin.evaluation.statistics import summarise

logger = logging.getLogger(__name__)

DEFAULT_LENGTHS = (128, 256, 512)
DEFAULT_BLOCK = 32
DEFAULT_IMAGE_STEPS = 20
TASKS = (*prepare.DATA_SETS, "arithmetic")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 1 where an option or the data cannot be used."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = _parser().parse_args(arguments)
    try:
        summaries = evaluate(options)
    except (ConfigError, DataError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(table(summaries) + "\n")
    return 0


def evaluate(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Evaluate a checkpoint as the command's options say.

    Returns:
        summaries, see `evaluation.statistics.summarise`; also in <output-dir>/summary.json.

    Raises:
        ConfigError: an option that cannot work, named with its value and what is allowed.
        DataError: a file of prompts that holds none.
    """
    import verl  # noqa: F401  (loads the plugin into its registries)

    import maskgrpo_plugin.registration  # noqa: F401
    from maskgrpo_plugin.evaluation.problems import digests, read_problems
    from maskgrpo_plugin.evaluation.records import Records
    from maskgrpo_plugin.evaluation.runner import Runner, check_positions
    from maskgrpo_plugin.evaluation.scoring import Scorer, reward_config
    from maskgrpo_plugin.evaluation.servers import ServerPool, load_model_config
    from maskgrpo_plugin.models.special_tokens import stop_token_ids

    data = [*options.data, *(prepare_task(name, options.output_dir / "data") for name in options.tasks)]
    problems = read_problems(data, options.prompts, options.limit)
    images = problems[0].is_image
    ks = _check(options, images)
    check_layout(options.layout, problems, options.samples)
    overrides = [*(f"reward.image.scorers.{name}.weight=1.0" for name in options.scorers), *options.overrides]
    rewards = reward_config(overrides, images=images) if overrides or not images else None

    path = resolve_checkpoint(options.model, options.output_dir / "merged_model", options.base_model)
    model_config = load_model_config(path)
    lengths = make_lengths(options, problems, model_config)
    check_positions(lengths, getattr(model_config.hf_config, "max_position_embeddings", None))
    settings = {
        "model": fingerprint(options.model),
        "base_model": fingerprint(options.base_model) if options.base_model else None,
        "data": digests([*data, *options.prompts]),
        "dtype": lengths[0].config.dtype,
        "temperature": options.temperature,
        "seed": options.seed,
        "reward": sorted(overrides),
        "lengths": {str(length.tokens): _sampler_settings(length.config) for length in lengths},
    }
    records = Records(options.output_dir, settings, overwrite=options.overwrite)
    with contextlib.closing(records), _ray_session(options.replicas > 1 or (images and rewards is not None)):
        runner = Runner(
            ServerPool(lengths[0].config, model_config, options.replicas),
            Scorer(rewards, model_config.tokenizer) if rewards is not None else None,
            records,
            tokenizer=model_config.tokenizer,
            stop_token_ids=stop_token_ids(model_config.tokenizer),
            temperature=options.temperature,
            seed=options.seed,
            in_flight=4 * options.batch_size * options.replicas,
            with_token_ids=options.token_ids,
        )
        rows = asyncio.run(runner.run(problems, lengths, options.samples))
    if options.layout == "dpg_bench":
        write_dpg_squares(options.output_dir, problems)
    summaries = summarise(rows, ks)
    (options.output_dir / "summary.json").write_text(json.dumps(summaries, indent=2))
    return summaries


def prepare_task(name: str, folder: Path) -> Path:
    """The validation rows of a task, made by `maskgrpo_plugin.data.prepare` where they are not there yet.

    Raises:
        ConfigError: they cannot be made; the command's own output says why.
    """
    file = folder / name / "validation.parquet"
    if not file.is_file() and prepare.main([name, "--output-dir", str(file.parent)]) != 0:
        raise ConfigError("--tasks", name, "prepare it from local files and name validation.parquet by --data")
    return file


def make_lengths(options: argparse.Namespace, problems: list[Any], model_config: Any) -> list[Any]:
    """What is generated at each length: the rollout section and the queries (`evaluation.runner.Length`).

    Args:
        options: the command's.
        problems: texts, or images; the latter have one length, their tokens.
        model_config: verl's model section.

    Raises:
        ConfigError: an option that the sampler refuses, or a problem that does not fit the checkpoint.
    """
    from maskgrpo_plugin.evaluation.problems import Query, make_query
    from maskgrpo_plugin.evaluation.runner import Length
    from maskgrpo_plugin.evaluation.servers import is_diffusion
    from maskgrpo_plugin.models.families import build_family
    from maskgrpo_plugin.workers.agent_loop import image_grid

    family = None
    if is_diffusion(model_config.path):
        family = build_family(model_config.hf_config, model_config.tokenizer)

    def make(length: int, steps: int, queries: dict[str, Query]) -> Length:
        return Length(length, length_config(options, length, steps, is_diffusion=family is not None), queries)

    if problems[0].is_image:
        if not options.image_tokenizer or not Path(options.image_tokenizer, "config.json").is_file():
            raise ConfigError("--image-tokenizer", options.image_tokenizer, "the folder of a MAGVIT-v2 checkpoint")
        try:
            grid = image_grid(image_settings(options), family) if family is not None else None
        except ValueError as error:
            raise ConfigError("--image-size", options.image_size, str(error)) from error
        queries = {problem.id: make_query(problem, model_config.tokenizer, family, 1, grid) for problem in problems}
        tokens = next(iter(queries.values())).new_tokens
        return [make(tokens, options.steps[0] if options.steps else min(DEFAULT_IMAGE_STEPS, tokens), queries)]
    given = options.steps * len(options.lengths) if len(options.steps) == 1 else options.steps
    steps = given or [max(1, length // 2) for length in options.lengths]
    return [
        make(length, n, {p.id: make_query(p, model_config.tokenizer, family, length, None) for p in problems})
        for length, n in zip(options.lengths, steps, strict=True)
    ]


def image_settings(options: argparse.Namespace) -> Any:
    """The rollout's section on images."""
    from maskgrpo_plugin.config import ImageSettings

    height, width = options.image_size or (None, None)
    return ImageSettings(tokenizer_path=options.image_tokenizer, height=height, width=width)


def length_config(options: argparse.Namespace, length: int, steps: int, *, is_diffusion: bool) -> Any:
    """The rollout section of one length.

    Raises:
        ConfigError: an option that the sampler refuses.
    """
    from maskgrpo_plugin.config import SamplerSettings
    from maskgrpo_plugin.evaluation.servers import rollout_config

    sampler = SamplerSettings(
        name=options.sampler,
        steps=steps,
        block_length=options.block_length or min(DEFAULT_BLOCK, length),
        ordering=options.ordering,
        cfg_scale=options.cfg_scale,
        cache=options.cache,
        parallel=options.parallel,
        threshold=options.threshold,
        factor=options.factor,
    )
    try:
        return rollout_config(
            sampler,
            response_length=length,
            temperature=options.temperature,
            batch_size=options.batch_size,
            dtype=options.dtype,
            image=image_settings(options),
            check_sampler=is_diffusion,
        )
    except SamplerOptionError as error:
        name = {"response_length": "lengths", "name": "sampler"}.get(error.option, error.option)
        key = f"--{name.replace('_', '-')}"
        raise ConfigError(key, error.value, f"{error.allowed} (at length {length})") from error


def _check(options: argparse.Namespace, images: bool) -> tuple[int, ...]:
    """Check what goes together; returns the k of pass@k.

    Raises:
        ConfigError: options that cannot work together.
    """
    if images and options.sampler == "semi_autoregressive":
        options.sampler = "emerge"
    if not images and options.scorers:
        raise ConfigError("--scorers", options.scorers, "they are for images, and the data asks for texts")
    if not images and options.layout != "prompts":
        raise ConfigError("--layout", options.layout, "it is for images, and the data asks for texts")
    if len(options.steps) not in (0, 1, len(options.lengths)) or (images and len(options.steps) > 1):
        raise ConfigError("--steps", options.steps, "give one number, or one for each of --lengths")
    if options.samples > 1 and options.temperature == 0 and not images and options.ordering != "random":
        raise ConfigError("--temperature", 0.0, "all samples of a prompt would be the same; use more than 0")
    ks = tuple(options.k) or tuple(sorted({1, options.samples} - {1 if options.samples == 1 else 0}))
    for k in ks:
        if not 1 <= k <= options.samples:
            raise ConfigError("--k", k, f"allowed: 1 to --samples {options.samples}")
    return ks


def _sampler_settings(config: Any) -> dict[str, Any]:
    image = config.image
    return {
        **{name: value for name, value in config.sampler.items() if not name.startswith("_")},
        "image": [image.tokenizer_path, image.height, image.width],
    }


@contextlib.contextmanager
def _ray_session(needed: bool) -> Iterator[None]:
    """A Ray session on this machine where one is needed and none is there."""
    import ray

    if not needed or ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {value}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m maskgrpo_plugin.evaluate", description=__doc__)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="published folder or hub name; verl's checkpoints, global_step_N or actor; or a LoRA adapter",
    )
    add("--base-model", help="what a LoRA adapter goes onto; default: the base that it names")
    add("--output-dir", type=Path, required=True, help="folder for generations, summary, images and merged model")
    add("--overwrite", action="store_true", help="begin anew in a folder made with other settings")

    data = parser.add_argument_group("what is asked (at least one)")
    data.add_argument("--data", type=Path, nargs="+", default=[], help="parquet files of maskgrpo_plugin.data.prepare")
    data.add_argument(
        "--tasks", nargs="+", default=[], choices=TASKS, metavar="TASK", help=f"prepared first: {', '.join(TASKS)}"
    )
    data.add_argument("--prompts", type=Path, nargs="+", default=[], help="prompts of images: .jsonl, .tar or text")
    data.add_argument("--limit", type=_positive, help="the first so many rows of each data source")

    how = parser.add_argument_group("generation")
    how.add_argument(
        "--lengths", type=_positive, nargs="+", default=list(DEFAULT_LENGTHS), help="tokens of a text (128 256 512)"
    )
    how.add_argument(
        "--steps", type=_positive, nargs="+", default=[], help="one, or one a length; default: half of the length"
    )
    how.add_argument(
        "--sampler", choices=tuple(SAMPLERS), default="semi_autoregressive", help="images: emerge (default) or maskgit"
    )
    how.add_argument("--block-length", type=_positive, help=f"default: {DEFAULT_BLOCK}, or the length where shorter")
    how.add_argument("--ordering", choices=ORDERINGS, default="low_confidence")
    how.add_argument("--cache", choices=CACHES, default="none", help="approximate where not none")
    how.add_argument("--parallel", choices=PARALLEL, default="none", help="approximate where not none")
    how.add_argument("--threshold", type=_not_negative, default=0.9, help="of --parallel, a probability")
    how.add_argument("--factor", type=_not_negative, default=1.0, help="of --parallel factor")
    how.add_argument("--temperature", type=_not_negative, default=0.0)
    how.add_argument("--cfg-scale", type=_not_negative, default=0.0, help="weight of the guidance, 0 for none")
    how.add_argument("--samples", type=_positive, default=1, help="generations of each prompt")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--batch-size", type=_positive, default=32)
    how.add_argument("--replicas", type=_positive, default=1, help="servers with a GPU each, as Ray actors")
    how.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16; CPU: float32")
    how.add_argument("--token-ids", action="store_true", help="write the responses' tokens too")

    scores = parser.add_argument_group("scores")
    scores.add_argument("--k", type=_positive, nargs="+", default=[], help="of pass@k; default: 1 and --samples")
    scores.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="keys of a run's config on rewards, such as reward.sandbox.timeout_s=10",
    )

    images = parser.add_argument_group("images")
    images.add_argument("--image-tokenizer", help="folder of the MAGVIT-v2 checkpoint")
    images.add_argument("--image-size", type=_positive, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels")
    images.add_argument(
        "--scorers", nargs="+", default=[], help="such as clip hpsv2; their options: reward.image.scorers.<name>.…"
    )
    images.add_argument(
        "--layout", choices=LAYOUTS, default="prompts", help="folders for GenEval's or DPG-Bench's scorer"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`python -m maskgrpo_plugin.evaluate`: accuracy of a checkpoint on tasks, or images and their scores.

Every generation is a line of <output-dir>/generations.jsonl; the same command again takes up where it stopped.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskgrpo_plugin.data import prepare
from maskgrpo_plugin.data.records import DataError
from maskgrpo_plugin.data.templates import DEFAULT_STYLE
from maskgrpo_plugin.diffusion.samplers import option_names
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.evaluation.checkpoints import fingerprint, resolve_checkpoint
from maskgrpo_plugin.evaluation.image_files import check_layout, write_dpg_squares
from maskgrpo_plugin.evaluation.options import image_settings, make_parser
from maskgrpo_plugin.evaluation.report import table
from maskgrpo_plugin.evaluation.statistics import summarise
from maskgrpo_plugin.sampler_arguments import SAMPLER_KEY, check_modality, check_sampler, sampler_settings

if TYPE_CHECKING:  # imports of verl, left to where they are needed, so that --help is quick
    from verl.workers.config import HFModelConfig

    from maskgrpo_plugin.evaluation.problems import Problem
    from maskgrpo_plugin.evaluation.runner import Length

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 1 where an option or the data cannot be used."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = make_parser(__doc__).parse_args(arguments)
    try:
        summaries = evaluate(options)
    except (OptionError, DataError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(table(summaries) + "\n")
    return 0


def evaluate(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Evaluate a checkpoint as the command's options say.

    Returns:
        summaries, see `evaluation.statistics.summarise`; also in <output-dir>/summary.json.

    Raises:
        OptionError: an option that cannot work, named with its value and what is allowed.
        DataError: a file of prompts that holds none.
    """
    import verl  # noqa: F401  (loads the plugin into its registries)

    import maskgrpo_plugin.registration  # noqa: F401
    from maskgrpo_plugin.evaluation.problems import digests, read_problems
    from maskgrpo_plugin.evaluation.records import Records
    from maskgrpo_plugin.evaluation.runner import Runner, check_positions
    from maskgrpo_plugin.evaluation.scoring import Scorer, reward_config
    from maskgrpo_plugin.evaluation.servers import ServerPool, is_diffusion, load_model_config
    from maskgrpo_plugin.models.families import build_family
    from maskgrpo_plugin.models.special_tokens import stop_token_ids

    tasks = (prepare_task(name, options.output_dir / "data", options.style) for name in options.tasks)
    data = [*options.data, *tasks]
    problems = read_problems(data, options.prompts, options.limit)
    images = problems[0].is_image
    ks = _check(options, images)
    check_layout(options.layout, problems, options.samples)
    overrides = [f"reward.image.scorers.{name}.weight=1.0" for name in options.scorers]
    overrides += [each for each in options.overrides if not each.startswith(SAMPLER_KEY)]
    rewards = reward_config(overrides, images=images) if overrides or not images else None

    path = resolve_checkpoint(options.model, options.output_dir / "merged_model", options.base_model)
    model_config = load_model_config(path)
    stops = stop_token_ids(model_config.tokenizer)
    if is_diffusion(path):
        stops = build_family(model_config.hf_config, model_config.tokenizer).stop_token_ids
    lengths = make_lengths(options, problems, model_config)
    check_positions(lengths, getattr(model_config.hf_config, "max_position_embeddings", None))
    settings = {
        "model": fingerprint(options.model),
        "base_model": fingerprint(options.base_model) if options.base_model else None,
        "data": digests([*data, *options.prompts]),
        "dtype": lengths[0].config.dtype,
        "temperature": options.temperature,
        "seed": options.seed,
        "answer_prefix": options.answer_prefix,
        "reward": sorted(overrides),
        "lengths": {str(length.tokens): recorded(length, is_diffusion(path)) for length in lengths},
    }
    records = Records(options.output_dir, settings, overwrite=options.overwrite)
    with contextlib.closing(records), _ray_session(options.replicas > 1 or (images and rewards is not None)):
        runner = Runner(
            ServerPool(lengths[0].config, model_config, options.replicas),
            Scorer(rewards, model_config.tokenizer) if rewards is not None else None,
            records,
            tokenizer=model_config.tokenizer,
            stop_token_ids=stops,
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


def prepare_task(name: str, folder: Path, style: str = DEFAULT_STYLE) -> Path:
    """The validation rows of a task, made by `maskgrpo_plugin.data.prepare` where they are not there yet.

    Args:
        name: of the task.
        folder: for the data of all tasks.
        style: of the prompts, one of `data.templates.STYLES`.

    Raises:
        OptionError: the task has no prompts of that style, or its rows cannot be made; the command's own output says
            why.
    """
    styled = [task for task, data_set in prepare.DATA_SETS.items() if data_set.templates]
    options = [] if style == DEFAULT_STYLE else ["--style", style]
    if options and name not in styled:
        raise OptionError("--style", style, f"the task {name} has one prompt; tasks with styles: {', '.join(styled)}")
    file = folder / "-".join([name, *options[1:]]) / "validation.parquet"
    if not file.is_file() and prepare.main([name, *options, "--output-dir", str(file.parent)]) != 0:
        raise OptionError("--tasks", name, "prepare it from local files and name validation.parquet by --data")
    return file


def make_lengths(
    options: argparse.Namespace, problems: "Sequence[Problem]", model_config: "HFModelConfig"
) -> "list[Length]":
    """What is generated at each length: the rollout section and the requests.

    Args:
        options: the command's.
        problems: texts, or images; the latter have one length, their tokens.
        model_config: verl's model section.

    Raises:
        OptionError: an option that the sampler refuses, or a problem that does not fit the checkpoint.
    """
    from maskgrpo_plugin.evaluation.problems import make_request
    from maskgrpo_plugin.evaluation.runner import Length
    from maskgrpo_plugin.evaluation.servers import is_diffusion, rollout_config
    from maskgrpo_plugin.models.families import build_family
    from maskgrpo_plugin.models.registry import block_length_of
    from maskgrpo_plugin.workers.rollout.requests import RequestBuilder, RowRequest, image_grid

    family, block_length = None, block_length_of(model_config.hf_config)
    if is_diffusion(model_config.path):
        family = build_family(model_config.hf_config, model_config.tokenizer)
    image = image_settings(options)

    def make(length: int, steps: int | None, requests: dict[str, RowRequest]) -> Length:
        settings = sampler_settings(options, length, steps, images=problems[0].is_image, block_length=block_length)
        if family is not None:
            check_sampler(settings, length, options.temperature, options.samples)
        config = rollout_config(
            settings,
            response_length=length,
            temperature=options.temperature,
            batch_size=options.batch_size,
            dtype=options.dtype,
            image=image,
        )
        return Length(length, config, requests)

    if problems[0].is_image:
        if not options.image_tokenizer or not Path(options.image_tokenizer, "config.json").is_file():
            raise OptionError("--image-tokenizer", options.image_tokenizer, "the folder of a MAGVIT-v2 checkpoint")
        try:
            builder = RequestBuilder(model_config.tokenizer, family, grid=image_grid(image, family))
        except ValueError as error:
            raise OptionError("--image-size", options.image_size, str(error)) from error
        requests = {problem.id: make_request(problem, builder, 1, "") for problem in problems}
        tokens = next(iter(requests.values())).new_tokens
        return [make(tokens, options.steps[0] if options.steps else None, requests)]
    builder = RequestBuilder(model_config.tokenizer, family)
    given = options.steps * len(options.lengths) if len(options.steps) == 1 else options.steps
    steps = given or [max(1, length // 2) for length in options.lengths]

    def requests_of(length: int) -> dict[str, RowRequest]:
        return {p.id: make_request(p, builder, length, options.answer_prefix) for p in problems}

    return [make(length, n, requests_of(length)) for length, n in zip(options.lengths, steps, strict=True)]


def _check(options: argparse.Namespace, images: bool) -> tuple[int, ...]:
    """Check what goes together; returns the k of pass@k.

    Raises:
        OptionError: options that cannot work together.
    """
    check_modality(options.sampler, images=images)
    if not images and options.scorers:
        raise OptionError("--scorers", options.scorers, "they are for images, and the data asks for texts")
    if images and options.answer_prefix:
        raise OptionError("--answer-prefix", options.answer_prefix, "it is for texts, and the data asks for images")
    if not images and options.layout != "prompts":
        raise OptionError("--layout", options.layout, "it is for images, and the data asks for texts")
    if len(options.steps) not in (0, 1, len(options.lengths)) or (images and len(options.steps) > 1):
        raise OptionError("--steps", options.steps, "give one number, or one for each of --lengths")
    ks = tuple(options.k) or tuple(sorted({1, options.samples} - {1 if options.samples == 1 else 0}))
    for k in ks:
        if not 1 <= k <= options.samples:
            raise OptionError("--k", k, f"allowed: 1 to --samples {options.samples}")
    return ks


def recorded(length: "Length", is_diffusion: bool) -> dict[str, Any]:
    """What decides the generations of a length, as plain data: every option of the sampler, and the image's size."""
    image, sampler = length.config.image, length.config.sampler
    options: dict[str, Any] = {}
    if is_diffusion:
        built = asdict(sampler.build(response_length=length.tokens, temperature=length.config.temperature))
        options = {name: built[name] for name in option_names(sampler.name)}
    return {"name": sampler.name, **options, "image": [image.tokenizer_path, image.height, image.width]}


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


if __name__ == "__main__":
    sys.exit(main())

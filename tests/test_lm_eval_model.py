"""The model of lm-evaluation-harness, where the harness is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval")

from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.lm_eval_model import MaskGRPOLM

ROOT = Path(__file__).parents[1]


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.fixture(scope="module")
def lm(tiny_run):
    return MaskGRPOLM(str(tiny_run / "model"), max_gen_toks=8, block_length=4, mc_samples=16, batch_size=8)


def test_the_harness_knows_the_model_by_name(lm):
    from lm_eval.api.registry import get_model

    assert get_model("maskgrpo") is MaskGRPOLM


def test_a_text_is_what_the_sampler_gives_up_to_the_stop_text(lm):
    contexts = ["12+34=", "5+6="]
    texts = lm.generate_until(requests(*((c, {"until": [], "max_gen_toks": 8}) for c in contexts)), disable_tqdm=True)
    sampler = build_sampler("semi_autoregressive", steps=4, response_length=8, block_length=4)
    mask = lm.server.family.mask_token_id
    for context, text in zip(contexts, texts, strict=True):
        ids = torch.tensor([lm.tok_encode(context)])
        tokens = sampler.generate(lm.server.model, ids, mask_token_id=mask).sequences[0, ids.shape[1] :].tolist()
        end = next((n for n, token in enumerate(tokens) if token in lm.server.stop_token_ids), len(tokens))
        assert text == lm.tokenizer.decode(tokens[:end], skip_special_tokens=True)


def test_texts_are_cut_at_until_and_at_their_own_length(lm):
    asked = [("12+34=", {"until": [], "do_sample": True, "temperature": 1.0, "max_gen_toks": n}) for n in (6, 12)]
    short, long = lm.generate_until(requests(*asked), disable_tqdm=True)
    assert len(lm.tok_encode(short)) <= 6 and len(lm.tok_encode(long)) <= 12
    stop = long[len(long) // 2] if long else "0"
    asked[1][1]["until"] = [stop]
    cut = lm.generate_until(requests(asked[1]), disable_tqdm=True)[0]
    assert stop not in cut


def test_likelihoods_of_all_single_tokens_sum_to_one_and_the_best_is_greedy(lm):
    width = lm.server.model.get_output_embeddings().weight.shape[0]
    context = lm.tok_encode("12+34=")
    found = lm._loglikelihood_tokens([(("", ""), context, [token]) for token in range(width)], disable_tqdm=True)
    assert sum(torch.tensor([value for value, _ in found]).exp()) == pytest.approx(1.0, abs=1e-4)
    allowed = [n for n in range(width) if n != lm.server.family.mask_token_id]
    best = max(allowed, key=lambda n: found[n][0])
    assert [n for n in range(width) if found[n][1]] == [best]


def test_a_likelihood_is_that_of_the_continuation_given_the_context(lm):
    asked = requests(("12+34=", "46"), ("12+34=", "4"), ("", "46"))
    whole, one, alone = (value for value, _ in lm.loglikelihood(asked, disable_tqdm=True))
    assert whole < one < 0 and alone < 0 and alone != whole


def test_a_long_text_is_scored_in_windows(lm, tiny_run):
    short = MaskGRPOLM(str(tiny_run / "model"), max_gen_toks=8, block_length=4, mc_samples=16, max_length=9)
    text = "12+34=46"
    count = len(short.tok_encode(text))
    assert count == 8
    (whole,) = lm.loglikelihood_rolling(requests((text,)), disable_tqdm=True)
    assert whole == lm.loglikelihood(requests(("", text)), disable_tqdm=True)[0][0]
    (windowed,) = short.loglikelihood_rolling(requests((text * 3,)), disable_tqdm=True)
    assert windowed < whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"batch_size": "auto"}, "--batch_size='auto'"), ({"stepz": 3}, "stepz"), ({"model": "model_ar"}, "--model hf")],
)
def test_arguments_that_cannot_work_are_named(tiny_run, arguments, message):
    folder = tiny_run / arguments.pop("model", "model")
    with pytest.raises(OptionError, match=message):
        MaskGRPOLM(str(folder), **arguments)


def test_the_harness_runs_a_task_of_each_kind(tiny_run, tmp_path):
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps({"q": f"{n}+1=", "a": str(n + 1)}) + "\n" for n in range(4)))
    common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
    (tmp_path / "sums.yaml").write_text(
        f"task: sums\n{common}output_type: generate_until\ndoc_to_text: '{{{{q}}}}'\ndoc_to_target: '{{{{a}}}}'\n"
        "generation_kwargs: {until: [' '], max_gen_toks: 8}\nmetric_list: [{metric: exact_match}]\n"
    )
    (tmp_path / "choice.yaml").write_text(
        f"task: choice\n{common}output_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\ndoc_to_target: 0\n"
        "doc_to_choice: ['{{a}}', '7']\nmetric_list: [{metric: acc}]\n"
    )
    arguments = f"pretrained={tiny_run}/model,max_gen_toks=8,block_length=4,mc_samples=4"
    command = [sys.executable, "-m", "maskgrpo_plugin.lm_eval_model", "--model", "maskgrpo", "--model_args", arguments]
    options = ["--tasks", "sums,choice", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(file.read_text())["results"]
    assert 0 <= found["sums"]["exact_match,none"] <= 1 and 0 <= found["choice"]["acc,none"] <= 1

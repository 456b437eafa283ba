"""The commands on a checkpoint that attends block by block: generation, evaluation and lm-evaluation-harness agree."""

import json
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from family_models import save_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from maskgrpo_plugin import evaluate, generate, sampler_arguments
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.errors import OptionError

SUM = "12+34="


@pytest.fixture(scope="module", params=["sdar", "fast_dllm_v2"])
def folder(tiny_run, tmp_path_factory, request):
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    return save_checkpoint(request.param, tmp_path_factory.mktemp(request.param) / "model", tokenizer)


def written(folder, prompt, length, **options):
    """The text by the sampler alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    stops = (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>"))
    chat = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False)
    ids = torch.tensor([tokenizer(chat, add_special_tokens=False)["input_ids"]])
    sampler = build_sampler("block_causal", response_length=length, stop_token_ids=stops, **options)
    tokens = sampler.generate(model, ids, mask_token_id=tokenizer.mask_token_id).sequences[0, ids.shape[1] :].tolist()
    end = next((n for n, token in enumerate(tokens) if token in stops), len(tokens))
    return tokenizer.decode(tokens[:end], skip_special_tokens=True)


def test_generation_and_evaluation_write_what_the_sampler_writes(folder, tiny_run, tmp_path, capsys):
    options = ["--steps-per-block", "2", "--parallel", "threshold", "--threshold", "0.5"]
    assert generate.main(["--model", str(folder), "--prompt", SUM, "--length", "9", "--json", *options]) == 0
    (made,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert made["text"] == written(folder, SUM, 9, steps_per_block=2, parallel="threshold", threshold=0.5)
    data = ["--data", str(tiny_run / "data" / "validation.parquet"), "--limit", "4", "--lengths", "8"]
    assert evaluate.main(["--model", str(folder), *data, "--output-dir", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    for row in rows:
        assert row["text"] == written(folder, row["prompt"], 8)


def test_samplers_and_steps_that_do_not_fit_are_named(folder, capsys):
    command = ["--model", str(folder), "--prompt", SUM, "--length", "8"]
    for options, line in (
        (["--sampler", "semi_autoregressive"], "the checkpoint attends block by block (4 tokens); allowed are block_"),
        (["--steps", "4"], "block_causal has --steps-per-block"),
        (["--steps-per-block", "5"], "a block of 4 tokens has at most 4 steps"),
    ):
        assert generate.main([*command, *options]) == 2
        assert line in capsys.readouterr().err


def test_blocks_of_another_length_or_from_the_response_on_are_decoded(folder, capsys, caplog):
    command = ["--model", str(folder), "--prompt", SUM, "--length", "8", "--json"]
    sampler_arguments._warn_of_blocks.cache_clear()
    for options, chosen in (
        (["--blocks-from", "response"], {"blocks_from": "response"}),
        (["--block-length", "8"], {"block_length": 8}),
    ):
        assert not caplog.records
        assert generate.main([*command, *options]) == 0
        assert json.loads(capsys.readouterr().out)["text"] == written(folder, SUM, 8, **chosen)
    assert "--block-length=8: the checkpoint was made for blocks of 4 tokens" in caplog.text


def test_the_harness_gets_texts_and_likelihoods(folder):
    pytest.importorskip("lm_eval")
    from maskgrpo_plugin.lm_eval_model import MaskGRPOLM

    lm = MaskGRPOLM(str(folder), max_gen_toks=8, mc_samples=400, batch_size=50)
    asked = [SimpleNamespace(args=(SUM, {"until": [], "max_gen_toks": 8}))]
    (text,) = lm.generate_until(asked, disable_tqdm=True)
    context = torch.tensor([lm.tok_encode(SUM)])
    sampler = build_sampler("block_causal", response_length=8)
    model, mask = lm.server.model, lm.server.family.mask_token_id
    tokens = sampler.generate(model, context, mask_token_id=mask).sequences[0, context.shape[1] :].tolist()
    end = next((n for n, token in enumerate(tokens) if token in lm.server.stop_token_ids), len(tokens))
    assert text == lm.tokenizer.decode(tokens[:end], skip_special_tokens=True)
    allowed = [n for n in range(len(lm.tokenizer)) if n != mask]
    found = lm._loglikelihood_tokens([(("", ""), context[0].tolist(), [n]) for n in allowed], disable_tqdm=True)
    likelihoods, greedy = zip(*found, strict=True)
    best = allowed[likelihoods.index(max(likelihoods))]
    assert [token for token, is_greedy in zip(allowed, greedy, strict=True) if is_greedy] == [best]


def test_the_harness_likelihood_is_the_mean_over_orders_within_a_block(folder):
    """Six tokens of a prompt and the two that end its second block: two orders, each behind the first block."""
    pytest.importorskip("lm_eval")
    from maskgrpo_plugin.lm_eval_model import MaskGRPOLM

    lm = MaskGRPOLM(str(folder), max_gen_toks=8, mc_samples=6000, batch_size=500)
    context, mask, shift = lm.tok_encode(SUM), lm.server.family.mask_token_id, lm.server.model.logits_shift
    assert len(context) == 6
    answer, total = lm.tok_encode("46"), 0.0
    for order in permutations(range(2)):
        canvas = [*context, mask, mask]
        for place in order:
            with torch.no_grad():
                logits = lm.server.model(torch.tensor([canvas])).logits[0, 6 + place - shift]
            total += float(logits.log_softmax(-1)[answer[place]]) / 2
            canvas[6 + place] = answer[place]
    ((found, _),) = lm.loglikelihood([SimpleNamespace(args=(SUM, "46"))], disable_tqdm=True)
    assert found == pytest.approx(total, abs=0.1)
    with pytest.raises(OptionError, match=r"steps=4.*block_causal has no such argument"):
        MaskGRPOLM(str(folder), steps=4)

"""DPO on evidence bounds on one and two CPU ranks against the formula written out; pairs of rows; what is refused."""

import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "workers"))
import ranks
import sft_runs

from maskgrpo_plugin.data.preference_rows import PairReader
from maskgrpo_plugin.data.rows import write_parquet
from maskgrpo_plugin.data.sft_rows import RowReader, read_examples
from maskgrpo_plugin.diffusion.estimators import Rows, build_estimator
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.trainer.preference import bound_gradients, preferences
from maskgrpo_plugin.trainer.sft_batches import BatchOrder
from maskgrpo_plugin.trainer.sft_checks import check_sft

SUMS = [(12, 7), (30, 5), (99, 99), (1, 1), (48, 2), (5, 77), (60, 60), (8, 13)]
BATCH, SEED, RATE, BETA, DRAWS = 4, 5, 0.05, 0.7, 3
VARIANTS = {
    "plain": [],
    "micro": ["data.use_dynamic_bsz=false", f"data.micro_batch_size_per_gpu={BATCH}"],
    "budget": ["data.max_token_len_per_gpu=48"],
    "divided": ["preference.divisor=length", "preference.length=8"],
    "lora": ["model.lora_rank=4", "model.lora_alpha=8"],
}


def answers(a, b):
    """A right and a wrong one, of different lengths."""
    return str(a + b), str(a + b + 1) + "0"


@pytest.fixture(scope="module")
def common(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rows = []
    for a, b in SUMS:
        chosen, rejected = answers(a, b)
        rows.append({"prompt": f"{a}+{b}=", "chosen": chosen, "rejected": rejected})
    write_parquet(rows, folder / "train.parquet")
    write_parquet(rows[:3], folder / "validation.parquet")
    return [
        f"preference={{beta:{BETA},draws:{DRAWS},divisor:none,length:null}}",
        f"model.path={tiny_run}/model",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/validation.parquet",
        f"data.train_batch_size={BATCH}",
        "data.use_dynamic_bsz=true",
        "data.max_token_len_per_gpu=4096",
        "data.val_batch_size=2",
        "data.fill=none",
        "data.val_draws=1",
        "data.max_length=16",
        f"trainer.seed={SEED}",
        "trainer.total_training_steps=2",
        "trainer.export_dir=null",
        "trainer.target_val_loss=null",
        "trainer.test_freq=-1",
        "trainer.val_before_train=true",
        *sft_runs.WHOLE_ANSWERS,
        *sft_runs.plain_descent(RATE),
    ]


@pytest.fixture(scope="module")
def one_rank(tiny_run, common, tmp_path_factory):
    options = [[*common, *each] for each in VARIANTS.values()]
    return dict(zip(VARIANTS, sft_runs.run(1, tiny_run, options, tmp_path_factory.mktemp("dpo_one")), strict=True))


def bound(model, tokenizer, prompt, answer, key, step):
    """The bound of an answer by full logits: Σ weight · log p over the passes of its masks."""
    given = [tokenizer.bos_token_id, *tokenizer.encode(prompt)]
    tokens = torch.tensor([[*given, *tokenizer.encode(answer), tokenizer.eos_token_id]])
    response = torch.arange(tokens.shape[1]).unsqueeze(0) >= len(given)
    rows = Rows(tokens, response, ~response, torch.ones_like(response), torch.tensor([key]), model.config.mask_token_id)
    estimator, total = build_estimator("elbo", mu=1, canvas="full", draws=DRAWS), 0.0
    for one in estimator.passes(rows, seed=SEED, step=step, update=0):
        log_probs = model(one.noisy).logits[0].log_softmax(-1)
        for n in one.scored[0].nonzero().flatten().tolist():
            total = total + float(one.weight[0, n]) * log_probs[n, tokens[0, n]]
    return total


def written_out(folder, divisor=1.0):
    """SGD on −log σ(β·margin), its gradient taken through everything at once; and the last accuracy."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, fixed = (AutoModelForCausalLM.from_pretrained(folder).eval() for _ in range(2))

    def margin(row, key, step):
        sides = []
        for side, answer in enumerate(answers(*SUMS[row])):
            prompt = "{}+{}=".format(*SUMS[row])
            new = bound(model, tokenizer, prompt, answer, 2 * key + side, step)
            with torch.no_grad():
                old = bound(fixed, tokenizer, prompt, answer, 2 * key + side, step)
            sides.append((new - old) / divisor)
        return sides[0] - sides[1]

    losses = []
    for step in (1, 2):
        slots = BatchOrder((len(SUMS),), (BATCH,), (1.0,), SEED).batch(step)
        margins = torch.stack([margin(slot.row, slot.key, step) for slot in slots])
        loss = -(BETA * margins).sigmoid().log().mean()
        losses.append(sft_runs.descend(model, loss, RATE))
    return dict(model.named_parameters()), losses, float((margins > 0).float().mean())


@pytest.mark.parametrize(("variant", "divisor"), [("plain", 1.0), ("divided", 8.0)])
def test_steps_and_losses_are_those_of_the_formula(one_rank, tiny_run, variant, divisor):
    weights, losses, accuracy = written_out(tiny_run / "model", divisor)
    found = one_rank[variant]
    for name, value in weights.items():
        torch.testing.assert_close(found["weights"][name], value.detach(), atol=2e-5, rtol=0, msg=name)
    for step, loss in enumerate(losses, start=1):
        assert found["metrics"][str(step)]["train/loss"] == pytest.approx(loss, abs=2e-5)
    assert found["metrics"]["2"]["train/accuracy"] == accuracy
    start = dict(AutoModelForCausalLM.from_pretrained(tiny_run / "model").named_parameters())
    assert max(float((start[name] - w).detach().abs().max()) for name, w in found["weights"].items()) > 1e-3


@pytest.mark.parametrize("variant", ["plain", "lora"])
def test_a_run_begins_at_its_reference(one_rank, variant):
    metrics = one_rank[variant]["metrics"]
    assert metrics["0"]["val/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["1"]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["2"]["val/loss"] < math.log(2) - 1e-4
    assert metrics["2"]["val/margin"] == pytest.approx(
        metrics["2"]["val/chosen_reward"] - metrics["2"]["val/rejected_reward"], abs=1e-5
    )


def test_the_adapter_alone_is_trained(one_rank, tiny_run):
    start = AutoModelForCausalLM.from_pretrained(tiny_run / "model").state_dict()
    weights = one_rank["lora"]["weights"]
    assert any("lora_B" in name and float(value.abs().max()) > 0 for name, value in weights.items())
    for name, value in weights.items():
        if "lora" not in name:
            torch.testing.assert_close(
                value, start[name.removeprefix("base_model.model.").replace(".base_layer", "")], atol=0, rtol=0
            )


@pytest.mark.parametrize("variant", ["micro", "budget"])
def test_micro_batches_change_nothing(one_rank, variant):
    for name, value in one_rank["plain"]["weights"].items():
        torch.testing.assert_close(one_rank[variant]["weights"][name], value, atol=2e-6, rtol=0, msg=name)


def test_two_ranks_equal_one(one_rank, tiny_run, common, tmp_path):
    names = ("budget", "lora")
    options = [[*common, *VARIANTS[name]] for name in names]
    for name, found in zip(names, sft_runs.run(2, tiny_run, options, tmp_path), strict=True):
        for key, value in one_rank[name]["weights"].items():
            torch.testing.assert_close(found["weights"][key], value, atol=2e-6, rtol=0, msg=key)
        for step in ("0", "2"):
            for metric in ("val/loss", "val/accuracy"):
                assert found["metrics"][step][metric] == pytest.approx(
                    one_rank[name]["metrics"][step][metric], abs=1e-5
                )
        assert found["metrics"]["2"]["train/loss"] == pytest.approx(
            one_rank[name]["metrics"]["2"]["train/loss"], abs=1e-5
        )


def test_the_gradients_of_bounds():
    equal = torch.tensor([-3.0, -5.0])
    assert bound_gradients(equal, equal, torch.ones(1), 1.0).tolist() == [-0.5, 0.5]
    far = bound_gradients(torch.tensor([2.0, 0.0]), torch.zeros(2), torch.tensor([3.0]), 0.5, 2.0)
    expected = -3 * 0.5 / 2 * torch.sigmoid(torch.tensor(-0.5))
    torch.testing.assert_close(far, torch.stack([expected, -expected]))
    table = preferences(torch.tensor([2.0, 0.0]), torch.zeros(2), 0.5, 2.0).table()
    assert table[0, 1:].tolist() == [1.0, 0.5, 0.5, 0.0]


@pytest.fixture(scope="module")
def reader(tiny_run):
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    end = tokenizer.eos_token_id
    return PairReader(RowReader(tokenizer=tokenizer, stop_token_ids=(end,), end_token_id=end))


def said(role, content):
    return {"role": role, "content": content}


def test_the_three_forms_of_a_row_are_one_pair(reader):
    question, right, wrong = said("user", "2+2="), said("assistant", "4"), said("assistant", "50")
    forms = [
        {"prompt": "2+2=", "chosen": "4", "rejected": "50"},
        {"prompt": [question], "chosen": [right], "rejected": [wrong]},
        {"chosen": [question, right], "rejected": [question, wrong]},
    ]
    (first,), *others = (reader.read(row) for row in forms)
    assert all(pair == first for (pair,) in others)
    decode = reader.reader.tokenizer.decode
    assert decode(first.chosen.answer_ids, skip_special_tokens=True) == "4"
    assert decode(first.rejected.answer_ids, skip_special_tokens=True) == "50"
    assert len(first) == len(first.rejected) == len(first.chosen) + 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "2+2=", "chosen": "4", "rejected": "4"}, "the same answer"),
        ({"prompt": "2+2=", "chosen": "4", "rejected": None}, "its rejected is NoneType"),
        ({"prompt": "2+2=", "chosen": " ", "rejected": "4"}, "chosen: message 1, the assistant's, is empty"),
        ({"chosen": "4", "rejected": "5"}, "there is no prompt"),
        (
            {
                "chosen": [said("user", "1+1="), said("assistant", "2")],
                "rejected": [said("user", "2+2="), said("assistant", "2")],
            },
            "do not answer the same prompt",
        ),
        (
            {
                "prompt": "1+1=",
                "chosen": [said("assistant", "2"), said("user", "3")],
                "rejected": [said("assistant", "4"), said("user", "3")],
            },
            "its last message is of the role 'user'",
        ),
    ],
)
def test_a_bad_row_is_refused_by_number(reader, row, words):
    good = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
    with pytest.raises(OptionError) as caught:
        read_examples([good, row], reader, key="data.train_files", name="pairs.parquet", max_length=16)
    assert "pairs.parquet, row 1" in str(caught.value) and words in str(caught.value)


def test_of_a_long_pair_both_answers_are_cut_or_left_out(reader):
    rows = [{"prompt": "2+2=", "chosen": "4", "rejected": "55555"}, {"prompt": "2+2=", "chosen": "4", "rejected": "5"}]
    options = {"key": "data.train_files", "name": "pairs.parquet", "max_length": 8}
    cut = read_examples(rows, reader, truncation="right", **options)
    assert [len(cut[n]) for n in range(2)] == [8, len(reader.read(rows[1])[0])]
    assert len(read_examples(rows, reader, truncation="skip", **options)) == 1
    with pytest.raises(OptionError, match="row 0"):
        read_examples(rows, reader, **options)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("preference.beta=0", "preference.beta"),
        ("preference.draws=0", "preference.draws"),
        ("preference.divisor=tokens", "preference.divisor"),
        ("preference.divisor=length", "preference.length"),
        ("preference.length=8", "preference.length"),
        ("data.fill=batch", "data.fill"),
        ("data.assistant_turns=last", "data.assistant_turns"),
        ("model.model_type=language_model", "model.model_type"),
        ("model.lora_adapter_path=adapter", "model.lora_adapter_path"),
        ("denoising.block_length=4", "denoising.block_length"),
        ("denoising.least_level=0.01", "denoising.least_level"),
    ],
)
def test_a_broken_setting_is_refused_by_its_key(tiny_run, common, override, key):
    config = ranks.compose_config(tiny_run, *common, override, name="sft_quickstart")
    with pytest.raises(OptionError) as caught:
        check_sft(config)
    assert caught.value.key == key


def test_the_shipped_config_passes_the_checks_but_for_its_files(tiny_run, common):
    places = [each for each in common if each.startswith(("model.path", "data.train_files", "data.val_files"))]
    config = ranks.compose_config(
        tiny_run, *places, "trainer.device=cpu", "data.max_length=256", name="dpo_llada_8b", folder_key=None
    )
    check_sft(config, 8)
    assert config.preference == {"beta": 0.2, "draws": 4, "divisor": "none", "length": None}

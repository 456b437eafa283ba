"""Short answers: what is of no account in the comparison, what is, and ground truths that are no answers."""

import json

import pytest

from maskgrpo_plugin import rewards
from maskgrpo_plugin.rewards.text.scorers.exact_answer import NUMBERS, normalise

EQUAL = [
    ("Yes", "yes"),
    ("yes.", "Yes"),
    ("  Yes!\n", "yes"),
    ("the dog", "dog"),
    ("A dog", "the dog"),
    ("an apple a day", "apple day"),
    ("two", "2"),
    ("Ten dogs", "10 dogs"),
    ("zero", "0"),
    ("t-shirt", "t shirt"),
    ("dog's", "dogs"),
    ("don’t", "dont"),
    ("1,000", "1000"),
    ("12,345,678", "12345678"),
    ("3.5", "3.5"),
    ("(-3)", "-3"),
    ("−3", "-3"),
    ("-.5", "-.5"),
    ("50%", "50"),
    ("$5", "5"),
    ("red, white and blue", "red white and blue"),
    ("(A)", "a"),
    ("A.", "A"),
    ("The", "the"),
    ("ＡＢ", "ab"),
    ("Ｙｅｓ。", "yes"),
    ("नमस्ते।", "नमस्ते"),
    ("yes<|eot_id|>no", "yes"),
    ("It says <answer>no</answer> or rather <answer> Yes. </answer>", "yes"),
]
DIFFERENT = [
    ("", "a"),
    ("...", "yes"),
    ("no", "yes"),
    ("yes no", "yes"),
    ("5", "-5"),
    ("35", "3.5"),
    ("1,00", "100"),
    ("the", "a"),
    ("eleven", "11"),
    ("two hundred", "200"),
    ("bananas", "banana"),
    ("another", "other"),
    ("yes <answer>no</answer>", "yes"),
    ("yes <answer></answer>", "yes"),
]


@pytest.mark.parametrize(("completion", "truth"), EQUAL)
def test_equal_answers(completion, truth):
    assert rewards.score("short_answer", completion, truth) == {"score": 1.0, "acc": 1.0}


@pytest.mark.parametrize(("completion", "truth"), DIFFERENT)
def test_other_answers(completion, truth):
    assert rewards.score("short_answer", completion, truth) == {"score": 0.0, "acc": 0.0}


def test_words_of_numbers_are_their_digits():
    assert [normalise(word) for word in NUMBERS] == [str(n) for n in range(11)]


@pytest.mark.parametrize("answer", ["The Two dogs.", "1,000.5%", "it's a (very) big-ish cat", "A", "-3.", "ten"])
def test_normalising_twice_changes_nothing(answer):
    assert normalise(normalise(answer)) == normalise(answer) != ""


def test_any_answer_of_a_list_is_right():
    accepted = ["sofa", "The Couch", 3]
    for truth in (accepted, json.dumps(accepted)):
        found = [rewards.score("short_answer", text, truth)["acc"] for text in ("Couch.", "a sofa", "three", "chair")]
        assert found == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("truth", "same"), [("5", "five"), (5, "5"), ("true", "True"), ("null", "null"), ("1e2", "1e2")]
)
def test_a_single_answer_is_no_json(truth, same):
    assert rewards.score("short_answer", same, truth)["acc"] == 1


@pytest.mark.parametrize("truth", ["", "?!", [], ["yes", ""], "[]", [["yes"]], None, {"answer": "yes"}])
def test_a_ground_truth_without_an_answer_is_refused(truth):
    with pytest.raises(ValueError, match="short_answer"):
        rewards.score("short_answer", "yes", truth)

"""A model from outside the package: a configuration and a class with an `encode`, and all else works."""

import pytest
import torch
from small_tokenizer import make_tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, Qwen2Config, Qwen2ForCausalLM

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.models.families import build_family
from maskgrpo_plugin.models.interface import MaskPredictorModel, at_columns
from maskgrpo_plugin.models.registry import MODELS, register_model

MASK = 3


class AverageConfig(PretrainedConfig):
    model_type = "average_of_the_row"

    def __init__(self, vocab_size=40, hidden_size=16, mask_token_id=MASK, **kwargs):
        self.vocab_size, self.hidden_size, self.mask_token_id = vocab_size, hidden_size, mask_token_id
        super().__init__(**kwargs)


class AverageModel(MaskPredictorModel):
    """Each position knows itself, its place, and the average of what it attends to."""

    config_class = AverageConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head

    def encode(self, inputs_embeds, layout):
        seen = torch.ones(*inputs_embeds.shape[:2], 1, dtype=torch.bool)
        if layout.attention_mask is not None:
            seen = layout.attention_mask[:, 0, 0, :, None]
        average = (inputs_embeds * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
        hidden = inputs_embeds + average + torch.sin(layout.position_ids.unsqueeze(-1).float())
        return hidden if layout.columns is None else at_columns(hidden, layout.columns)


class QwenConfig(Qwen2Config):
    model_type = "qwen_in_both_directions"


class QwenModel(MaskPredictorModel, Qwen2ForCausalLM):
    """Qwen2 of transformers, attending in both directions."""

    config_class = QwenConfig

    def encode(self, inputs_embeds, layout):
        mask = layout.attention_mask
        if mask is None:
            mask = torch.ones(1, 1, 1, 1, dtype=torch.bool).expand(
                inputs_embeds.shape[0], 1, inputs_embeds.shape[1], inputs_embeds.shape[1]
            )
        hidden = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask={"full_attention": mask},
            position_ids=layout.position_ids,
            use_cache=False,
        ).last_hidden_state
        return hidden if layout.columns is None else at_columns(hidden, layout.columns)


def qwen_config():
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return QwenConfig(vocab_size=40, intermediate_size=48, mask_token_id=MASK, attn_implementation="sdpa", **sizes)


@pytest.fixture(params=["average", "qwen"])
def model(request):
    kinds = {"average": (AverageConfig, AverageModel), "qwen": (QwenConfig, QwenModel)}
    register_model(*kinds[request.param])
    register_model(*kinds[request.param])
    torch.manual_seed(0)
    config = AverageConfig() if request.param == "average" else qwen_config()
    yield AutoModelForCausalLM.from_config(config).eval()
    del MODELS[config.model_type]


def test_it_is_saved_and_loaded_by_transformers(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(4, 12).view(2, 4)
    assert type(loaded) is type(model) and torch.equal(loaded(ids).logits, model(ids).logits)


def test_padding_takes_no_part(model):
    row = torch.arange(10, 16)
    padded, mask = torch.cat([torch.tensor([7, 7]), row])[None], torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    columns = torch.tensor([[4, 7]])
    with torch.no_grad():
        alone = model(row[None]).logits
        assert not torch.equal(alone[0, 0], model(row[None].flip(-1)).logits[0, -1])
        whole = model(padded, attention_mask=mask).logits
        some = model(padded, attention_mask=mask, logits_positions=columns).logits
    torch.testing.assert_close(whole[:, 2:], alone)
    torch.testing.assert_close(some, alone[:, [2, 5]])


def test_a_line_is_scored_like_its_rows(model):
    rows = [torch.arange(10, 16), torch.arange(20, 23)]
    packing, places = Packing.from_lengths([6, 3], "cpu"), torch.tensor([1, 5, 8])
    targets = torch.tensor([4, 5, 6])
    log_probs = model(torch.cat(rows)[None], packing=packing, logits_positions=places, target_ids=targets).log_probs
    alone = torch.cat([model(row[None]).logits[0] for row in rows])[places].log_softmax(-1)
    torch.testing.assert_close(log_probs, alone[range(3), targets])


def test_it_is_sampled_and_has_a_family(model):
    tokenizer = make_tokenizer()
    family = build_family(model.config, tokenizer)
    assert (family.name, family.mask_token_id, family.vocabulary) == ("text", MASK, 40)
    prompt = family.text_to_text([{"role": "user", "content": "what is this"}], 4)
    sampler = build_sampler("semi_autoregressive", steps=4, response_length=4, block_length=4, temperature=0.0)
    ids = torch.tensor([prompt.canvas_ids, prompt.canvas_ids])
    sequences = sampler.generate(model, ids, mask_token_id=MASK).sequences
    start = len(prompt.prompt_ids)
    assert (sequences != MASK).all() and torch.equal(sequences[:, :start], ids[:, :start])


def test_a_block_length_is_refused_where_attention_is_bidirectional(model):
    with pytest.raises(ValueError, match="block_length=4"):
        model(torch.arange(4, 8)[None], block_length=4)

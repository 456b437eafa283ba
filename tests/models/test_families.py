"""Families: prompts token by token with a small tokenizer, published defaults, and refused numbers."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from small_tokenizer import make_tokenizer

import maskgrpo_plugin  # noqa: F401
from maskgrpo_plugin.models.families import (
    FAMILIES,
    Family,
    ImageFamily,
    ImageTokens,
    build_family,
    load_family,
    register_family,
)
from maskgrpo_plugin.models.llada import LLaDAConfig
from maskgrpo_plugin.models.magvitv2 import MAGVITv2Config
from maskgrpo_plugin.models.mmada import MMadaConfig

MMADA = ["[iPAD]", "<|t2i|>", "<|mmu|>", "<|soi|>", "<|eoi|>"]
DIMOO = ["<image>", "</image>", "<answer>", "</answer>", "<newline>", "<uncondition>"]
DIMOO += ["<system>", "</system>", "<user>", "</user>"]


def mmada(tokenizer=None, **changes):
    tokenizer = tokenizer or make_tokenizer(*MMADA)
    settings = {
        "new_vocab_size": len(tokenizer) + 32,
        "codebook_size": 32,
        "num_vq_tokens": 4,
        "max_text_length": 8,
        "mask_token_id": 3,
    }
    return build_family(MMadaConfig(**(settings | changes)), tokenizer)


def dimoo(**changes):
    tokenizer = make_tokenizer(*DIMOO)
    size = len(tokenizer) + 32
    settings = {
        "vocab_size": size,
        "embedding_size": size,
        "mask_token_id": 3,
        "codebook_size": 32,
        "num_vq_tokens": 4,
        "architectures": ["LLaDAForMultiModalGeneration"],
        "system_prompts": {"text_to_image": "draw", "understanding": "what"},
    }
    return build_family(LLaDAConfig(**(settings | changes)), tokenizer)


def names(family, ids):
    return " ".join(
        f"#{i - family.image.offset}" if i >= family.image.offset else family.tokenizer.convert_ids_to_tokens(i)
        for i in ids
    )


def test_text_to_image_prompt_token_by_token():
    family = mmada()
    prompt = family.text_to_image("a handwritten seven")
    assert names(family, prompt.prompt_ids) == ("[iPAD] [iPAD] <|t2i|> <bos> a handwritten seven <eos> <|soi|>")
    assert prompt.prompt_mask == (0, 0, 1, 1, 1, 1, 1, 1, 1)
    assert names(family, prompt.response_ids) == " ".join(["<|mdm_mask|>"] * 4 + ["<|eoi|>"])
    assert prompt.response_mask == (1, 1, 1, 1, 0)
    assert prompt.canvas_ids == prompt.prompt_ids + prompt.response_ids


def test_the_unconditional_twin_is_as_long_and_has_no_text():
    family = mmada()
    prompt = family.text_to_image("a handwritten seven")
    assert names(family, prompt.uncond_ids) == " ".join(["[iPAD]"] * 5 + ["<|t2i|>", "<bos>", "<eos>", "<|soi|>"])
    assert prompt.uncond_mask == (0,) * 5 + (1,) * 4
    assert len(prompt.uncond_ids) == len(prompt.prompt_ids) == family.text_length + 1
    assert family.text_to_image("").prompt_ids == prompt.uncond_ids


def test_understanding_prompt_token_by_token():
    family = mmada()
    question = [{"role": "user", "content": "what is this"}]
    prompt = family.understanding([0, 31, 5, 7], question, 3)
    assert names(family, prompt.prompt_ids) == "<|mmu|> <|soi|> #0 #31 #5 #7 <|eoi|> <bos> what is this"
    assert prompt.prompt_mask == (1,) * 11
    assert prompt.response_ids == (family.mask_token_id,) * 3 and prompt.response_mask == (1, 1, 1)
    assert prompt.uncond_ids == ()
    with_bos = family.understanding([0], [{"role": "user", "content": "<bos> what"}], 1)
    assert names(family, with_bos.prompt_ids) == "<|mmu|> <|soi|> #0 <|eoi|> <bos> what"


def test_padding_that_is_attended_to_is_no_padding_to_what_follows():
    """The published canvas: text length and `<|soi|>`, all of it seen by the model."""
    hidden, seen = mmada().text_to_image("a seven"), mmada(attend_to_padding=True).text_to_image("a seven")
    assert names(mmada(), seen.prompt_ids) == "[iPAD] [iPAD] [iPAD] <|t2i|> <bos> a seven <eos> <|soi|>"
    assert (seen.prompt_ids, seen.uncond_ids) == (hidden.prompt_ids, hidden.uncond_ids)
    assert seen.prompt_mask == seen.uncond_mask == (1,) * 9 and hidden.prompt_mask == (0,) * 3 + (1,) * 6
    published = MMadaConfig(attend_to_padding=True).to_dict()
    assert published["attend_to_padding"] is True and published["max_text_length"] == 257


def test_a_text_up_to_the_length_fits_and_one_longer_is_refused():
    family = mmada()
    assert sum(family.text_to_image("a a a a a").prompt_mask) == 9
    with pytest.raises(ValueError, match=r"'a a a a a a' takes 9 tokens.*allowed are 8"):
        family.text_to_image("a a a a a a")


def test_published_ids_where_the_tokenizer_names_none():
    class Published:
        bos_token_id, eos_token_id, mask_token_id = 126080, 126081, None

        def __len__(self):
            return 126349

        def get_vocab(self):
            return {}

        def convert_ids_to_tokens(self, token):
            return "<|mdm_mask|>"

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [11, 12] if text else []}

    family = build_family(MMadaConfig(), Published())
    prompt = family.text_to_image("a cat")
    assert len(prompt.prompt_ids) == 258 and len(prompt.response_ids) == 1025
    assert prompt.prompt_ids[-6:] == (126088, 126080, 11, 12, 126081, 126084)
    assert set(prompt.prompt_ids[:-6]) == {126093}
    assert set(prompt.response_ids[:-1]) == {126336} and prompt.response_ids[-1] == 126085
    assert family.image.vocab_slice == (126349, 134541)
    attended = build_family(MMadaConfig(attend_to_padding=True), Published()).text_to_image("a cat")
    assert attended.prompt_ids == (126093,) * 252 + (126088, 126080, 11, 12, 126081, 126084)
    assert attended.prompt_mask == attended.uncond_mask == (1,) * 258


def test_config_decides_over_the_tokenizer():
    family = mmada(special_token_ids={"<|soi|>": 1})
    assert family.text_to_image("a").prompt_ids[-1] == 1


def test_an_id_that_the_vocabulary_lacks_is_refused_by_name():
    family = mmada(make_tokenizer())
    with pytest.raises(ValueError, match=r"<\|t2i\|>.*126088"):
        family.text_to_image("a")


def test_a_codebook_that_passes_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"codebook_size=40.*1 to 32"):
        mmada(codebook_size=40)


def test_image_tokens_and_codes():
    image = ImageTokens(offset=100, codebook_size=8, count=4)
    codes = torch.arange(8).view(2, 4)
    assert torch.equal(image.to_codes(codes + 100), codes)
    assert image.vocab_slice == (100, 108)
    with pytest.raises(ValueError, match="100 to 107"):
        image.to_codes(torch.tensor([99]))


def test_the_image_tokenizer_must_fit():
    family = mmada()
    fitting = MAGVITv2Config(code_bits=5)
    assert family.image_grid(fitting, 32, 64) == (2, 4)
    with pytest.raises(ValueError, match="40 does not fit the tokenizer; allowed are multiples of 16"):
        family.image_grid(fitting, 32, 40)
    with pytest.raises(ValueError, match=r"8192 codes; allowed for this checkpoint are 32"):
        family.image_grid(MAGVITv2Config(), 32, 32)


@pytest.mark.parametrize("codes", [[32], [-1], []])
def test_codes_outside_the_codebook_are_refused(codes):
    with pytest.raises(ValueError, match="0 to 31"):
        mmada().understanding(codes, [{"role": "user", "content": "what"}], 2)


def test_another_grid_than_the_checkpoints():
    family = mmada()
    assert family.text_to_image("a", (2, 3)).response_mask == (1,) * 6 + (0,)
    with pytest.raises(ValueError, match="num_vq_tokens=6 is no square"):
        mmada(num_vq_tokens=6).text_to_image("a")


def test_dimoo_prompt_has_newlines_that_are_not_written_by_the_model():
    family = dimoo()
    prompt = family.text_to_image("a seven")
    assert family.name == "dimoo"
    text = "<system> draw </system> <user> a seven </user> <answer> <image>"
    assert names(family, prompt.prompt_ids) == text
    mask = "<|mdm_mask|>"
    assert names(family, prompt.response_ids) == (f"{mask} {mask} <newline> {mask} {mask} <newline> </image> </answer>")
    assert prompt.response_mask == (1, 1, 0, 1, 1, 0, 0, 0)
    twin = "<pad> <system> draw </system> <user> <uncondition> </user> <answer> <image>"
    assert names(family, prompt.uncond_ids) == twin
    assert prompt.uncond_mask == (0,) + (1,) * 8 and len(prompt.uncond_ids) == len(prompt.prompt_ids)


def test_dimoo_understanding_prompt():
    family = dimoo()
    prompt = family.understanding([0, 1, 2, 3], [{"role": "user", "content": "is this"}], 2)
    assert names(family, prompt.prompt_ids) == (
        "<system> what </system> <user> is this <image> #0 #1 <newline> #2 #3 <newline> </image> </user> <answer>"
    )
    assert names(family, prompt.response_ids) == "<|mdm_mask|> <|mdm_mask|> </answer>"
    assert prompt.response_mask == (1, 1, 0)
    with pytest.raises(ValueError, match="system_prompts names no 'understanding'"):
        dimoo(system_prompts={}).understanding([0], [], 1)


def test_dimoo_answers_end_with_their_closing_token_too():
    family = dimoo()
    assert family.stop_token_ids == (2, family.token_id("</answer>"))
    assert mmada().stop_token_ids == (2,)


def test_settings_of_the_chat_template_reach_it():
    tokenizer = make_tokenizer(*MMADA)
    tokenizer.chat_template = "{% if brief %}a {% endif %}{{ messages[0]['content'] }}"
    family, question = mmada(tokenizer), [{"role": "user", "content": "what"}]
    text = family.text_to_text(question, 1, brief=True)
    image = family.understanding([0], question, 1, brief=True)
    assert names(family, text.prompt_ids) == "a what"
    assert names(family, image.prompt_ids) == "<|mmu|> <|soi|> #0 <|eoi|> <bos> a what"
    assert names(family, family.text_to_text(question, 1).prompt_ids) == "what"


def test_dimoo_is_recognised_by_its_tokenizer_after_saving():
    assert dimoo(architectures=["LLaDAModelLM"]).name == "dimoo"


def test_text_families():
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    llada = build_family(LLaDAConfig(vocab_size=size, embedding_size=size, mask_token_id=3), tokenizer)
    assert (llada.name, llada.mask_token_id, llada.stop_token_ids) == ("llada", 3, (2,))
    prompt = llada.text_to_text([{"role": "user", "content": "what is this"}], 2)
    assert prompt.prompt_ids == tuple(tokenizer("what is this")["input_ids"]) and prompt.response_ids == (3, 3)
    with pytest.raises(ValueError, match="response_length=0"):
        llada.text_to_text([{"role": "user", "content": "what"}], 0)


def test_an_unknown_checkpoint_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"model_type 'bert'.*llada, .*mmada"):
        build_family(SimpleNamespace(model_type="bert"), make_tokenizer())
    with pytest.raises(ValueError, match=f"family='x': allowed are {', '.join(FAMILIES)}"):
        build_family(SimpleNamespace(model_type="llada", family="x"), make_tokenizer())


def test_a_mask_token_that_cannot_be_it_is_refused():
    with pytest.raises(ValueError, match="mask_token_id=1"):
        mmada(mask_token_id=1)


def test_an_image_family_must_lay_out_its_prompts():
    class Half(ImageFamily):
        name, model_types = "half", ("half",)

        def text_to_image(self, text, grid=None):
            raise NotImplementedError

    with pytest.raises(TypeError, match="understanding"):
        Half(MMadaConfig(), make_tokenizer())


@pytest.fixture
def restored_families():
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


def test_a_family_from_outside_is_asked_first(restored_families):
    @register_family
    class Mine(Family):
        name, model_types, end_tokens = "mine", ("llada",), ("seven",)

        @classmethod
        def recognises(cls, config, tokenizer):
            return super().recognises(config, tokenizer) and getattr(config, "mine", False)

    tokenizer = make_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "embedding_size": len(tokenizer), "mask_token_id": 3}
    family = build_family(LLaDAConfig(**sizes, mine=True), tokenizer)
    assert isinstance(family, Mine) and family.stop_token_ids == (2, family.token_id("seven"))
    assert build_family(LLaDAConfig(**sizes), tokenizer).name == "llada"
    assert register_family(Mine) is Mine
    with pytest.raises(ValueError, match="family 'mine'"):
        register_family(type("Other", (Family,), {"name": "mine", "model_types": ()}))


def test_a_runs_override_config_reaches_its_family(tmp_path):
    tokenizer = make_tokenizer(*MMADA)
    family = mmada(tokenizer)
    family.config.save_pretrained(tmp_path)
    plain = OmegaConf.create({"path": str(tmp_path), "override_config": {}})
    attended = OmegaConf.create({"path": str(tmp_path), "override_config": {"attend_to_padding": True}})
    assert load_family(plain, tokenizer).text_to_image("a").prompt_mask == (0,) * 4 + (1,) * 5
    assert load_family(attended, tokenizer).text_to_image("a").prompt_mask == (1,) * 9
    assert load_family(plain, tokenizer) is load_family(plain, tokenizer)

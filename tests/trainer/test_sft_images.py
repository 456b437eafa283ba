"""Sketches of supervised training: captions of several lengths, guided as in a rollout."""

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from maskgrpo_plugin.data.sft_rows import RowReader
from maskgrpo_plugin.diffusion.random import combine_seed
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.models.families import build_family
from maskgrpo_plugin.trainer.sft_images import Sketcher
from maskgrpo_plugin.workers.rollout.images import ImageDecoder

CAPTIONS = ("a", "a handwritten seven", "a handwritten")


def test_images_are_those_of_the_familys_own_layout_with_its_prompt_without_text(tiny_digits):
    """The family pads all prompts to one length; here they come unpadded, and the one without text is the shortest."""
    folder = tiny_digits / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.data *= 3  # what is seen decides
    family = build_family(model.config, tokenizer)
    decoder = ImageDecoder(str(tiny_digits / "vq"), family, torch.device("cpu"))
    rows, columns = family.default_grid()
    reader = RowReader(tokenizer, family.stop_token_ids, tokenizer.eos_token_id, family)
    codes = [0] * (rows * columns)
    examples = [reader.read({"caption": caption, "image_codes": codes})[0] for caption in CAPTIONS]
    options = {"steps": 4, "cfg_scale": 3.0}
    found = Sketcher(family, decoder, "maskgit", options, 1.0, seed=5).draw(model, examples, "cpu")

    sampler = build_sampler(
        "maskgit", **options, response_length=rows * columns, temperature=1.0, vocab_slice=family.image.vocab_slice
    )
    for number, caption in enumerate(CAPTIONS):
        layout = family.text_to_image(caption)
        mask = torch.tensor([layout.prompt_mask + (1,) * len(layout.response_ids)])
        sequences = sampler.generate(
            model,
            torch.tensor([layout.canvas_ids]),
            mask,
            mask_token_id=family.mask_token_id,
            generator=[torch.Generator().manual_seed(combine_seed(5, number))],
            uncond_input_ids=torch.tensor([layout.uncond_ids]),
            uncond_attention_mask=torch.tensor([layout.uncond_mask]),
        ).sequences
        tokens = sequences[:, len(layout.prompt_ids) : len(layout.prompt_ids) + rows * columns]
        (expected,) = decoder.decode(tokens, (rows, columns))
        assert np.array_equal(found[number], expected)

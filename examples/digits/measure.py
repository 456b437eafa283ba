"""Draw digits with the trained model, print how probable the prompted digit is in them, and write them as a sheet.

Each sampler draws the same number of images of each digit, judged by the example's classifier.
"""

import argparse
import sys
from pathlib import Path

import torch
from digit_data import DIGIT_NAMES, digit_prompt
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import maskgrpo_plugin.models
from maskgrpo_plugin.arguments import positive
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.models.families import ImageFamily, build_family
from maskgrpo_plugin.models.image_scorers import ImageClassifier
from maskgrpo_plugin.models.image_tokenizers import load_image_tokenizer
from maskgrpo_plugin.pixels import write_contact_sheet

# sampler and guidance weight, by the name in the report
SAMPLERS = {"emerge": ("emerge", 0.0), "maskgit": ("maskgit", 0.0), "emerge_cfg": ("emerge", 1.5)}
STEPS = 8
SHEET_COLUMNS = 8


@torch.no_grad()
def draw(
    model: torch.nn.Module, family: ImageFamily, digits: Tensor, *, sampler: str, cfg_scale: float, seed: int
) -> Tensor:
    """Image codes (B, N) of the prompts of `digits` (B,)."""
    prompts = [family.text_to_image(digit_prompt(int(digit))) for digit in digits]
    canvas = torch.tensor([prompt.canvas_ids for prompt in prompts])
    mask = torch.tensor([(*prompt.prompt_mask, *(1 for _ in prompt.response_ids)) for prompt in prompts])
    written = canvas[0] == family.mask_token_id
    sampling = build_sampler(
        sampler,
        steps=STEPS,
        response_length=int(written.sum()),
        cfg_scale=cfg_scale,
        vocab_slice=family.image.vocab_slice,
    )
    output = sampling.generate(
        model,
        canvas,
        mask,
        mask_token_id=family.mask_token_id,
        generator=torch.Generator().manual_seed(seed),
        uncond_input_ids=torch.tensor([prompt.uncond_ids for prompt in prompts]),
        uncond_attention_mask=torch.tensor([prompt.uncond_mask for prompt in prompts]),
    )
    return family.image.to_codes(output.sequences[:, written])


def measure(folder: Path, images_a_digit: int, seed: int) -> dict[str, float]:
    """Draw with the folder's `model` and `vq`, judge with its `classifier`, and write `samples.png` of emerge.

    Returns:
        by sampler: mean probability of the prompted digit, and share of the images whose most probable digit it is.

    Raises:
        TypeError: the model draws no images.
    """
    maskgrpo_plugin.models.register()
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    family = build_family(model.config, AutoTokenizer.from_pretrained(folder / "model"))
    if not isinstance(family, ImageFamily):
        raise TypeError(f"the family {family.name} draws no images")
    vq, classifier = load_image_tokenizer(str(folder / "vq")), ImageClassifier(folder / "classifier")
    asked = torch.arange(10).repeat_interleave(images_a_digit)
    results = {}
    for name, (sampler, scale) in SAMPLERS.items():
        codes = draw(model, family, asked, sampler=sampler, cfg_scale=scale, seed=seed)
        with torch.no_grad():
            pixels = vq.decode_code(codes)
        shown = classifier.probabilities(pixels)
        results[f"probability_{name}"] = float(shown.gather(1, asked[:, None]).mean())
        results[f"accuracy_{name}"] = float((shown.argmax(1) == asked).float().mean())
        if name == "emerge":
            few = (
                torch.arange(10)[:, None] * images_a_digit + torch.arange(min(SHEET_COLUMNS, images_a_digit))
            ).flatten()
            write_contact_sheet(pixels[few], folder / "samples.png", [DIGIT_NAMES[int(digit)] for digit in asked[few]])
    return results


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the example's run, with model, vq and classifier")
    parser.add_argument("--images-a-digit", type=positive, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    for name, value in measure(options.folder, options.images_a_digit, options.seed).items():
        sys.stdout.write(f"{name} {value:.3f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

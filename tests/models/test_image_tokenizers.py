"""Image tokenizers by format: a small diffusers VQModel against its parts, and what is refused."""

import importlib.util
import json

import pytest
import torch

from maskgrpo_plugin.models.image_tokenizers import image_tokenizer_config, load_image_tokenizer
from maskgrpo_plugin.models.magvitv2 import MAGVITv2

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module", params=[True, False], ids=["lookup", "no_lookup"])
def folder(tmp_path_factory, request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = diffusers.VQModel(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=6,
            norm_num_groups=4,
            num_vq_embeddings=32,
            mid_block_add_attention=False,
            lookup_from_codebook=request.param,
        )
        model.quantize.embedding.weight.data.normal_()
    path = tmp_path_factory.mktemp("vq")
    model.save_pretrained(path)
    return path


def test_a_diffusers_checkpoint_decodes_the_codes_vectors(folder):
    tokenizer = load_image_tokenizer(str(folder))
    codes = torch.randint(32, (2, 15), generator=torch.Generator().manual_seed(1))
    published = diffusers.VQModel.from_pretrained(folder)
    vectors = published.quantize.embedding(codes).reshape(2, 3, 5, 6).permute(0, 3, 1, 2)
    with torch.no_grad():
        sample = published.decoder(published.post_quant_conv(vectors))
    got = tokenizer.decode_code(codes, (3, 5))
    assert got.shape == (2, 3, 12, 20)
    torch.testing.assert_close(got, sample * 2 - 1, atol=1e-5, rtol=0)


def test_codes_of_an_image_are_the_nearest_vectors(folder):
    tokenizer = load_image_tokenizer(str(folder))
    pixels = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(2)) * 2 - 1
    codes = tokenizer.get_code(pixels)
    with torch.no_grad():
        latents = tokenizer.model.encode((pixels + 1) / 2).latents.permute(0, 2, 3, 1).reshape(-1, 6)
    distances = torch.cdist(latents, tokenizer.model.quantize.embedding.weight)
    assert torch.equal(codes.reshape(-1), distances.argmin(-1))
    assert codes.unique().numel() > 1


def test_its_config_gives_grid_and_codebook(folder):
    config = image_tokenizer_config(str(folder))
    assert (config.codebook_size, config.grid(12, 20)) == (32, (3, 5))
    with pytest.raises(ValueError, match="height 10"):
        config.grid(10, 20)
    with pytest.raises(ValueError, match="0 to 31"):
        load_image_tokenizer(str(folder)).decode_code(torch.full((1, 4), 32))
    with pytest.raises(ValueError, match="grid of 2 × 3"):
        load_image_tokenizer(str(folder)).decode_code(torch.zeros(1, 4, dtype=torch.long), (2, 3))


def test_diffusers_is_asked_for_where_it_is_missing(folder, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "diffusers" else find_spec(name))
    with pytest.raises(ModuleNotFoundError, match=r"maskgrpo-plugin\[dimoo\]"):
        load_image_tokenizer(str(folder))


def test_another_folder_is_magvit(tiny_digits):
    assert isinstance(load_image_tokenizer(str(tiny_digits / "vq")), MAGVITv2)
    config = json.loads((tiny_digits / "vq" / "config.json").read_text())
    assert image_tokenizer_config(str(tiny_digits / "vq")).codebook_size == 2 ** config["code_bits"]

"""MAGVIT-v2: golden numbers, the published layout, code arithmetic, and refused inputs."""

import json
import math
import zlib

import pytest
import torch
from golden_files import tolerance
from safetensors.torch import load_file, save_file

from maskgrpo_plugin.models.magvitv2 import MAGVITv2, MAGVITv2Config
from maskgrpo_plugin.models.magvitv2.modeling_magvitv2 import bits_to_indices, indices_to_codes


def seeded(name: str, shape: list[int]) -> torch.Tensor:
    """The weight that the golden numbers were made with; see tests/golden/magvitv2."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) > 1:
        return x / math.sqrt(x[0].numel())
    return 1 + 0.05 * x if name.endswith("weight") else 0.05 * x


def sizes_of(shapes: dict[str, list[int]]) -> dict[str, object]:
    """What the shapes of the weights tell of the config."""

    def blocks(side: str) -> list[int]:
        counts = []
        while f"{side}.{len(counts)}.block.0.conv1.weight" in shapes:
            prefix = f"{side}.{len(counts)}.block."
            counts.append(sum(name.startswith(prefix) and name.endswith(".conv1.weight") for name in shapes))
        return counts

    base, channels = shapes["encoder.conv_in.weight"][:2]
    levels = range(len(blocks("encoder.down")))
    return {
        "in_channels": channels,
        "base_channels": base,
        "channel_multipliers": [shapes[f"encoder.down.{n}.block.0.conv1.weight"][0] // base for n in levels],
        "encoder_blocks": blocks("encoder.down"),
        "decoder_blocks": blocks("decoder.up"),
        "code_bits": shapes["encoder.conv_out.weight"][0],
    }


@pytest.fixture(scope="module")
def shapes(golden_path):
    return json.loads(golden_path("magvitv2", "shapes.json").read_text())


@pytest.fixture(scope="module")
def model(shapes, golden_path, tmp_path_factory):
    """The model of a published folder, whose config names no sizes; those that are not the default are added."""
    folder = tmp_path_factory.mktemp("published")
    save_file({name: seeded(name, shape) for name, shape in shapes.items()}, folder / "pytorch_model.safetensors")
    default = MAGVITv2Config()
    config = {name: value for name, value in sizes_of(shapes).items() if getattr(default, name) != value}
    file = golden_path("magvitv2") / "config.json"
    config |= json.loads(file.read_text()) if file.is_file() else {}
    (folder / "config.json").write_text(json.dumps({"_class_name": "MAGVITv2", "_version": "0.0.1", **config}))
    return MAGVITv2.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def golden(golden_path):
    return load_file(golden_path("magvitv2", "golden.safetensors"))


def tiny(**changes) -> MAGVITv2:
    settings = {
        "base_channels": 8,
        "channel_multipliers": (1, 2),
        "encoder_blocks": (1, 2),
        "decoder_blocks": (2, 1),
        "code_bits": 5,
        "norm_groups": 4,
    }
    torch.manual_seed(0)
    return MAGVITv2(MAGVITv2Config(**(settings | changes))).eval()


@pytest.mark.golden
def test_names_and_shapes_are_the_published_ones(model, shapes, golden):
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == shapes
    assert model.config.codebook_size == 2 ** golden["encoded"].shape[1]
    assert model.config.downsampling == golden["pixels"].shape[-1] // golden["encoded"].shape[-1]


def test_the_published_sizes_are_the_default():
    assert MAGVITv2Config().codebook_size == 8192 and MAGVITv2Config().downsampling == 16


@pytest.mark.golden
def test_decoded_pixels_equal_the_published_ones(model, golden):
    height, width = golden["decoded"].shape[-2:]
    decoded = model.decode_code(golden["indices"], model.config.grid(height, width))
    torch.testing.assert_close(decoded, golden["decoded"], atol=tolerance(golden["decoded"], 1e-4), rtol=0)


@pytest.mark.golden
def test_codes_equal_the_published_ones(model, golden):
    with torch.no_grad():
        latents = model.encode(golden["pixels"])
    torch.testing.assert_close(latents, golden["encoded"], atol=tolerance(golden["encoded"], 1e-4), rtol=0)
    assert torch.equal(model.get_code(golden["pixels"]), golden["codes"])


def test_saving_and_loading_keeps_names_and_numbers(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    loaded = MAGVITv2.from_pretrained(tmp_path).eval()
    assert loaded.config.channel_multipliers == [1, 2] and loaded.config.code_bits == 5
    pixels = torch.rand(2, 3, 8, 12) * 2 - 1
    codes = model.get_code(pixels)
    assert torch.equal(codes, loaded.get_code(pixels))
    assert torch.equal(model.decode_code(codes, (4, 6)), loaded.decode_code(codes, (4, 6)))


def test_a_pickled_folder_loads_too(tmp_path):
    model = tiny()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = MAGVITv2.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_a_folder_without_weights_is_refused(tmp_path):
    tiny().config.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        MAGVITv2.from_pretrained(tmp_path)


def test_indices_and_codes_are_inverse():
    indices = torch.arange(32).reshape(2, 16)
    codes = indices_to_codes(indices, 5, (4, 4), torch.float32)
    assert codes.shape == (2, 5, 4, 4) and set(codes.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(bits_to_indices(codes > 0), indices)
    assert codes[1, :, 0, 0].tolist() == [1, -1, -1, -1, -1]  # 16: the first channel is the most significant bit


def test_images_of_a_batch_do_not_touch_each_other():
    model = tiny()
    pixels = torch.rand(3, 3, 8, 8) * 2 - 1
    assert torch.equal(model.get_code(pixels)[1:2], model.get_code(pixels[1:2]))


def test_the_training_path_has_gradients_and_equals_decoding():
    model = tiny()
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    rebuilt, latents = model(pixels)
    torch.testing.assert_close(rebuilt, model.decode_code(model.get_code(pixels)), atol=1e-5, rtol=0)
    assert latents.shape == (2, 5, 4, 4)
    rebuilt.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("size", [(9, 8), (8, 0), (8, 7)])
def test_sides_that_the_tokenizer_does_not_divide_are_refused(size):
    side = next(side for side in size if side != 8)
    with pytest.raises(ValueError, match=f"{side} does not fit.*multiples of 2"):
        tiny().get_code(torch.zeros(1, 3, *size))


def test_indices_outside_the_codebook_are_refused():
    with pytest.raises(ValueError, match="0 to 31"):
        tiny().decode_code(torch.tensor([[0, 1, 2, 32]]))


@pytest.mark.parametrize(("tokens", "grid"), [(15, None), (16, (3, 4)), (0, None)])
def test_tokens_that_fill_no_grid_are_refused(tokens, grid):
    with pytest.raises(ValueError, match=f"{tokens} image tokens"):
        tiny().decode_code(torch.zeros(1, tokens, dtype=torch.long), grid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_blocks": (1,)}, "encoder_blocks"),
        ({"norm_groups": 3}, "norm_groups=3"),
        ({"code_bits": 0}, "code_bits=0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    model = tiny()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "encoder.conv_in.bias"}
    for file in ("model.safetensors", "pytorch_model.safetensors"):
        folder = tmp_path / file.partition(".")[0]
        model.config.save_pretrained(folder)
        save_file(state, folder / file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks 1 parameters: encoder\.conv_in\.bias"):
            MAGVITv2.from_pretrained(folder)

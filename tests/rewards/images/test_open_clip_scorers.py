"""clip, hpsv2 and aesthetic with tiny random models: equality with a computation of their own from the same weights."""

import itertools
import json

import numpy as np
import pytest
import torch
from image_helpers import sample
from torch import nn
from torch.nn import functional as F

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.rewards.images import ImageSample, build_scorer, get_scorer

open_clip = pytest.importorskip("open_clip", reason="the extra `open_clip_torch` is not installed")

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 28, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Name of a small architecture that open_clip knows, its weights in a file, and the model itself."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip").eval()
    file = folder / "tiny.pt"
    torch.save({"state_dict": model.state_dict()}, file)
    return "tiny-clip", str(file), model


def random_images(*shapes):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def tokens(texts):
    return open_clip.get_tokenizer("tiny-clip")(texts)


def normalised(pixels):
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def vision_by_hand(state, pixels):
    """The vision transformer's forward pass, written out from the weights; (B, 3, 28, 28) -> (B, 16)."""

    def get(name):
        return state[f"visual.{name}"]

    width = 32
    x = F.conv2d(pixels, get("conv1.weight"), stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([get("class_embedding").expand(len(x), 1, -1), x], 1) + get("positional_embedding")
    x = F.layer_norm(x, (width,), get("ln_pre.weight"), get("ln_pre.bias"))
    for n in range(2):

        def part(name, n=n):
            return get(f"transformer.resblocks.{n}.{name}")

        y = F.layer_norm(x, (width,), part("ln_1.weight"), part("ln_1.bias"))
        q, k, v = F.linear(y, part("attn.in_proj_weight"), part("attn.in_proj_bias")).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (q, k, v))
        y = ((q @ k.transpose(-1, -2) / 16**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, part("attn.out_proj.weight"), part("attn.out_proj.bias"))
        y = F.layer_norm(x, (width,), part("ln_2.weight"), part("ln_2.bias"))
        y = F.gelu(F.linear(y, part("mlp.c_fc.weight"), part("mlp.c_fc.bias")))
        x = x + F.linear(y, part("mlp.c_proj.weight"), part("mlp.c_proj.bias"))
    x = F.layer_norm(x[:, 0], (width,), get("ln_post.weight"), get("ln_post.bias"))
    return F.normalize(x @ get("proj"), dim=-1)


def test_clip_equals_the_cosine_computed_from_the_weights(tiny):
    name, file, model = tiny
    scorer = build_scorer("clip", {"model": name, "pretrained": file, "device": "cpu"})
    images = random_images((28, 28), (28, 28), (28, 28))
    prompts = ["a cat", "a dog", "a very long prompt " * 40]
    scores = scorer.score([ImageSample(i, p) for i, p in zip(images, prompts, strict=True)])
    pixels = torch.stack([normalised(torch.tensor(i).permute(2, 0, 1) / 255) for i in images])
    with torch.no_grad():
        texts = F.normalize(model.encode_text(tokens(prompts)), dim=-1)
        expected = (vision_by_hand(model.state_dict(), pixels) * texts).sum(-1)
    assert scores == pytest.approx(expected.tolist(), abs=1e-5)
    assert max(map(abs, scores)) <= 1


def test_clip_takes_images_of_any_size_and_a_sample_scores_alone_as_in_a_batch(tiny):
    name, file, _ = tiny
    scorer = build_scorer("clip", {"model": name, "pretrained": file, "device": "cpu"})
    samples = [ImageSample(i, "a cat") for i in random_images((64, 64), (28, 40), (17, 9))]
    together = scorer.score(samples)
    assert together == pytest.approx([scorer.score([one])[0] for one in samples], abs=1e-5)


def test_openai_weights_get_their_activation(monkeypatch):
    from maskgrpo_plugin.rewards.images import open_clip_model

    asked = {}

    def create(model, **options):
        asked.update(options)
        return nn.Identity(), None

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", create)
    open_clip_model.OpenClipModel("ViT-L-14", "openai", "cpu")
    assert asked["force_quick_gelu"] is True
    open_clip_model.OpenClipModel("ViT-L-14", "laion2b_s32b_b82k", "cpu")
    assert asked["force_quick_gelu"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ViT-Q-99"}, r"model='ViT-Q-99'.*list_models"),
        ({"pretrained": "openay"}, r"pretrained='openay'.*openai"),
        ({"pretrained": None}, "pretrained=None"),
        ({"model": "local-dir:/no/such/folder"}, "does not exist"),
        ({"precision": "int3"}, "precision='int3'.*fp32, amp"),
    ],
)
def test_clip_options_are_checked_without_a_model(options, message):
    with pytest.raises(OptionError, match=message):
        get_scorer("clip").check(options)
    get_scorer("clip").check({})


def hpsv2_pixels(image, size):
    """The published preprocessing with torchvision's functions: tensor, longer side, black bars, normalisation."""
    from torchvision.transforms import functional

    pixels = functional.to_tensor(image)
    height, width = pixels.shape[1:]
    scale = size / float(max(height, width))
    if scale != 1.0:
        target = [round(height * scale), round(width * scale)]
        pixels = functional.resize(pixels, target, functional.InterpolationMode.BICUBIC)
        down, right = size - target[0], size - target[1]
        pixels = functional.pad(pixels, [right // 2, down // 2, right - right // 2, down - down // 2])
    return functional.normalize(pixels, MEAN, STD)


@pytest.mark.parametrize("shape", [(28, 28), (64, 64), (512, 512), (30, 61), (61, 30), (9, 5)])
def test_hpsv2_preprocessing_is_the_published_one(shape):
    from maskgrpo_plugin.rewards.images.hpsv2 import preprocess

    (image,) = random_images(shape)
    found = preprocess(image, 28)
    assert found.shape == (3, 28, 28)
    torch.testing.assert_close(found, hpsv2_pixels(image, 28), atol=2e-5, rtol=0)


def make_hpsv2(tiny, **options):
    name, file, _ = tiny
    return build_scorer("hpsv2", {"model": name, "checkpoint": file, "device": "cpu", **options})


def test_hpsv2_loads_a_checkpoint_and_scores_by_the_cosine(tiny):
    scorer = make_hpsv2(tiny, backend="open_clip")
    images, prompts = random_images((64, 64), (30, 61)), ["a cat", "a dog"]
    scores = scorer.score([ImageSample(i, p) for i, p in zip(images, prompts, strict=True)])
    model = tiny[2]
    pixels = torch.stack([hpsv2_pixels(image, 28) for image in images])
    with torch.no_grad():
        texts = F.normalize(model.encode_text(tokens(prompts)), dim=-1)
        expected = (vision_by_hand(model.state_dict(), pixels) * texts).sum(-1)
    assert scores == pytest.approx(expected.tolist(), abs=1e-5)


def test_hpsv2_equals_the_package_where_it_can_be_imported(tiny, tmp_path):
    package = pytest.importorskip("hpsv2.src.open_clip", exc_type=Exception)
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY))
    package.add_model_config(tmp_path / "tiny-clip.json")
    samples = [ImageSample(i, p) for i, p in zip(random_images((64, 64), (30, 61)), ["a Cat", "a dog!"], strict=True)]
    ours = make_hpsv2(tiny, backend="open_clip").score(samples)
    through_package = make_hpsv2(tiny, backend="hpsv2").score(samples)

    from PIL import Image

    model, _, preprocess = package.create_model_and_transforms(
        "tiny-clip", None, precision="amp", device="cpu", light_augmentation=True, output_dict=True
    )
    model.load_state_dict(torch.load(tiny[1], weights_only=True)["state_dict"])
    tokenizer, published = package.get_tokenizer("tiny-clip"), []
    for one in samples:
        with torch.no_grad():
            output = model.eval()(preprocess(Image.fromarray(one.image))[None], tokenizer([one.prompt]))
        published.append(float((output["image_features"] @ output["text_features"].T)[0, 0]))
    assert ours == pytest.approx(published, abs=1e-5)
    assert through_package == pytest.approx(published, abs=1e-5)


def test_hpsv2_refuses_weights_of_another_model(tiny, tmp_path):
    file = tmp_path / "wrong.pt"
    torch.save({"state_dict": {"a": torch.zeros(1)}}, file)
    with pytest.raises(RuntimeError, match="Missing key"):
        make_hpsv2(tiny, checkpoint=str(file), backend="open_clip")


def test_weights_are_read_without_running_code(tiny, tmp_path):
    import os

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "victim"),)

    file = tmp_path / "evil.pt"
    torch.save({"state_dict": Payload()}, file)
    with pytest.raises(Exception, match=r"(?i)weights"):
        make_hpsv2(tiny, checkpoint=str(file))
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "v3"}, r"version='v3'.*v2\.0, v2\.1"),
        ({"backend": "jax"}, "backend='jax'"),
        ({"checkpoint": "/no/such.pt"}, "checkpoint='/no/such.pt'"),
    ],
)
def test_hpsv2_options_are_checked_without_a_model(options, message):
    with pytest.raises(OptionError, match=message):
        get_scorer("hpsv2").check(options)


def test_the_published_layout_of_hpsv2_is_open_clips():
    """The checkpoint's 686 parameters at full size: names and shapes, without memory for them."""
    package = pytest.importorskip("hpsv2.src.open_clip", exc_type=Exception)
    with torch.device("meta"):
        ours = open_clip.create_model("ViT-H-14", load_weights=False, device="meta").state_dict()
        published = package.CLIP(**package.get_model_config("ViT-H-14")).state_dict()
    assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in published.items()}
    assert len(ours) == 686


def head_of(widths, layout):
    torch.manual_seed(1)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    state = {}
    for number, layer in zip(layout, layers, strict=True):
        prefix = "" if number is None else f"layers.{number}."
        state |= {f"{prefix}{name}": value for name, value in layer.state_dict().items()}
    return layers, state


@pytest.mark.parametrize(("activation", "function"), [("none", lambda x: x), ("relu", F.relu)])
def test_aesthetic_head_in_the_published_layout(tiny, tmp_path, activation, function):
    layers, state = head_of((16, 24, 12, 8, 4, 1), (0, 2, 4, 6, 7))
    file = tmp_path / "head.pth"
    torch.save(state, file)
    name, weights, model = tiny
    scorer = build_scorer(
        "aesthetic",
        {"head": str(file), "activation": activation, "model": name, "pretrained": weights, "device": "cpu"},
    )
    (image,) = random_images((28, 28))
    with torch.no_grad():
        x = vision_by_hand(model.state_dict(), normalised(torch.tensor(image).permute(2, 0, 1) / 255)[None])
        for layer in layers[:-1]:
            x = function(layer(x))
        expected = layers[-1](x).item()
    assert scorer.score([ImageSample(image, "ignored")]) == pytest.approx([expected], abs=1e-5)


def test_aesthetic_head_of_one_layer(tiny, tmp_path):
    from safetensors.torch import save_file

    layers, state = head_of((16, 1), (None,))
    file = tmp_path / "head.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    name, weights, _ = tiny
    scorer = build_scorer("aesthetic", {"head": str(file), "model": name, "pretrained": weights, "device": "cpu"})
    features = scorer.clip.image_features([sample(100).image]).clone()
    assert scorer.score([sample(100)]) == pytest.approx(layers[0](features).squeeze(-1).tolist())


@pytest.mark.parametrize(("widths", "layout"), [((16, 8), (0,)), ((16, 8, 1), (2, 0))])
def test_a_head_that_is_no_chain_to_one_number_is_refused(widths, layout):
    from maskgrpo_plugin.rewards.images.aesthetic import build_head

    with pytest.raises(ValueError, match="aesthetic head"):
        build_head(head_of(widths, layout)[1])

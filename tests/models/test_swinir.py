"""Compare SwinIR and its names with a plain form on the authors' tensors, window by window."""

import pytest
import torch
import torch.nn.functional as F

from liif_fast import load_model, models, save_model, upscale
from liif_fast.models import swinir

ARGS = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3], "n_feats": 5}


def build(**args):
    torch.manual_seed(0)
    encoder = models.make({"name": "swinir", "args": {**ARGS, **args}}).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


def attention(sd, key, x, heads, region):
    """Attend among the pixels of the windows x [n, 64, C], one head and one window at a time."""
    n, pixels, width = x.shape
    qkv = F.linear(x, sd[key + "qkv.weight"], sd[key + "qkv.bias"]).view(n, pixels, 3, heads, width // heads)
    out = torch.empty_like(x)
    for window in range(n):
        for head in range(heads):
            q, k, v = (qkv[window, :, part, head] for part in range(3))
            logits = q @ k.T * (width // heads) ** -0.5
            i, j = torch.arange(pixels)[:, None], torch.arange(pixels)
            place = (i // 8 - j // 8 + 7) * 15 + i % 8 - j % 8 + 7
            logits = logits + sd[key + "relative_position_bias_table"][place, head]
            if region is not None:
                logits[region[window][:, None] != region[window]] -= 100
            out[window, :, head * (width // heads) : (head + 1) * (width // heads)] = logits.softmax(-1) @ v
    return F.linear(out, sd[key + "proj.weight"], sd[key + "proj.bias"])


def block(sd, key, x, heads, shift):
    """Compute one block on [H, W, C]."""
    height, width, channels = x.shape
    norm = F.layer_norm(x, (channels,), sd[key + "norm1.weight"], sd[key + "norm1.bias"]).roll((-shift, -shift), (0, 1))
    region = torch.zeros(height, width)
    if shift:  # what has come around, and what shares a window with it
        for axis, side in ((0, height), (1, width)):
            for first in (side - 8, side - shift):
                region.narrow(axis, first, side - first).add_(1 if axis else 10)
    windows = [(i, j) for i in range(0, height, 8) for j in range(0, width, 8)]
    cut = torch.stack([norm[i : i + 8, j : j + 8].reshape(64, channels) for i, j in windows])
    regions = torch.stack([region[i : i + 8, j : j + 8].reshape(64) for i, j in windows])
    mixed, out = attention(sd, key + "attn.", cut, heads, regions if shift else None), torch.empty_like(x)
    for (i, j), values in zip(windows, mixed, strict=True):
        out[i : i + 8, j : j + 8] = values.view(8, 8, channels)
    x = x + out.roll((shift, shift), (0, 1))
    hidden = F.layer_norm(x, (channels,), sd[key + "norm2.weight"], sd[key + "norm2.bias"])
    hidden = F.gelu(F.linear(hidden, sd[key + "mlp.fc1.weight"], sd[key + "mlp.fc1.bias"]))
    return x + F.linear(hidden, sd[key + "mlp.fc2.weight"], sd[key + "mlp.fc2.bias"])


def conv(sd, key, x):
    return F.conv2d(x[None] if x.ndim == 3 else x, sd[key + ".weight"], sd[key + ".bias"], padding=1)


def plain(encoder, image):
    """Return the features of one image [3, H, W] whose sides are multiples of 8."""
    sd = encoder.state_dict()
    first = conv(sd, "conv_first", image)
    x = first[0].permute(1, 2, 0)
    x = F.layer_norm(x, x.shape[-1:], sd["patch_embed.norm.weight"], sd["patch_embed.norm.bias"])
    for group, heads in enumerate(ARGS["num_heads"]):
        before = x
        for number in range(2):
            x = block(sd, f"layers.{group}.residual_group.blocks.{number}.", x, heads, 4 * number)
        x = before + conv(sd, f"layers.{group}.conv", x.permute(2, 0, 1))[0].permute(1, 2, 0)
    x = F.layer_norm(x, x.shape[-1:], sd["norm.weight"], sd["norm.bias"])
    x = conv(sd, "conv_after_body", x.permute(2, 0, 1)) + first
    return F.leaky_relu(conv(sd, "conv_before_upsample.0", x), 0.01)[0]


@pytest.mark.parametrize("chunk", [1 << 10, 3])
def test_features_are_those_of_the_plain_form(chunk, monkeypatch):
    monkeypatch.setattr(swinir, "CHUNK_WINDOWS", chunk)
    encoder, image = build(), torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        expected = torch.stack([plain(encoder, each) for each in image])
        torch.testing.assert_close(encoder(image), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("size", [(13, 17), (3, 20), (1, 1), (8, 9)])
def test_sides_that_are_no_multiples_of_the_window(size):
    encoder, image = build(), torch.randn(1, 3, *size)
    missing = [-side % 8 for side in size]
    reflects = all(gap < side for gap, side in zip(missing, size, strict=True))
    rows, columns = (
        [*range(side), *(range(side - 2, side - 2 - gap, -1) if reflects else [side - 1] * gap)]
        for side, gap in zip(size, missing, strict=True)
    )
    padded = image[:, :, rows][..., columns]
    with torch.no_grad():
        features = encoder(image)
        assert features.shape == (1, 5, *size)
        torch.testing.assert_close(features, encoder(padded)[:, :, : size[0], : size[1]])


def test_names_and_masks_are_those_of_the_authors():
    with torch.device("meta"):
        state = models.make({"name": "swinir", "args": {"no_upsampling": True}}).state_dict()
    assert len(state) == 544
    key = "layers.5.residual_group.blocks.5."
    shapes = {name.removeprefix(key): tuple(value.shape) for name, value in state.items() if name.startswith(key)}
    assert shapes["attn_mask"] == (36, 64, 64)
    assert shapes["attn.relative_position_index"] == (64, 64)
    assert shapes["attn.relative_position_bias_table"] == (225, 6)
    assert shapes["attn.qkv.weight"] == (540, 180)
    assert shapes["mlp.fc1.weight"] == (360, 180)
    assert state[key + "attn.relative_position_index"].dtype == torch.int64
    assert "layers.5.residual_group.blocks.4.attn_mask" not in state
    outer = {name for name in state if not name.startswith("layers.")}
    modules = ("conv_first", "patch_embed.norm", "norm", "conv_after_body", "conv_before_upsample.0")
    assert outer == {f"{module}.{part}" for module in modules for part in ("weight", "bias")}
    mask = build().layers[0].residual_group["blocks"][1].attn_mask
    assert mask[0].eq(0).all()  # the first window has no border in it
    last = mask[-1].view(8, 8, 8, 8)
    assert last[0, 0, 0, 3] == last[0, 0, 3, 3] == 0
    assert last[0, 0, 0, 4] == last[0, 0, 4, 0] == -100


@pytest.mark.parametrize("name", ["liif", "metasr", "lte"])
def test_models_on_it(name, tmp_path):
    encoder = {"name": "swinir", "args": {**ARGS, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
    args = {"encoder_spec": encoder} | ({} if name == "metasr" else {"imnet_spec": imnet})
    args |= {"hidden_dim": 8} if name == "lte" else {}
    torch.manual_seed(0)
    model = models.make({"name": name, "args": args}).eval()
    for file in ("model.safetensors", "model.pth"):
        save_model(model, tmp_path / file)
        loaded = load_model(tmp_path / file)
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    pixels = torch.rand(10, 12, 3).numpy()
    expected = model.predict(torch.from_numpy(pixels).permute(2, 0, 1)[None], (20, 24))[0].permute(1, 2, 0)
    made = torch.from_numpy(upscale(pixels, model, scale=2))
    torch.testing.assert_close(made, expected.clamp(0, 1), rtol=0, atol=1e-5)


def test_training_leaves_branches_out():
    encoder, image = build(drop_path_rate=0.5), torch.randn(1, 3, 8, 8)
    expected = encoder(image)
    assert torch.equal(encoder(image), expected)
    encoder.train()
    made = {tuple(encoder(image).flatten()[:3].tolist()) for _ in range(12)}
    assert len(made) > 1
    encoder(image).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"no_upsampling": False}, "no_upsampling must be true"),
        ({"num_heads": [2]}, "depths and num_heads must have the same length"),
        ({"num_heads": [2, 5]}, "multiple of each number of heads"),
        ({"window_size": 7}, "window_size must be even"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)

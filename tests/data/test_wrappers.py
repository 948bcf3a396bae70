import numpy as np
import pytest
import torch
from PIL import Image

from liif_fast.coord import make_cell, make_coord
from liif_fast.data import make, make_loader
from liif_fast.data.pairs import pair_scale
from liif_fast.data.samples import collate
from liif_fast.data.wrappers import colour_matrix


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def wrap(name, dataset, **args):
    seed = args.pop("seed", 0)
    return make({"name": name, "args": args}, dataset=dataset, seed=seed)


def pil(array, height, width):
    return np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC))


def as_array(inp):
    return (inp * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def test_downsampled_whole_image():
    """21 x 31 at 2.5 gives floor(21 / 2.5) = 8 and 12 low-resolution pixels and uses 20 x 30 of the image."""
    high = image(21, 31)
    sample = wrap("sr-implicit-downsampled", [high], scale_min=2.5)[0]
    assert np.array_equal(as_array(sample["inp"]), pil(high[:20, :30].copy(), 8, 12))
    assert torch.equal(sample["gt"], torch.from_numpy(high[:20, :30].reshape(-1, 3)) / 255)
    assert torch.equal(sample["coord"], make_coord((20, 30)))
    assert torch.equal(sample["cell"], make_cell((20, 30)))
    assert {value.dtype for value in sample.values()} == {torch.float32}


def test_downsampled_crop_and_queries():
    """At scale 3.5 a 5-pixel input is the reduction of a crop of round(17.5) = 18 pixels (half to even)."""
    high = image(40, 30)
    sample = wrap("sr-implicit-downsampled", [high], inp_size=5, scale_min=3.5, sample_q=100)[0]
    windows = np.lib.stride_tricks.sliding_window_view(high, (18, 18, 3))[:, :, 0]
    places = [
        (top, left)
        for top, left in np.ndindex(23, 13)
        if np.array_equal(pil(np.ascontiguousarray(windows[top, left]), 5, 5), as_array(sample["inp"]))
    ]
    assert len(places) == 1
    crop = windows[places[0]]
    grid = make_coord((18, 18))
    which = (sample["coord"][:, None] == grid).all(-1).nonzero()[:, 1]
    assert len(which) == 100 == len(set(which.tolist()))  # each query is a pixel centre, none occurs twice
    assert torch.equal(sample["gt"], torch.from_numpy(crop.reshape(-1, 3)[which]) / 255)
    assert torch.equal(sample["cell"], torch.full((100, 2), 2 / 18))


def test_scales_cover_their_range():
    wrapper = wrap(
        "sr-implicit-downsampled", [image(100, 100)] * 200, inp_size=10, scale_min=1, scale_max=4, sample_q=1
    )
    sides = [round(2 / wrapper[i]["cell"][0, 0].item()) for i in range(200)]
    assert 10 <= min(sides) < 13
    assert 37 < max(sides) <= 40


def test_the_scale_of_a_sample_is_the_first_draw():
    """Crops have round(inp_size * s) pixels, half to even, with s uniform in [1, 4] from (seed, epoch, index)."""
    wrapper = wrap(
        "sr-implicit-downsampled", [image(100, 100)] * 40, inp_size=9, scale_max=4, augment=True, sample_q=5, seed=11
    )
    for epoch in (0, 2):
        wrapper.set_epoch(epoch)
        for i in range(40):
            side = round(9 * np.random.default_rng([11, epoch, i]).uniform(1, 4))
            sample = wrapper[i]
            assert torch.equal(sample["cell"], torch.full((5, 2), 2 / side))
            assert sample["inp"].shape == (3, 9, 9)
            grid = make_coord((side, side))
            assert (sample["coord"][:, None] == grid).all(-1).any(1).all()  # pixel centres of that crop


@pytest.mark.parametrize("data_device", [None, "cpu"])
def test_a_share_of_the_samples_at_the_smallest_scale(data_device):
    """A sample is at scale_min by a draw of its own seed; there the target is the input. Other scales do not move."""
    args = {"inp_size": 9, "scale_max": 4, "augment": True, "sample_q": 81, "seed": 11}
    wrapper, uniform = (
        wrap("sr-implicit-downsampled", [image(100, 100)] * 200, **args, **more)
        for more in ({"scale_min_share": 0.3}, {})
    )
    for each in (wrapper, uniform):
        each.set_epoch(2)
    samples = list(make_loader(wrapper, [[i] for i in range(200)], "cpu", data_device=data_device))
    smallest = 0
    for i, sample in enumerate(samples):
        rng = np.random.default_rng([11, 2, i])
        scale, at_least = rng.uniform(1, 4), rng.random() < 0.3
        side = 9 if at_least else round(9 * scale)
        assert torch.equal(sample["cell"][0], torch.full((81, 2), 2 / side))
        if at_least:
            row, column = ((sample["coord"][0] + 1) * 4.5).floor().long().unbind(-1)
            assert torch.equal(sample["gt"][0], sample["inp"][0, :, row, column].T)
            smallest += 1
        else:
            assert torch.equal(sample["cell"][0], uniform[i]["cell"])
    assert 40 < smallest < 80


def test_cells_of_a_pair_turn_with_it():
    low, high = image(6, 10, 1), image(18, 30, 2)
    wrapper = wrap("sr-implicit-paired", [(low, high)] * 20, augment=True)
    shapes = set()
    for i in range(20):
        sample = wrapper[i]
        height, width = (3 * side for side in sample["inp"].shape[1:])
        shapes.add((height, width))
        assert torch.equal(sample["cell"], make_cell((height, width)))
        assert torch.equal(sample["coord"], make_coord((height, width)))
        flat = (sample["gt"] * 255).round().to(torch.uint8)
        assert torch.equal(flat.sort(0).values, torch.from_numpy(high.reshape(-1, 3).copy()).sort(0).values)
    assert shapes == {(18, 30), (30, 18)}


def test_augmentation_comes_after_resizing_and_is_shared():
    """Every sample is one of the 8 flips and transposes of the same pair, and all 8 occur."""
    high = image(12, 18)
    low = pil(high, 4, 6)
    wrapper = wrap("sr-implicit-downsampled", [high] * 80, scale_min=3, augment=True)
    seen = set()
    for i in range(80):
        sample = wrapper[i]
        height, width = (2 / sample["cell"][0]).round().int().tolist()
        assert (height, width) in ((12, 18), (18, 12))
        assert torch.equal(sample["coord"], make_coord((height, width)))
        for flip in range(8):
            both = [x[:: 1 - 2 * (flip & 1), :: 1 - (flip & 2)] for x in (low, high)]
            both = [x.swapaxes(0, 1) if flip & 4 else x for x in both]
            if both[0].shape[:2] == tuple(sample["inp"].shape[1:]) and np.array_equal(both[0], as_array(sample["inp"])):
                seen.add(flip)
                assert torch.equal(sample["gt"], torch.from_numpy(both[1].reshape(-1, 3).copy()) / 255)
    assert seen == set(range(8))


def test_paired_takes_the_same_place():
    """The scale is 25 // 8 = 3 from the rows; each HR pixel encodes its own (row, col)."""
    low = np.arange(8 * 9, dtype=np.uint8).reshape(8, 9, 1).repeat(3, 2)
    high = np.zeros((25, 27, 3), np.uint8)
    high[:24] = low.repeat(3, 0).repeat(3, 1)
    for seed in range(5):
        sample = wrap("sr-implicit-paired", [(low, high)], inp_size=4, augment=True, seed=seed)[0]
        assert torch.equal(sample["inp"].repeat_interleave(3, 1).repeat_interleave(3, 2).flatten(1).T, sample["gt"])
    whole = wrap("sr-implicit-paired", [(low, high)])[0]
    assert whole["inp"].shape == (3, 8, 9)
    assert torch.equal(whole["cell"], make_cell((24, 27)))


def test_uniform_varied_size_follows_the_index():
    """Sizes 4..9 over 3 items are round(4), round(6.5) = 6, round(9), the longer side int(size * 14 / 10)."""
    pairs = [(image(5, 7, i), image(10, 14, i)) for i in range(3)]
    wrapper = wrap("sr-implicit-uniform-varied", pairs, size_min=4, size_max=9)
    for i, (height, width) in enumerate([(4, 5), (6, 8), (9, 12)]):
        sample = wrapper[i]
        assert np.array_equal(as_array(sample["inp"]), pairs[i][0])
        assert torch.equal(sample["gt"], torch.from_numpy(pil(pairs[i][1], height, width).reshape(-1, 3).copy()) / 255)
        assert torch.equal(sample["cell"], make_cell((height, width)))
    twice = wrap("sr-implicit-uniform-varied", pairs, size_min=4, gt_resize=8)[0]
    expected = pil(pil(pairs[0][1], 4, 5), 8, 10)
    assert torch.equal(twice["gt"], torch.from_numpy(expected.reshape(-1, 3).copy()) / 255)
    flipped = [wrap("sr-implicit-uniform-varied", pairs, size_min=4, augment=True, seed=s)[0]["inp"] for s in range(8)]
    assert {torch.equal(inp, flipped[0].flip(2)) for inp in flipped} == {True, False}


def test_samples_depend_on_seed_epoch_and_index_alone():
    data = [image(60, 60, i) for i in range(4)]
    args = {"inp_size": 8, "scale_max": 4, "augment": True, "sample_q": 16, "color_augment": True}
    wrapper = wrap("sr-implicit-downsampled", data, seed=3, **args)
    first = [wrapper[i]["gt"] for i in range(4)]
    again = wrap("sr-implicit-downsampled", data, seed=3, **args)
    assert all(torch.equal(again[i]["gt"], first[i]) for i in (3, 1, 0, 2))
    wrapper.set_epoch(1)
    assert not torch.equal(wrapper[0]["gt"], first[0])
    free = wrap("sr-implicit-downsampled", data, seed=None, **args)
    assert not torch.equal(free[0]["gt"], free[0]["gt"])
    torch.manual_seed(1)
    drawn = free[0]["gt"]
    torch.manual_seed(1)
    assert torch.equal(free[0]["gt"], drawn)


def test_colours_keep_grey_and_change_alike():
    rng = np.random.default_rng(0)
    for _ in range(50):
        np.testing.assert_allclose(colour_matrix(rng).sum(1), 1, atol=1e-6)
    flat = np.full((12, 12, 3), (200, 90, 40), np.uint8)
    wrapper = wrap("sr-implicit-downsampled", [flat] * 20, inp_size=4, scale_min=3, color_augment=True)
    colours = set()
    for i in range(20):
        sample = wrapper[i]
        colour = sample["gt"][0]
        assert torch.equal(sample["gt"], colour.expand(144, 3))
        assert torch.equal(sample["inp"], colour.view(3, 1, 1).expand(3, 4, 4))
        colours.add(tuple(colour.tolist()))
    assert len(colours) > 10


def reductions(high, scale):
    """Return the sizes to which a reduction by the scale rounds down and up."""
    return [tuple(side // scale for side in high), tuple(-(-side // scale) for side in high)]


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_the_scale_of_a_pair_is_found_however_it_was_rounded(scale):
    for high in np.ndindex(7, 5):
        high = (164 + high[0], 197 + high[1])
        for low in reductions(high, scale):
            assert pair_scale(low, high) == scale
            assert pair_scale(low, high, scale) == scale
            with pytest.raises(ValueError, match=rf"eval_type says x{scale + 1}, they fit x{scale};"):
                pair_scale(low, high, scale + 1)


def test_the_scale_of_a_pair_by_trial():
    """Compare all small sizes with the definition: the exact multiple, then rounded down, then the smaller one."""
    for low in np.ndindex(6, 4):
        for high in np.ndindex(14, 11):
            low_size, high_size = tuple(n + 1 for n in low), tuple(n + 1 for n in high)
            down, up = (
                [s for s in range(1, min(high_size) + 1) if reductions(high_size, s)[way] == low_size] for way in (0, 1)
            )
            exact = [s for s in down if s in up and all(n * s == h for n, h in zip(low_size, high_size, strict=True))]
            for stated in range(1, 12):
                if stated in down + up:
                    assert pair_scale(low_size, high_size, stated) == stated
                else:
                    with pytest.raises(ValueError, match=f"eval_type says x{stated}"):
                        pair_scale(low_size, high_size, stated)
            if down + up:
                assert pair_scale(low_size, high_size) == [*exact, *down, *up][0]
            else:
                with pytest.raises(ValueError, match="they fit no whole scale"):
                    pair_scale(low_size, high_size)


def test_a_pair_that_was_rounded_up_is_cut_to_what_both_show():
    low, high = image(6, 8), image(11, 15)
    sample = wrap("sr-implicit-paired", [(low, high)])[0]
    assert np.array_equal(as_array(sample["inp"]), low[:5, :7])
    assert torch.equal(sample["gt"], torch.from_numpy(high[:10, :14].reshape(-1, 3)) / 255)
    for i in range(20):
        sample = wrap("sr-implicit-paired", [(low, high)], inp_size=5, seed=i)[0]
        assert sample["inp"].shape == (3, 5, 5) and len(sample["gt"]) == 100
    with pytest.raises(ValueError, match="5 x 7, too small for a crop of 6 x 6"):
        wrap("sr-implicit-paired", [(low, high)], inp_size=6)[0]


def test_a_pair_without_one_scale_is_refused():
    for shape in ((16, 7), (24, 16), (7, 7), (17, 23), (15, 17)):
        with pytest.raises(
            ValueError, match=rf"is 8 x 8 and .* is {shape[0]} x {shape[1]}, .* they fit no whole scale"
        ):
            wrap("sr-implicit-paired", [(image(8, 8), image(*shape))])[0]
    assert len(wrap("sr-implicit-paired", [(image(8, 8), image(17, 16))])[0]["gt"]) == 256


def test_a_stated_scale_decides():
    wrapper = wrap("sr-implicit-paired", [(image(2, 2), image(5, 5))])
    assert len(wrapper[0]["gt"]) == 16
    stated = wrapper.at_scale(3)
    assert stated[0]["inp"].shape == (3, 1, 1) and len(stated[0]["gt"]) == 9
    with pytest.raises(ValueError, match="eval_type says x5, they fit x2 or x3 or x4"):
        wrapper.at_scale(5)[0]
    assert len(wrapper[0]["gt"]) == 16


def folder(path, *shapes):
    path.mkdir()
    for i, shape in enumerate(shapes):
        Image.fromarray(image(*shape)).save(path / f"{i}.png")
    return make({"name": "image-folder", "args": {"root_path": str(path), "repeat": 2}})


def test_an_image_too_small_for_the_largest_crop_is_named_at_the_start(tmp_path):
    mixed = {"name": "mixed", "args": {"parts": [{"name": "image-folder", "args": {"root_path": str(tmp_path / "b")}}]}}
    for name, shapes in (("a", [(32, 40), (32, 31)]), ("b", [(32, 40), (40, 31)])):
        dataset = folder(tmp_path / name, *shapes)
        wrap("sr-implicit-downsampled", dataset, inp_size=8, scale_max=3.9)
        with pytest.raises(ValueError, match=rf"{name}.1\.png is .. x 31, too small for a crop of 32 x 32"):
            wrap("sr-implicit-downsampled", dataset, inp_size=8, scale_max=4)
        with pytest.raises(ValueError, match=rf"{name}.1\.png is .. x 31, too small for a reduction by 31.5"):
            wrap("sr-implicit-downsampled", dataset, scale_max=31.5)
    with pytest.raises(ValueError, match=r"b.1\.png is 40 x 31, too small"):
        wrap("sr-implicit-downsampled", make(mixed), inp_size=8, scale_max=4)
    with pytest.raises(ValueError, match="sample_q must be at most the 8 x 8 pixels"):
        wrap("sr-implicit-downsampled", dataset, inp_size=8, scale_max=2, sample_q=65)


def test_an_image_of_too_few_pixels_is_named_at_the_start(tmp_path):
    folder(tmp_path / "hr", (16, 20), (16, 12))
    folder(tmp_path / "lr", (8, 10), (8, 6))
    paths = {f"root_path_{i}": str(tmp_path / name) for i, name in ((1, "lr"), (2, "hr"))}
    pairs = make({"name": "paired-image-folders", "args": paths})
    for name, dataset, args, grid, count, file in (
        ("downsampled", pairs.high, {"scale_max": 2}, "16 x 12", 192, 1),
        ("paired", pairs, {}, "16 x 12", 192, 1),
        ("uniform-varied", pairs, {"size_min": 12}, "12 x 15", 180, 0),
    ):
        wrap(f"sr-implicit-{name}", dataset, sample_q=count, **args)
        named = rf"at most the {grid} pixels there are, got {count + 1} for \S*hr.{file}\.png"
        with pytest.raises(ValueError, match=named):
            wrap(f"sr-implicit-{name}", dataset, sample_q=count + 1, **args)


def test_a_pair_that_does_not_fit_is_named_at_the_start(tmp_path):
    folder(tmp_path / "lr", (8, 10), (10, 8), (9, 9))
    folder(tmp_path / "hr", (16, 20), (19, 16), (20, 20))
    paths = {f"root_path_{i}": str(tmp_path / name) for i, name in ((1, "lr"), (2, "hr"))}
    dataset = make({"name": "paired-image-folders", "args": paths})
    named = r"lr.2\.png is 9 x 9 and \S*hr.2\.png is 20 x 20, x2.222 in rows and x2.222 in columns: "
    with pytest.raises(ValueError, match=named + "they fit no whole scale"):
        wrap("sr-implicit-paired", dataset)
    (tmp_path / "hr" / "2.png").unlink()
    Image.fromarray(image(17, 18)).save(tmp_path / "hr" / "2.png")
    wrapper = wrap("sr-implicit-paired", make({"name": "paired-image-folders", "args": paths}), inp_size=8)
    wrapper.at_scale(2)
    with pytest.raises(ValueError, match=r"lr.0\.png is 8 x 10 and .*hr.0\.png is 16 x 20, .*eval_type says x4"):
        wrapper.at_scale(4)
    with pytest.raises(ValueError, match=r"lr.0\.png is 8 x 10, too small for a crop of 9 x 9"):
        wrap("sr-implicit-paired", make({"name": "paired-image-folders", "args": paths}), inp_size=9)


def test_a_dataset_of_the_wrong_kind_is_refused():
    with pytest.raises(ValueError, match="SRImplicitDownsampled needs a dataset of single images, got one of pairs"):
        wrap("sr-implicit-downsampled", [(image(8, 8), image(8, 8))])
    for name, args in (("sr-implicit-paired", {}), ("sr-implicit-uniform-varied", {"size_min": 4})):
        with pytest.raises(ValueError, match="needs a dataset of pairs, got one of single images"):
            wrap(name, [image(8, 8)], **args)


@pytest.mark.parametrize("wrong", [image(9, 9) / 255, image(9, 9)[..., 0], np.dstack([image(9, 9)] * 2)[..., :4]])
@pytest.mark.parametrize("data_device", [None, "cpu"])
def test_images_of_another_kind_are_refused(wrong, data_device):
    """Images of another dtype are refused, because they would be read as other pixels."""
    wrapper = wrap("sr-implicit-downsampled", [image(9, 9), wrong], inp_size=4)
    with pytest.raises(ValueError, match=r"images must be uint8 \[H, W, 3\], number 1 is"):
        list(make_loader(wrapper, [[0], [1]], "cpu", data_device=data_device))
    pair = wrap("sr-implicit-paired", [(image(4, 4), image(8, 8)), (wrong, image(18, 18))])
    with pytest.raises(ValueError, match=r"images must be uint8 \[H, W, 3\], number 1 is"):
        list(make_loader(pair, [[0], [1]], "cpu", data_device=data_device))


def test_an_image_that_a_reduction_leaves_nothing_of():
    with pytest.raises(ValueError, match="image 0 is 3 x 9, too small for a reduction by 4"):
        wrap("sr-implicit-downsampled", [image(3, 9)], scale_min=4)[0]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="1 <= scale_min <= scale_max, got 0"):
        wrap("sr-implicit-downsampled", [], scale_min=0.5)
    with pytest.raises(ValueError, match=r"scale_min_share must be in \[0, 1\], got 1.5"):
        wrap("sr-implicit-downsampled", [], scale_min_share=1.5)
    with pytest.raises(ValueError, match="20 x 30, too small for a crop of 24 x 24"):
        wrap("sr-implicit-downsampled", [image(20, 30)], inp_size=8, scale_min=3)[0]
    with pytest.raises(ValueError, match="sample_q must be at most the 8 x 8 pixels"):
        wrap("sr-implicit-downsampled", [image(8, 8)], sample_q=65)[0]
    with pytest.raises(ValueError, match="unknown key 'scale'"):
        wrap("sr-implicit-downsampled", [], scale=2)
    samples = [{"inp": torch.zeros(3, n, n)} for n in (4, 5)]
    with pytest.raises(ValueError, match="set inp_size and sample_q"):
        collate(samples)


@pytest.mark.parametrize("inp_size", [None, 6])
def test_the_fast_forms_of_lte(inp_size):
    """They draw as many queries as the input has pixels; otherwise the samples are the same."""
    high = image(24, 30)
    for name, dataset, args in (
        ("downsampled", [high], {"scale_max": 4}),
        ("paired", [(high[::2, ::2].copy(), high)], {}),
    ):
        args |= {"inp_size": inp_size, "augment": True}
        fast = wrap(f"sr-implicit-{name}-fast", dataset, **args)[0]
        usual = wrap(f"sr-implicit-{name}", dataset, sample_q=None if inp_size is None else inp_size**2, **args)[0]
        assert fast.keys() == usual.keys()
        assert all(torch.equal(value, usual[key]) for key, value in fast.items())
        assert inp_size is None or len(fast["coord"]) == 36

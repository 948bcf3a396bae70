"""Parse paths of IIIF Image API 3.0; whatever a client sends, an answer is in bounds or refused."""

from contextlib import suppress

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install 'liif-fast[test]'")
from hypothesis import example, given, settings
from hypothesis import strategies as st

from liif_fast.view.iiif import (
    MAX_SCALE,
    QUALITIES,
    Identifier,
    RequestError,
    describe,
    parse_identifier,
    parse_request,
)

PHOTO, AREA = (400, 300), 1 << 20
SIDES = st.tuples(st.integers(1, 50_000), st.integers(1, 50_000))


def parsed(region="full", size="max", rotation="0", last="default.png", photo=PHOTO, full=None):
    return parse_request(photo, full or photo, (region, size, rotation, last), AREA)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg", Identifier("a.jpg")),
        ("a/b c@d.jpg", Identifier("a/b c@d.jpg")),
        ("a.jpg@1234x567", Identifier("a.jpg", size=(1234, 567))),
        ("a.jpg@x3.7", Identifier("a.jpg", scale=3.7)),
        ("a@x2@x3", Identifier("a@x2", scale=3)),
        ("a@x", Identifier("a@x")),
        ("a@12x", Identifier("a@12x")),
        ("a@x٣", Identifier("a@x٣")),  # a digit of another script
        ("@x3", Identifier("@x3")),
    ],
)
def test_identifiers(text, expected):
    assert parse_identifier(text) == expected


def test_enlarged():
    assert parse_identifier("a@x2.5").enlarged(5, 7) == (12, 18)  # half to even, as `upscale` rounds
    assert parse_identifier("a").enlarged(5, 7) == (5, 7)
    assert parse_identifier("a@50x70").enlarged(5, 7) == (50, 70)
    for text in ("a@4x7", "a@x0.5", "a@x65", "a@321x7", "a@x0"):
        with pytest.raises(RequestError, match="identifier must name a size"):
            parse_identifier(text).enlarged(5, 7)


@pytest.mark.parametrize(
    ("region", "extent"),
    [
        ("full", (0, 0, 300, 400)),
        ("square", (0, 50, 300, 300)),
        ("10,20,30,40", (20, 10, 40, 30)),
        ("390,290,30,40", (290, 390, 10, 10)),
        ("pct:25,50,12.5,10", (150, 100, 30, 50)),
    ],
)
def test_regions(region, extent):
    assert parsed(region).extent == extent


@pytest.mark.parametrize(
    "region", ["", "10,20,30", "1,2,0,4", "400,0,5,5", "-1,0,5,5", "1.5,0,5,5", "pct:101,0,5,5", "x"]
)
def test_bad_regions(region):
    with pytest.raises(RequestError, match="region must"):
        parsed(region)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("max", (100, 80)),
        ("50,", (50, 40)),
        (",20", (25, 20)),
        ("pct:50", (50, 40)),
        ("30,70", (30, 70)),
        ("!50,50", (50, 40)),
        ("!5000,5000", (100, 80)),
        ("^!500,500", (500, 400)),
        ("^!90000,90000", (1144, 915)),  # as ^max: a box that no answer fills is no error
        ("^200,", (200, 160)),
        ("^,200", (250, 200)),
        ("^pct:370", (370, 296)),
        ("^150,90", (150, 90)),
        ("^max", (1144, 915)),
        ("1,", (1, 1)),
    ],
)
def test_sizes(size, expected):
    assert parsed("0,0,100,80", size).size == expected


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("101,", "needs \\^"),
        ("pct:101", "needs \\^"),
        ("^2000,", "at most 1048576 pixels"),
        ("^6401,1", "at most 64 times"),
        ("0,5", "at least one side"),
        (",", "at least one side"),
        ("!5,", "at least one side"),
        ("pct:0.1", "at least 1x1"),
        ("", "must be max"),
        ("^^5,", "must be max"),
        ("full", "must be max"),
        ("9999999999,", "must be max"),
    ],
)
def test_bad_sizes(size, message):
    with pytest.raises(RequestError, match=message):
        parsed("0,0,100,80", size)


def test_windows_of_an_enlarged_image():
    """A tile is a window of whole pixels; a region at another scale, or one that starts between pixels, is not."""
    tile = parsed("256,512,256,128", photo=(400, 300), full=(1234, 925))
    assert (tile.window, tile.full, tile.size) == ((512, 256, 128, 256), (1234, 925), (256, 128))
    assert tile.extent == pytest.approx((512 * 300 / 925, 256 * 400 / 1234, 128 * 300 / 925, 256 * 400 / 1234))
    assert parsed("0,0,256,256", "128,", full=(1234, 925)).window is None
    assert parsed("pct:0.3,0,50,50", full=(1234, 925)).window is None
    assert parsed("1000,900,256,256", full=(1234, 925)).window == (900, 1000, 25, 234)


@pytest.mark.parametrize(
    ("rotation", "expected"), [("0", (0, False)), ("!90", (90, True)), ("360", (0, False)), ("270.0", (270, False))]
)
def test_rotations(rotation, expected):
    request = parsed(rotation=rotation)
    assert (request.rotation, request.mirrored) == expected


@pytest.mark.parametrize(("rotation", "status"), [("45", 501), ("361", 400), ("-90", 400), ("", 400), ("!!0", 400)])
def test_bad_rotations(rotation, status):
    with pytest.raises(RequestError, match="rotation") as caught:
        parsed(rotation=rotation)
    assert caught.value.status == status


@pytest.mark.parametrize("last", ["default", "default.tif", "grey.png", ".png", "default.png.exe", "", "default.PNG"])
def test_bad_qualities_and_formats(last):
    with pytest.raises(RequestError, match="must be one of"):
        parsed(last=last)


@pytest.mark.parametrize(("kind", "side"), [("jpg", 65_500), ("webp", 16_383)])
def test_a_side_that_a_format_cannot_hold(kind, side):
    full = (side + 1, 1)
    assert parsed("full", f"{side},1", last=f"default.{kind}", photo=full, full=full).size == (side, 1)
    assert parsed("full", f"{side + 1},1", last="default.png", photo=full, full=full).size == (side + 1, 1)
    with pytest.raises(RequestError, match=f"{kind} holds at most {side} pixels a side"):
        parsed("full", f"{side + 1},1", last=f"default.{kind}", photo=full, full=full)


@pytest.mark.parametrize(("kind", "longest"), [("jpg", 65_500), ("webp", 16_383), ("png", 70_000)])
def test_the_largest_answer_is_within_what_the_format_holds(kind, longest):
    for size in ("max", "!99999,99999", "^!70000,9"):
        assert parsed("full", size, last=f"default.{kind}", photo=(70_000, 3), full=(70_000, 3)).size[0] == longest


@settings(max_examples=200, deadline=None)
@given(SIDES, st.integers(1, MAX_SCALE), st.sampled_from(["", "^"]), SIDES)
@example((1, 3_000_000), 1, "", (9, 9))
@example((50_000, 1), 64, "^", (10**9 - 1, 10**9 - 1))
def test_the_largest_answer_is_never_refused(photo, scale, enlarging, box):
    """Section 4.2: `max` and `!w,h` give as much as the region, the box and the server's limits allow."""
    full = (photo[0] * scale, photo[1] * scale)
    assert parsed(size=f"{enlarging}max", photo=photo, full=full)
    wide, high = parsed(size=f"{enlarging}!{box[0]},{box[1]}", photo=photo, full=full).size
    assert wide <= box[0]
    assert high <= box[1]


def test_info_names_the_levels():
    info = describe("http://x/a", 1024, 700, AREA)
    assert info["tiles"] == [{"width": 256, "height": 256, "scaleFactors": [1, 2, 4]}]
    assert describe("http://x/a", 100, 70, AREA)["tiles"][0]["scaleFactors"] == [1]
    assert (info["profile"], info["maxArea"], info["extraQualities"]) == ("level2", AREA, list(QUALITIES[1:]))


NUMBERS = st.one_of(st.integers(0, 10**10).map(str), st.floats(0, 1e6).map(str), st.text("0123456789.", max_size=8))
LIKELY = st.one_of(
    st.sampled_from(["full", "square", "max", "^max", "", "0", "default.png", "a@x3", "..", "%2e%2e", "\0"]),
    st.lists(NUMBERS, max_size=5).map(",".join),
    st.tuples(st.sampled_from(["pct:", "^pct:", "^", "!", "^!", "!^", "@", "@x"]), st.lists(NUMBERS, max_size=4)).map(
        lambda made: made[0] + ",".join(made[1])
    ),
    st.text(max_size=20),
)


@settings(max_examples=300, deadline=None)
@given(SIDES, st.integers(1, MAX_SCALE), LIKELY, LIKELY, LIKELY, LIKELY)
@example((1, 50_000), 1, "full", "^max", "0", "default.png")
@example((400, 300), 3, "pct:99.999999,99.999999,5,5", "^max", "!0", "default.webp")
@example((1, 1), 64, "0,0,1,1", "max", "0", "default.jpg")
def test_any_path_is_refused_or_in_bounds(photo, scale, region, size, rotation, last):
    full = (photo[0] * scale, photo[1] * scale)
    last = last if "." in last else "default.png"
    rotation = rotation if rotation.startswith("!") else "0"
    try:
        request = parse_request(photo, full, (region, size, rotation, last), AREA)
    except RequestError as refusal:
        status, reason = refusal.status, str(refusal)
    else:
        status, reason = 0, ""
    assert status in (0, 400, 501)
    assert "\n" not in reason
    if status:
        return
    top, left, height, width = request.extent
    assert top >= 0
    assert left >= 0
    assert top + height <= photo[1] * (1 + 1e-12)
    assert left + width <= photo[0] * (1 + 1e-12)
    assert min(height, width) > 0
    assert min(request.size) >= 1
    assert request.size[0] * request.size[1] <= AREA
    if request.window is not None:
        y, x, h, w = request.window
        assert 0 <= y < y + h <= full[1]
        assert 0 <= x < x + w <= full[0]
        assert request.size == (w, h)


@settings(max_examples=200, deadline=None)
@given(st.one_of(LIKELY, st.tuples(st.text(max_size=9), LIKELY).map("".join)), SIDES)
def test_any_identifier_is_refused_or_in_bounds(text, sides):
    with suppress(RequestError):
        width, height = parse_identifier(text).enlarged(*sides)
        assert sides[0] <= width <= MAX_SCALE * sides[0]
        assert sides[1] <= height <= MAX_SCALE * sides[1]

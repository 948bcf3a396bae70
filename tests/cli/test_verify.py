"""Test `liif-fast verify`: its output, and that it finds errors."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import liif_fast
from liif_fast import verification
from liif_fast.backends import cpu
from liif_fast.cli import main
from liif_fast.models import make

ROOT = Path(liif_fast.__file__).parents[1]

NUMBER = r"\d+\.\d+"
PLAIN = rf"  plain {{26,}}\s*{NUMBER} s +(\d+ MiB|-)"
BACKEND = rf"  \w+ +\d\.\de[+-]\d\d +[+-]{NUMBER} dB +{NUMBER} s +(\d+ MiB|-) +{NUMBER}x"
REFUSED = r"  \w+ +not here: .+"
FORM = [
    r"model    .+: (LIIF|MetaSR) on [\w-]+, [\d,]+ parameters",
    rf"image    .+: \d+x\d+ from \d+x\d+, x[\d.]+, {NUMBER} dB",
    r"machine  .+, \d+ threads, torch \S+",
    r"version  liif_fast \S+",
    "",
    r"decoder      largest error    PSNR change       time     memory   ratio",
    PLAIN,
    rf"({BACKEND}|{REFUSED})",
    "",
    r"whole model  largest error    PSNR change       time     memory   ratio",
    PLAIN,
    rf"({BACKEND}|{REFUSED})",
    "",
    r"(agree: errors within 1e-05 of the largest output, PSNR within 0.005 dB|DISAGREE: .+)",
]


def assert_form(text: str) -> None:
    """Return patterns of all output lines; the pattern of a backend's line repeats for each backend."""
    lines = text.splitlines()
    for index, form in enumerate(FORM):
        assert lines, f"no line for {form}"
        assert re.fullmatch(form, lines[0]), lines[0]
        del lines[0]
        while form.startswith("(  ") and lines and re.fullmatch(form, lines[0]):
            del lines[0]
        assert index < len(FORM)
    assert lines == []


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    y, x = np.mgrid[:40, :56]
    waves = np.stack([127 + 100 * np.sin(0.3 * x + 0.2 * y + c) for c in range(3)], -1)
    Image.fromarray(waves.astype(np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def verify(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["verify", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_agreement(model: str, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = verify(capsys, model, picture, "--scale", 2.5, "--turns", 1)
    assert (code, err) == (0, "")
    assert_form(out)
    assert "tiny.safetensors: LIIF on edsr-baseline" in out
    assert "photo.png: 55x40 from 22x16, x2.5" in out
    for backend in ("cpu", "torch"):
        assert len(re.findall(rf"^  {backend} .* dB .*x$", out, re.MULTILINE)) == 2


def test_metasr_and_the_bundled_photograph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
    liif_fast.save_model(make({"name": "metasr", "args": {"encoder_spec": encoder}}), tmp_path / "meta.pth")
    code, out, err = verify(capsys, tmp_path / "meta.pth", "--turns", 1, "--scale", 6)
    assert (code, err) == (0, "")
    assert_form(out)
    assert "MetaSR on edsr-baseline" in out
    assert "chelsea.png" in out


@pytest.mark.parametrize("change", [1e-3, math.nan])
def test_a_backend_that_computes_something_else(
    model: str, picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: float
) -> None:
    right = cpu.render

    def wrong(*args: object, **options: object) -> torch.Tensor:
        out = right(*args, **options)  # type: ignore[arg-type]
        out[..., -1, -1] += change
        return out

    monkeypatch.setattr(cpu, "render", wrong)
    if math.isnan(change):  # upscale itself refuses to continue
        code, out, err = verify(capsys, model, picture, "--turns", 1)
        assert code == 1
        assert "NaN" in err
        return
    code, out, err = verify(capsys, model, picture, "--turns", 1)
    assert code == 1
    assert_form(out)
    assert "DISAGREE: 2 of the above" in out
    assert re.search(r"error: decoder, cpu: an error of \d\.\de-0\d, allowed are 1e-05\n", err)
    assert "error: whole model, cpu: " in err


def test_a_model_that_gives_zero_everywhere(
    model: str, tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zero = liif_fast.load_model(model)
    args = {**zero.spec["args"], "residual": None}
    zero = make({"name": "liif", "args": args})
    with torch.no_grad():
        for parameter in zero.parameters():
            parameter.zero_()
    liif_fast.save_model(zero, tmp_path / "zero.pth")
    code, out, _ = verify(capsys, tmp_path / "zero.pth", picture, "--turns", 1)
    assert code == 0
    assert_form(out)


def test_a_model_that_gives_no_rgb(tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 1, "hidden_list": [8]}}
    liif_fast.save_model(
        make({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}), tmp_path / "gray.pth"
    )
    code, out, err = verify(capsys, tmp_path / "gray.pth", picture, "--turns", 1)
    assert (code, out) == (1, "")
    assert err.endswith("gray.pth: the model gives 1 channels, expected 3 (RGB)\n")


def test_a_damaged_model(model: str, tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = liif_fast.load_model(model)
    with torch.no_grad():
        damaged.imnet.layers[0].weight[0, 0] = math.nan
    liif_fast.save_model(damaged, tmp_path / "damaged.safetensors")
    code, out, err = verify(capsys, tmp_path / "damaged.safetensors", picture)
    assert (code, out) == (1, "")
    assert err == "liif-fast: error: the plain formula gives NaN or infinite values: the model is damaged\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("none.pth",), "none.pth: No such file"),
        (("{model}", "none.png"), "none.png: No such file"),
        (("{model}", "{picture}", "--scale", "6"), "must keep 8 pixels"),
        (("{model}", "{picture}", "--scale", "1"), "scale must be above 1"),
        (("{model}", "{picture}", "--turns", "0"), "turns must be at least 1"),
        (("{model}", "{picture}", "--device", "cuda:99"), "not available"),
    ],
)
def test_bad_input(
    model: str, picture: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    code, out, err = verify(capsys, *(arg.format(model=model, picture=picture) for arg in args))
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="docs/ is in the source tree only")
def test_the_document_shows_what_the_command_prints() -> None:
    text = (ROOT / "docs/backends.md").read_text(encoding="utf-8")
    block = text.split("<!-- begin:verify -->\n")[1].split("<!-- end:verify -->")[0]
    found = re.fullmatch(r"```text\n\$ ([^\n]*)\n(.*)```\n", block, re.DOTALL)
    assert found
    command, out = found.groups()
    assert command == "liif-fast verify edsr-small-liif"
    assert_form(out)
    assert "DISAGREE" not in out


def test_a_disturbed_round_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ratio is the median over rounds, so slowing down two whole rounds of five changes nothing."""
    taken = iter([7.0, 1.0, 70.0, 10.0, 7.0, 7.0, 7.0, 1.0, 14.0, 2.0])
    monkeypatch.setattr(verification, "_timed", lambda run, device: next(taken))
    rows = verification._compare(
        "part", lambda: torch.ones(3), lambda name: torch.ones(3), ("torch",), lambda out: 0.0, 5, torch.device("cpu")
    )
    assert [row.ratio for row in rows] == [1.0, 7.0]

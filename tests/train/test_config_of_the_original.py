"""Read configurations of every family as the original writes them."""

import pytest

from liif_fast.evaluation import load_test_config
from liif_fast.train import load_config

# The original's families; each file is identified by what is special about it.
LIIF = {"imnet_spec": {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [256] * 4}}}


DOWNSAMPLED = {"inp_size": 48, "scale_max": 4, "augment": True, "sample_q": 2304}


FAMILIES = {
    "edsr-baseline-liif": ("edsr-baseline", LIIF, DOWNSAMPLED),
    "edsr-baseline-metasr": ("edsr-baseline", None, DOWNSAMPLED),
    "rdn-liif": ("rdn", LIIF, DOWNSAMPLED),
    "rdn-metasr": ("rdn", None, DOWNSAMPLED),
    "ablation-c": ("edsr-baseline", LIIF | {"cell_decode": False}, DOWNSAMPLED),
    "ablation-u": ("edsr-baseline", LIIF | {"feat_unfold": False}, DOWNSAMPLED),
    "ablation-e": ("edsr-baseline", LIIF | {"local_ensemble": False}, DOWNSAMPLED),
    "ablation-x3": ("edsr-baseline", LIIF, DOWNSAMPLED | {"scale_min": 3, "scale_max": 3}),
    "edsr-baseline-x2": ("edsr-baseline", {}, {"inp_size": 48, "augment": True}),
    "rdn-x2": ("rdn", {}, {"inp_size": 48, "augment": True}),
    "celebAHQ": ("edsr-baseline", LIIF, {"size_min": 32, "size_max": 256, "sample_q": 1024, "augment": True}),
    "celebAHQ-upsample": ("edsr-baseline", {}, {"size_min": 128, "gt_resize": 128, "augment": True}),
}


IMAGES = """
  dataset:
    name: image-folder
    args:
      root_path: {0}
      first_k: 10
      repeat: 20
      cache: in_memory
"""


PAIRS = """
  dataset:
    name: paired-image-folders
    args:
      root_path_1: {0}
      root_path_2: {0}
      split_file: {0}/split.json
      split_key: train
      cache: bin
"""


NORM = """
data_norm:
  inp: {sub: [0.5], div: [0.5]}
  gt: {sub: [0.5], div: [0.5]}
"""


def wrapper(args):
    pairs = "scale_max" not in args
    name = "uniform-varied" if "size_min" in args else "paired" if pairs else "downsampled"
    return (PAIRS if pairs else IMAGES) + f"  wrapper: {{name: sr-implicit-{name}, args: {args}}}\n  batch_size: 16\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_the_original(tmp_path, family):
    encoder, head, args = FAMILIES[family]
    plain = {} if head == {} else {"no_upsampling": True}
    name = "metasr" if head is None else "liif"
    spec = {"encoder_spec": {"name": encoder, "args": plain}} | (head or {})
    part = wrapper(args).replace("True", "true")
    text = f"train_dataset:{part}val_dataset:{part}{NORM}model: {{name: {name}, args: {spec}}}\n"
    text += "optimizer:\n  name: adam\n  args:\n    lr: 1.e-4\nepoch_max: 1000\n"
    text += "multi_step_lr:\n  milestones: [200, 400, 600, 800]\n  gamma: 0.5\nepoch_val: 1\nepoch_save: 100\n"
    (tmp_path / "split.json").write_text("{}")
    path = tmp_path / "original.yaml"
    path.write_text(text.replace("True", "true").replace("False", "false").replace("{0}", str(tmp_path)))
    config = load_config(path)
    assert config.optimizer["args"]["lr"] == 1e-4
    assert config.train_dataset["wrapper"]["args"] == args
    assert config.model["args"].get("cell_decode") == (head or {}).get("cell_decode")


def test_tests_of_the_original(tmp_path):
    for wrapper_spec, eval_type in (
        ("{name: sr-implicit-paired, args: {}}", "benchmark-4"),
        ("{name: sr-implicit-downsampled, args: {scale_min: 12}}", "div2k-12"),
        ("{name: sr-implicit-uniform-varied, args: {size_min: 256}}", None),
    ):
        (tmp_path / "split.json").write_text("{}")
        path = tmp_path / "test.yaml"
        text = f"test_dataset:{PAIRS}  wrapper: {wrapper_spec}\n  batch_size: 1\n{NORM}eval_bsize: 30000\n"
        path.write_text(text.replace("{0}", str(tmp_path)) + (f"eval_type: {eval_type}\n" if eval_type else ""))
        config = load_test_config(path)
        assert (config.eval_type, config.eval_bsize) == (eval_type, 30000)
        assert config.test_dataset["batch_size"] == 1
        assert config.data_norm["gt"] == {"sub": [0.5], "div": [0.5]}
    path.write_text(path.read_text() + "model: {}\n")
    with pytest.raises(ValueError, match=r"test\.yaml, line \d+: config: unknown key 'model' \(known: test_dataset"):
        load_test_config(path)
    path.write_text("eval_type: div2k-2\n")
    with pytest.raises(ValueError, match="config: 'test_dataset' is missing"):
        load_test_config(path)

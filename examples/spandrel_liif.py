"""Register LIIF and MetaSR with spandrel, the model loader of chaiNNer, ComfyUI and others.

A descriptor of spandrel has one whole ratio, so each registration is for one. It reads `.pth` files, the original's and
those of `liif_fast.save_model`. It cannot read `.safetensors`, because spandrel drops the metadata that describes the
model; save such a model as `.pth` first (docs/tools.md).

    pip install spandrel
    python examples/spandrel_liif.py edsr-baseline-liif.pth in.png out.png 4
"""

import sys
from typing import Any

import torch
from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    ModelLoader,
    ModelTiling,
    StateDict,
)
from torch import Tensor

import liif_fast
from liif_fast.models.base import FeatureModel

NAMES = {"liif": "LIIF", "metasr": "MetaSR"}


class LIIFArchitecture(Architecture[FeatureModel]):
    """LIIF or MetaSR at one whole ratio of at least 1."""

    def __init__(self, scale: int) -> None:
        if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
            raise ValueError(f"scale must be a whole number of at least 1, got {scale!r}")
        super().__init__(id="LIIF", name="LIIF", detect=detect)
        self.ratio = scale

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[FeatureModel]:
        """Build the model from what spandrel leaves of a `.pth`: its name, args and sd."""
        if "sd" not in state_dict:
            raise ValueError(
                "these tensors come without the spec of their model, as those of a .safetensors do in spandrel: load "
                "the file by liif_fast.load_model and save it by liif_fast.save_model(model, 'model.pth')"
            )
        model: Any = liif_fast.load_model({"model": state_dict})
        if model.channels_out not in (None, model.channels_in):
            raise ValueError(f"the model gives {model.channels_out} channels, expected {model.channels_in}")

        def call(model: FeatureModel, image: Tensor) -> Tensor:
            size = [side * self.ratio for side in image.shape[2:]]
            return model.predict(image, size).clamp(0, 1)

        return ImageModelDescriptor(
            model,
            state_dict["sd"],
            self,
            "SR",
            tags=[NAMES[state_dict["name"]], model.spec["args"]["encoder_spec"]["name"]],
            supports_half=False,
            supports_bfloat16=False,
            scale=self.ratio,
            input_channels=model.channels_in,
            output_channels=model.channels_in,
            tiling=ModelTiling.DISCOURAGED if model.receptive_radius is None else ModelTiling.SUPPORTED,
            call_fn=call,
        )


def detect(state_dict: StateDict) -> bool:
    """Say whether a file is LIIF's or MetaSR's, whole or the bare tensors of one."""
    if "sd" in state_dict:
        return state_dict.get("name") in NAMES
    return any(key.startswith("imnet.layers.") for key in state_dict) and any(
        key.startswith("encoder.") for key in state_dict
    )


def register(scale: int, registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Make spandrel load LIIF and MetaSR at one ratio; for another one pass another registry.

    Raises:
        spandrel.DuplicateArchitectureError: the registry has LIIF already.
        ValueError: scale is not a whole number of at least 1.
    """
    registry.add(ArchSupport.from_architecture(LIIFArchitecture(scale)))


def main() -> None:
    """Enlarge a picture by spandrel."""
    import numpy as np
    from PIL import Image

    if len(sys.argv) != 5:
        sys.exit("usage: spandrel_liif.py MODEL.pth IN OUT SCALE")
    source, picture, target, scale = sys.argv[1:]
    try:
        register(int(scale) if scale.isdecimal() else scale)  # type: ignore[arg-type]  # it says what is wrong
        descriptor = ModelLoader().load_from_file(source)
        pixels = np.asarray(Image.open(picture).convert("RGB"), np.float32) / 255
        enlarged = descriptor(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        Image.fromarray((enlarged[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()).save(target)
    except Exception as error:  # torch.load alone raises five kinds
        sys.exit(f"spandrel_liif.py: {' '.join(str(error).split()) or type(error).__name__}")


if __name__ == "__main__":
    main()

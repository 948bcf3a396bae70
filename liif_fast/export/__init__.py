"""Write a LIIF as an ONNX graph of standard operators, for runtimes other than PyTorch; docs/export.md shows how."""

import contextlib
import copy
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from liif_fast import __version__
from liif_fast.export.graph import Decoder, Encoder, Planned, Whole
from liif_fast.export.plan import graph_inputs
from liif_fast.files import atomic_file, why_not_writable
from liif_fast.layers import fusable
from liif_fast.models.liif import LIIF

OPSET = 18
FORMS = ("whole", "parts", "onnxruntime-only")
BOUNDS = {torch.float32: 1e-3, torch.float16: 1e-2}  # of a graph's error before it is refused; usual ones are far below
PLAN = ("row_index", "column_index", "row_rel", "column_rel", "cell")

OTHERS = {  # why they have no graph, by the name of their spec
    "metasr": "predicts a matrix for every query",
    "lte": "estimates frequencies for every query",
    "lte-fast": "estimates frequencies for every query",
    "lm-liif": "modulates the network of every query",
    "lmliif": "modulates the network of every query",
    "jiif": "reads an image beside the depth map",
    "iln": "attends over the corners of every query",
    "liif_lidar": "reads range images",
}


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    half: bool = False,
    form: str = "whole",
    licence: str = "unknown",
) -> list[Path]:
    """Write a LIIF as ONNX, opset 18, standard operators, any height, width and output size.

    Args:
        model: a `LIIF` whose imnet is Linear and ReLU in turn, as `load_model` returns it.
        path: path of the file, ends in `.onnx`.
        half: store the encoder and the hidden layers in float16; inputs, outputs and the plan keep their dtypes.
        form: "whole" takes the image and the plan (`plan.graph_inputs` makes it, docs/export.md). "parts" writes the
            same as NAME-encoder.onnx, image to `latents`, and NAME-decoder.onnx, so that strips of an output share
            one encoding. "onnxruntime-only" takes the image and `size` int64 [2] and plans inside; it is wrong in
            runtimes with other rounding.
        licence: licence of the weights, for the metadata.

    Returns:
        The files written.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        TypeError, ValueError: the model cannot be written, or another argument is wrong; the message says why.
        OSError: a file cannot be written.

    Source: LIIF (arXiv 2012.09161), section 3; the plan is that of docs/semantics.md.
    """
    path = Path(path)
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"path must end in .onnx, got {str(path)!r}")
    if re.search("[\ud800-\udfff]", licence):  # bytes of a command line that are not UTF-8
        raise ValueError(f"licence must be text in UTF-8, got {licence!r:.80}")
    checked = check_exportable(model)
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise ImportError(f"export needs the package {error.name}: pip install 'liif-fast[onnx]'") from error
    stems = (f"{path.stem}-encoder", f"{path.stem}-decoder") if form == "parts" else (path.stem,)
    paths = [path.with_name(f"{stem}{path.suffix}") for stem in stems]
    for each in paths:
        if why := why_not_writable(each):
            raise OSError(f"{each}: {why}")
    metadata = _metadata(checked, half, form, licence)
    dtype = torch.float16 if half else torch.float32
    contents = [_trace(graph, checked, dtype, metadata) for graph in _graphs(checked, dtype, form)]
    _check_image(checked, dtype)
    with contextlib.ExitStack() as stack:  # the two parts belong together
        files = [stack.enter_context(atomic_file(each)) for each in paths]
        for file, content in zip(files, contents, strict=True):
            file.write(content)
    return paths


def check_exportable(model: nn.Module) -> LIIF:
    """Return the model if `export_onnx` can write it.

    Raises:
        TypeError: it is not a LIIF of pictures.
        ValueError: its network is not Linear and ReLU in turn, its residual does not fit its output, or it clips cells.
    """
    if type(model) is not LIIF:
        why = OTHERS.get(getattr(model, "spec", {}).get("name", ""), "computes something else")
        raise TypeError(
            f"model must be a LIIF, got a {type(model).__name__}, which {why}: only LIIF's decoder has a graph "
            "(projected latents, Linear and ReLU in turn, blended by area)"
        )
    chain = fusable(model.imnet)
    if chain is None:
        what = "has no imnet" if model.imnet is None else f"has a {type(model.imnet).__name__} as imnet"
        raise ValueError(f"the model {what}, expected Linear and ReLU in turn without hooks; only these are exported")
    if model.reads_input and len(chain[1][-1]) != model.channels_in:
        raise ValueError(
            f"residual={model.residual!r} needs as many output channels as the input has, {model.channels_in}, "
            f"got {len(chain[1][-1])}"
        )
    if model.clips_cell_above is not None:
        raise ValueError(
            f"the model has clips_cell_above={model.clips_cell_above!r}, expected None; a graph is given the true cell"
        )
    return model


def _check_image(model: LIIF, dtype: torch.dtype) -> None:
    """Raise ValueError if the graph's image is not the model's."""
    shape, size = (16, 12), (35, 23)
    reference = copy.deepcopy(model).to("cpu", torch.float32).eval()
    reference.backend = "auto"  # the model's own may need its device
    for each in dict.fromkeys((torch.float32, dtype)):
        values = _example(model, each, shape, size)
        with torch.no_grad():
            got = Whole(model, each).eval()(*(values[name] for name in ("image", *PLAN)))
            error = (got - reference.predict(values["image"], size).clamp(0, 1)).abs().max().item()
        if not error <= BOUNDS[each]:  # NaN, too
            why = (
                "float16 lacks the range or the precision that its weights need, export it without half"
                if each == torch.float16
                else f"its encoder may give other than {model.enlargement} features per pixel along each side"
            )
            raise ValueError(f"the graph's image differs from the model's by {error:.2g} of [0, 1]: {why}")


def _metadata(model: LIIF, half: bool, form: str, licence: str) -> dict[str, str]:
    return {
        "liif_fast.version": __version__,
        "liif_fast.form": form,
        "liif_fast.spec": json.dumps(model.spec),
        "liif_fast.data_norm": json.dumps(model.data_norm),  # for information; the graph applies it
        "liif_fast.residual": model.residual or "none",
        "liif_fast.corners": "2" if model.local_ensemble else "1",
        "liif_fast.enlargement": str(model.enlargement),  # latents per pixel of the image along each side
        "liif_fast.precision": "float16" if half else "float32",
        "licence": licence,
    }


class _Graph(NamedTuple):
    module: nn.Module
    inputs: tuple[str, ...]
    output: str


def _graphs(model: LIIF, dtype: torch.dtype, form: str) -> list[_Graph]:
    if form == "parts":
        encoder = _Graph(Encoder(model, dtype), ("image",), "latents")
        return [encoder, _Graph(Decoder(model, dtype), ("image", "latents", *PLAN), "output")]
    if form == "whole":
        return [_Graph(Whole(model, dtype), ("image", *PLAN), "output")]
    return [_Graph(Planned(model, dtype), ("image", "size"), "output")]


def _example(model: LIIF, dtype: torch.dtype, shape: tuple[int, int], size: tuple[int, int]) -> dict[str, Tensor]:
    """Return what every input may be for an image of `shape` and an output of `size`."""
    latents = tuple(side * model.enlargement for side in shape)
    hidden = len(fusable(model.imnet)[1][0])  # type: ignore[index]  # checked
    generator = torch.Generator().manual_seed(0)
    made = graph_inputs(latents, size, 2 if model.local_ensemble else 1)
    return {
        "image": torch.rand(1, model.channels_in, *shape, generator=generator),
        "latents": torch.rand(*latents, hidden, generator=generator).to(dtype),
        "size": torch.tensor(size),
        **{name: torch.from_numpy(made[name]) for name in PLAN},
    }


def _free(name: str) -> dict[int, Any]:
    """Return the free dimensions of an input."""
    dims = {"image": {2: "H", 3: "W"}, "latents": {0: "sH", 1: "sW"}}.get(name, {})
    if name in PLAN and name != "cell":
        dims = {1: "h" if name.startswith("row") else "w"}
    return {axis: torch.export.Dim(dim, min=1) for axis, dim in dims.items()}


def _trace(graph: _Graph, model: LIIF, dtype: torch.dtype, metadata: dict[str, str]) -> bytes:
    """Return the file of a graph."""
    traced, other = (
        [values[name] for name in graph.inputs]
        for values in (_example(model, dtype, (7, 9), (17, 19)), _example(model, dtype, (16, 12), (35, 23)))
    )
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                graph.module.eval(),
                tuple(traced),
                input_names=graph.inputs,
                output_names=[graph.output],
                opset_version=OPSET,
                dynamic_shapes=tuple(map(_free, graph.inputs)),
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            # An encoder may have left sizes of the traced image in the graph.
            bound = 1e-2 if dtype == torch.float16 else 1e-4
            again = program.exported_program.module()  # type: ignore[union-attr]
            torch.testing.assert_close(again(*other), graph.module(*other), rtol=bound, atol=bound, equal_nan=True)
        except Exception as error:
            why = error.__cause__ or error
            first = (str(why).strip() or " ").splitlines()[0]
            raise ValueError(
                f"the model cannot be written as ONNX for every size, because its {type(model.encoder).__name__} "
                f"cannot be traced so: {type(why).__name__}: {first}"
            ) from error
    for node in program.model.graph.all_nodes():  # stack traces, with paths of this machine
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    program.model.metadata_props.update(metadata)
    program.model.producer_name, program.model.producer_version = "liif_fast", __version__
    return program.model_proto.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's output: its progress, and warnings about torchvision, which is not needed."""
    noise = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = noise.level
    noise.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        noise.setLevel(level)

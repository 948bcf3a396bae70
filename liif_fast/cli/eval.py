"""`liif-fast eval`: measure PSNR and SSIM of models on test sets given by YAML files in the original's format."""

import argparse
import logging
from collections.abc import Callable
from importlib.util import find_spec
from os.path import expanduser
from pathlib import Path
from typing import Any

from liif_fast.cli import add_device, add_plugin, given_path
from liif_fast.files import distinct_names

_ABOUT = "Score models on test sets: YAML files in the original's format, one per column of the table."
_EPILOG = """\
For a test with div2k in its name, the rows published for DIV2K validation are listed above the measured ones.
Under torchrun the images are shared among the processes.
"""
BICUBIC = "bicubic"
logger = logging.getLogger("liif_fast")


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("eval", help="score models on test sets", description=_ABOUT, epilog=_EPILOG)
    parser.add_argument(
        "--config",
        type=given_path,
        required=True,
        nargs="+",
        metavar="FILE",
        help="the YAML files, one per test",
    )
    parser.add_argument(
        "--model",
        type=expanduser,
        required=True,
        nargs="+",
        metavar="MODEL",
        help=f"files or names (see liif-fast models), or {BICUBIC}: Pillow's bicubic enlargement",
    )
    add_plugin(parser)
    parser.add_argument(
        "--cell-clip",
        action="store_true",
        help="beyond x4 give any model the cell of x4, as SRNO and LMF do; LTE gets it without",
    )
    parser.add_argument("--no-ssim", action="store_true", help="only PSNR; SSIM takes longer than most models")
    parser.add_argument(
        "--save", type=given_path, metavar="DIR", help="write the predictions as DIR/<model>/<test>/<image>.png"
    )
    parser.add_argument("--markdown", type=given_path, metavar="FILE", help="also write the table to a file")
    parser.add_argument(
        "--json", type=given_path, metavar="FILE", help="write all scores, including each image's, to a file"
    )
    add_device(parser)
    parser.add_argument("--backend", metavar="NAME", help="the decoder's backend (default: the fastest; see info)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from liif_fast import distributed
    from liif_fast.devices import pick_device

    device = distributed.init(pick_device(args.device))
    try:
        with distributed.reporting("restart the evaluation"):
            _run(args, device)
    finally:
        distributed.cleanup()
    return 0


def _run(args: argparse.Namespace, device: Any) -> None:
    import liif_fast
    from liif_fast import data, distributed, evaluation
    from liif_fast.config.plugins import import_plugins
    from liif_fast.config.reading import placed
    from liif_fast.evaluation import load_test_config
    from liif_fast.models.catalogue import resolve_model

    for path in filter(None, (args.markdown, args.json)):
        if obstacle := liif_fast.files.why_not_writable(path):
            raise OSError(f"{path}: {obstacle}")
    if args.backend not in (None, "auto", *liif_fast.backends.NAMES):
        names = ", ".join(("auto", *liif_fast.backends.NAMES))
        raise ValueError(f"--backend must be one of {names}, got {args.backend!r}")
    import_plugins(args.plugin, place="--plugin")
    tests = []
    for name, path in _names(args.config, "test-").items():
        config = load_test_config(path)
        with placed(path):
            wrapper = data.make_split(config.test_dataset, "test_dataset", seed=0)
        tests.append((name, config, evaluation.at_eval_type(wrapper, config.eval_type)))
    models: dict[str, Any] = {}
    for name, path in _names(args.model).items():
        models[name] = None if path == BICUBIC else resolve_model(path, device)
        if models[name] is not None and args.backend is not None:
            models[name].backend = args.backend
    with_ssim = not args.no_ssim and find_spec("skimage") is not None
    if not (with_ssim or args.no_ssim) and distributed.is_main():
        logger.warning("only PSNR: SSIM needs scikit-image (pip install scikit-image)")

    scores = []
    for label, model in models.items():
        for test, config, wrapper in tests:
            images = evaluation.evaluate(
                evaluation.bicubic if model is None else _predict(model, config, args, test),
                wrapper,
                distributed.share(range(len(wrapper))),
                eval_type=config.eval_type,
                with_ssim=with_ssim,
                save=None if args.save is None else Path(args.save, label, test),
                label=f"{label}, {test}",
            )
            batch_size = config.test_dataset["batch_size"]
            images = distributed.merge(images)
            scores.append(evaluation.summarise(test, label, config.eval_type, batch_size, images))
    if not distributed.is_main():
        return
    table = evaluation.markdown(scores)
    print(table)
    about = {"version": liif_fast.__version__, "cell_clip": args.cell_clip, "device": str(device)}
    for path, text in ((args.markdown, table + "\n"), (args.json, evaluation.to_json(scores, **about))):
        if path is not None:
            with liif_fast.files.atomic_file(path) as file:
                file.write(text.encode())


def _names(paths: list[str], prefix: str = "") -> dict[str, str]:
    """Map short names to the paths; drop a prefix if the names stay distinct."""
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"{path} is given twice")
    names = distinct_names(paths)
    short = [name.removeprefix(prefix) for name in names]
    return dict(zip(short if len({name.casefold() for name in short}) == len(short) else names, paths, strict=True))


def _predict(model: Any, config: Any, args: argparse.Namespace, test: str) -> Callable[..., Any]:
    """Return a model's prediction with the test's normalisation; warn if the model's differs."""
    from liif_fast import evaluation

    norm = config.data_norm
    if norm != model.data_norm:
        logger.warning("%s: uses its own data_norm %s; the model's is %s", test, norm, model.data_norm)
    return evaluation.of_model(model, norm, cell_clip=args.cell_clip)

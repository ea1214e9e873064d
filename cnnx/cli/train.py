"""``cnnx train``: from a data set to a trained, checked, saved and drawn net."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import time
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import cnnx
from cnnx._files import atomic_write
from cnnx._threads import MOST as MOST_THREADS
from cnnx.cli._arguments import natural, positive, whole
from cnnx.data import Dataset, digits, fashion_mnist, load, mnist
from cnnx.data._dataset import unit_images
from cnnx.data._files import load_levels
from cnnx.distributed import DataParallel
from cnnx.distributed._job import Communicator, from_root, together
from cnnx.distributed._run import require_whole_shards
from cnnx.functional import _arguments as check
from cnnx.models import MODELS
from cnnx.serialization import has_safetensors
from cnnx.training import History, predict

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OUTPUT = Path("cnnx-run")
_FETCHED = {"mnist": mnist, "fashion-mnist": fashion_mnist}
_LEARNING_RATES = {"sgd": 0.05, "adam": 2e-3, "adamw": 2e-3}
# Over ten seeds and all five ways to hold out a fifth of the digits, 0.05 against none lowered the
# number of wrong test images by a third.
_LABEL_SMOOTHING = 0.05
_OF_DISTRIBUTED = ("shards", "fast_reduction", "sync_batch_norm")  # settings
_CHECKED_IMAGES = 4  # enough to reach every weight, few enough for central differences


@dataclass(frozen=True)
class Settings:
    """All that decides a result, and nothing else: not the number of threads."""

    data: str | None
    model: str
    epochs: int
    batch_size: int
    lr: float
    optimizer: str
    seed: int
    distributed: bool = False  # and what only then means something
    shards: int | None = None
    fast_reduction: bool = False
    sync_batch_norm: bool = False


def add_parser(commands: Any) -> None:
    """Add the subcommand to argparse's list of them."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="train a net on handwritten digits, check its gradients, save and draw it",
        description="Train a net on the digits that come with the package, on MNIST, or on "
        "pictures of your own; then test it, check its gradients, save it and draw what it "
        "learned. Ctrl-C saves, and --resume goes on from there to the same result.",
    )
    option = parser.add_argument
    option(
        "--data",
        metavar="DATA",
        help="mnist.npz, a folder with the four IDX files, or one with a folder of pictures for "
        f"each class; or {' or '.join(_FETCHED)}, which are fetched once",
    )
    option("--model", choices=sorted(MODELS), help="default: classroom")
    option("--epochs", type=positive, metavar="N", help="default: 20 for the digits, else 5")
    option("--batch-size", type=positive, metavar="N", help="default: 32 for the digits, else 64")
    option("--lr", type=_rate, metavar="X", help="largest learning rate; default: by optimizer")
    option("--optimizer", choices=sorted(_LEARNING_RATES), help="default: adam")
    option("--seed", type=natural, metavar="N", help="of weights and order; default: 0")
    threads = whole(1, MOST_THREADS)
    option("--threads", type=threads, metavar="N", help="the result does not depend on it")
    option("--output", type=Path, default=_OUTPUT, metavar="DIR", help=f"default: {_OUTPUT}")
    option("--resume", action="store_true", help="go on with the interrupted training in DIR")
    many = parser.add_argument_group(
        "several processes", "mpiexec -n 4 cnnx train --distributed; needs cnnx[mpi] and an MPI"
    ).add_argument
    flag: Any = {"action": "store_const", "const": True}
    many("--distributed", **flag, help="each process computes a part of every batch")
    many(
        "--shards", type=positive, metavar="N", help="parts of a batch, a power of two; default: 4"
    )
    many("--fast-reduction", **flag, help="sums in any order: bits depend on the processes")
    many("--sync-batch-norm", **flag, help="normalise over the whole batch, not each shard")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train; return 1 if a gradient of the trained net is wrong."""
    if arguments.threads is not None:
        cnnx.set_num_threads(arguments.threads)
    read = partial(_resumed if arguments.resume else _fresh, arguments)
    if not arguments.distributed:
        settings = read()
        if not settings.distributed:
            return _train(arguments, settings)
    return together(
        lambda ranks: _train(arguments, from_root(ranks, read), ranks),
        f"cnnx {arguments.command}: ",
        share_cpus=arguments.threads is None,
    )


def _train(
    arguments: argparse.Namespace, settings: Settings, ranks: Communicator | None = None
) -> int:
    started = time.perf_counter()
    leads = ranks is None or ranks.rank == 0
    output: Path = arguments.output
    file = output / ("model.safetensors" if has_safetensors() else "model.npz")
    data = _data(settings.data, settings.distributed)
    rng = np.random.default_rng(settings.seed)
    model = MODELS[settings.model](data.input_shape, data.classes, rng=rng)
    optimizer = _optimizer(settings, ranks)
    if leads and not arguments.resume:  # all that can be mistyped has been read
        _begin(settings, output)
    if leads:
        _introduce(settings, data, model, optimizer)

    history = _fit(model, data, settings, optimizer, output, arguments.resume)
    if not leads:
        return 0
    predicted = predict(model, data.x_test).argmax(axis=1)
    wrong = int(np.count_nonzero(predicted != data.y_test))
    print(
        f"test accuracy {1 - wrong / len(predicted):.2%}: {wrong} of {len(predicted)} images wrong "
        f"({time.perf_counter() - started:.1f} s)"
    )
    print("checking gradients ...", flush=True)
    report = cnnx.gradcheck(
        model, data.x_test[:_CHECKED_IMAGES], max_elements=_checked_elements(model)
    )
    print(report)

    cnnx.save(model, file)
    print(f"saved {file}")
    print(_draw(model, history, data, predicted, settings, output / "training.png"))
    print(f"done in {time.perf_counter() - started:.1f} s")
    return 0 if report else 1


def _data(name: str | None, distributed: bool) -> Dataset:
    if name is None:
        return digits()
    try:
        if name in _FETCHED:
            return _FETCHED[name]()
        return load_levels(name) if distributed else load(name)  # each rank wants a part
    except ImportError as error:  # what is missing is said in one line
        raise ValueError(str(error)) from error


def _fit(
    model: cnnx.Sequential,
    data: Dataset,
    settings: Settings,
    optimizer: Any,
    output: Path,
    resume: bool,
) -> History:
    steps = settings.epochs * math.ceil(len(data.x_train) / settings.batch_size)
    try:
        return cnnx.fit(
            model,
            data.x_train,
            data.y_train,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            loss=cnnx.SoftmaxCrossEntropy(_LABEL_SMOOTHING),
            optimizer=optimizer,
            schedule=cnnx.CosineLR(optimizer, steps, warmup=steps // 20),
            validation=(data.x_test, data.y_test),
            seed=settings.seed,
            augment=_from_levels if data.x_train.dtype == np.uint8 else None,
            checkpoint=output / "checkpoint.npz",
            resume=resume,
        )
    except KeyboardInterrupt as interrupt:
        where = "" if output == _OUTPUT else f" --output {shlex.quote(str(output))}"
        place = str(interrupt).partition(";")[0]
        raise KeyboardInterrupt(
            f"{place}; to go on from the checkpoint: cnnx train --resume{where}"
        ) from interrupt


def _from_levels(x: Any, rng: np.random.Generator) -> NDArray[np.float32]:
    """What ``load`` would have made of a batch's images."""
    return unit_images(x)


def _checked_elements(model: cnnx.Sequential) -> int:
    """Elements to check one by one: fewer of a deep net, whose forward takes longer."""
    return max(2 * len(model.params), 8000 // len(model.params))


def _optimizer(settings: Settings, ranks: Communicator | None) -> Any:
    if settings.optimizer == "sgd":
        optimizer: Any = cnnx.SGD(settings.lr, momentum=0.9, nesterov=True)
    else:
        optimizer = {"adam": cnnx.Adam, "adamw": cnnx.AdamW}[settings.optimizer](settings.lr)
    if ranks is None:
        return optimizer
    parallel = DataParallel(
        optimizer,
        ranks,
        shards=settings.shards,
        reduction="fast" if settings.fast_reduction else "deterministic",
        sync_batch_norm=settings.sync_batch_norm,
    )
    require_whole_shards(settings.batch_size, parallel.shards)
    return parallel


def _fresh(arguments: argparse.Namespace) -> Settings:
    """Settings from the options and their defaults."""
    given = _given(arguments)
    own_digits = "data" not in given
    optimizer = given.get("optimizer", "adam")
    defaults = {
        "data": None,
        "model": "classroom",
        "epochs": 20 if own_digits else 5,
        "batch_size": 32 if own_digits else 64,
        "lr": _LEARNING_RATES[optimizer],
        "optimizer": optimizer,
        "seed": 0,
    }
    if "distributed" not in given:
        for name in _OF_DISTRIBUTED:
            if name in given:
                raise ValueError(f"--{name.replace('_', '-')} needs --distributed")
    return Settings(**{**defaults, **given})


def _begin(settings: Settings, output: Path) -> None:
    """Write the settings down for a later --resume, and put another training's checkpoint aside."""
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = output / "checkpoint.npz"
    if checkpoint.is_file():
        os.replace(checkpoint, output / "checkpoint-before.npz")
    written = asdict(settings)
    if not settings.distributed:
        for name in ("distributed", *_OF_DISTRIBUTED):
            del written[name]
    with atomic_write(output / "settings.json") as file:
        file.write(json.dumps(written, indent=2).encode() + b"\n")


def _resumed(arguments: argparse.Namespace) -> Settings:
    """Settings of the interrupted training; options that contradict them are an error."""
    file: Path = arguments.output / "settings.json"
    if not file.is_file():
        raise ValueError(f"nothing to resume in {arguments.output}: there is no {file}")
    try:
        settings = _checked(Settings(**json.loads(file.read_bytes())))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    for name, value in _given(arguments).items():
        before = getattr(settings, name)
        if value != before:
            raise ValueError(
                f"--{name.replace('_', '-')} is {value}, but the training to resume has {before}"
            )
    return settings


def _checked(settings: Settings) -> Settings:
    """Return settings that could have been given as options."""
    check.choice(settings.model, "model", tuple(sorted(MODELS)))
    check.choice(settings.optimizer, "optimizer", tuple(sorted(_LEARNING_RATES)))
    check.integer(settings.epochs, "epochs", 1)
    check.integer(settings.batch_size, "batch_size", 1)
    check.integer(settings.seed, "seed", 0)
    for name in ("distributed", "fast_reduction", "sync_batch_norm"):
        check.flag(getattr(settings, name), name)
    if settings.shards is not None:
        check.integer(settings.shards, "shards", 1)
    if not check.number(settings.lr, "lr", 0) > 0:
        raise ValueError("lr is 0, expected a number above 0")
    if settings.data is not None:
        check.path(settings.data, "data")
    return settings


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that decide the result, as far as they were given."""
    given = {field.name: getattr(arguments, field.name) for field in fields(Settings)}
    data = given["data"]
    if data is not None and (data not in _FETCHED or Path(data).exists()):
        given["data"] = str(Path(data).resolve())
    return {name: value for name, value in given.items() if value is not None}


def _introduce(settings: Settings, data: Dataset, model: cnnx.Sequential, optimizer: Any) -> None:
    size = " x ".join(map(str, data.input_shape))
    weights = sum(array.size for array in model.params.values())
    print(
        f"{data.name}: {len(data.x_train):,} images to train on, {len(data.x_test):,} to test, "
        f"{size}, {data.classes} classes"
    )
    print(f"{settings.model}, {weights:,} parameters: {model!r}")
    print(
        f"{settings.optimizer}, learning rate {settings.lr:g}, batches of {settings.batch_size}, "
        f"label smoothing {_LABEL_SMOOTHING}, seed {settings.seed}; "
        f"{cnnx.config()['backend']} backend, threads: {cnnx.get_num_threads()}",
        flush=True,
    )
    if settings.distributed:
        print(
            f"ranks: {optimizer.size}, shards of a batch: {optimizer.shards}, "
            f"{optimizer.reduction} reduction",
            flush=True,
        )


def _draw(
    model: cnnx.Sequential,
    history: History,
    data: Dataset,
    predicted: NDArray[np.int64],
    settings: Settings,
    file: Path,
) -> str:
    from cnnx.plotting import confusion_matrix, training_figure

    accuracy = float(np.mean(predicted == data.y_test))
    try:
        training_figure(
            history,
            next((array for array in model.params.values() if array.ndim == 4), None),
            confusion_matrix(data.y_test, predicted, data.classes),
            title=f"{settings.model} on {data.name}: {accuracy:.2%} of the test images right",
            path=file,
        )
    except ImportError as error:
        return f"no picture: {error}"
    return f"drew  {file}"


def _rate(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return number

"""Data sets that are fetched: MNIST and Fashion-MNIST.

Pooch does it: a file is taken over only with the right SHA-256, from a temporary name beside it, so
an interrupted or damaged download leaves nothing, and two processes do not disturb each other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from cnnx.data._dataset import Dataset
from cnnx.data._files import IDX_FILES, assembled, read_part
from cnnx.functional import _arguments as check


@dataclass(frozen=True)
class Source:
    """Where the four gzipped IDX files of a data set lie, and how to know them."""

    name: str
    folder: str
    mirrors: tuple[str, ...]  # the first that answers with the right file
    sha256: tuple[str, ...]  # in the order of IDX_FILES
    class_names: tuple[str, ...]


# The sums stand in several public sources each. MNIST's unpacked contents were compared as well.
MNIST = Source(
    name="MNIST",
    folder="mnist",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    sha256=(
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    class_names=tuple("0123456789"),
)
FASHION_MNIST = Source(
    name="Fashion-MNIST",
    folder="fashion-mnist",
    mirrors=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    sha256=(
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    class_names=(
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
)  # fmt: skip


def mnist(folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Return MNIST: 70,000 handwritten digits, fetched on the first call.

    The four files (11.6 MB) stay in `folder`, and are checked against their SHA-256 sums on every
    call, so later calls need no network.

    Parameters
    ----------
    folder : path, optional
        Where the files lie or shall lie. Default: ``mnist`` in cnnx's cache, on Linux
        ``~/.cache/cnnx``.

    Returns
    -------
    Dataset
        Images (N, 1, 28, 28), 60,000 to train on and 10,000 to test on, and ten classes.

    Raises
    ------
    OSError
        If no mirror gave a file with the right sum, or the files cannot be stored. Each mirror's
        answer is in the message; nothing that is damaged or incomplete is kept.
    ImportError
        If pooch is not installed: ``pip install 'cnnx[data]'``.

    Notes
    -----
    Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", 1998.

    Examples
    --------
    >>> from cnnx.data import mnist
    >>> data = mnist()  # doctest: +SKIP
    >>> data.x_train.shape  # doctest: +SKIP
    (60000, 1, 28, 28)
    """
    return fetched(MNIST, folder)


def fashion_mnist(folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Return Fashion-MNIST: 70,000 pictures of clothes, fetched on the first call.

    The four files (30.9 MB) stay in `folder`, and are checked against their SHA-256 sums on every
    call, so later calls need no network.

    Parameters
    ----------
    folder : path, optional
        Where the files lie or shall lie. Default: ``fashion-mnist`` in cnnx's cache, on Linux
        ``~/.cache/cnnx``.

    Returns
    -------
    Dataset
        Images (N, 1, 28, 28), 60,000 to train on and 10,000 to test on, and ten classes.

    Raises
    ------
    OSError
        If no mirror gave a file with the right sum, or the files cannot be stored. Each mirror's
        answer is in the message; nothing that is damaged or incomplete is kept.
    ImportError
        If pooch is not installed: ``pip install 'cnnx[data]'``.

    Notes
    -----
    H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine
    learning algorithms", https://arxiv.org/abs/1708.07747, licence MIT.

    Examples
    --------
    >>> from cnnx.data import fashion_mnist
    >>> fashion_mnist().class_names[:3]  # doctest: +SKIP
    ('T-shirt/top', 'Trouser', 'Pullover')
    """
    return fetched(FASHION_MNIST, folder)


def fetched(source: Source, folder: str | os.PathLike[str] | None) -> Dataset:
    """Return a data set whose files are in the folder, or fetched into it."""
    if folder is not None:
        folder = check.path(folder, "folder")
    pooch = _pooch()
    place = Path(pooch.os_cache("cnnx") / source.folder if folder is None else folder)
    files = {
        name: _file(pooch, source.mirrors, f"{name}.gz", sha256, place)
        for name, sha256 in zip(IDX_FILES, source.sha256, strict=True)
    }
    data = assembled(place, [read_part(place, name, file) for name, file in files.items()])
    return replace(data, name=source.name, class_names=source.class_names)


def _file(
    pooch: ModuleType, mirrors: tuple[str, ...], name: str, sha256: str, folder: Path
) -> Path:
    answers = []
    for mirror in mirrors:
        try:
            return Path(pooch.retrieve(mirror + name, f"sha256:{sha256}", name, folder))
        except (OSError, ValueError) as error:  # noqa: PERF203  no answer, or a wrong sum
            answers.append(f"{mirror}: {error}")
    raise OSError(f"{name} could not be fetched to {folder}. " + "; ".join(answers))


def _pooch() -> ModuleType:
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            "fetching needs a package that is not installed: pip install 'cnnx[data]'; or get the "
            "files yourself, and read them with cnnx.data.load"
        ) from error
    module: ModuleType = pooch
    return module

"""Data to train on: sets, where they come from, and their way to a net batch by batch.

A :class:`Dataset` has float32 images (N, C, H, W) in 0..1 and int64 labels, in a part to train on
and a part to test on. :func:`digits` needs nothing but the package; :func:`load` reads what people
have on disk, :func:`image_folder` pictures in folders, and :func:`mnist` and :func:`fashion_mnist`
fetch their files once. A damaged file is one clear ``ValueError``, and no file can run code:
pickles are never read.

:class:`Batches` prepares an epoch's batches in the background, with an augmentation made of the
functions here: :func:`random_flip`, :func:`random_crop`, :func:`center_crop`, :func:`normalize`.

Pictures need Pillow, and fetching needs pooch: ``pip install 'cnnx[data]'``. The rest takes NumPy
alone, and nothing is imported before it is called for.
"""

from cnnx._batches import Batches
from cnnx.data._dataset import Dataset, digits
from cnnx.data._fetched import fashion_mnist, mnist
from cnnx.data._files import load, read_idx
from cnnx.data._pictures import image_folder
from cnnx.data._transforms import center_crop, mean_std, normalize, random_crop, random_flip

__all__ = [
    "Dataset",
    "digits",
    "mnist",
    "fashion_mnist",
    "load",
    "read_idx",
    "image_folder",
    "Batches",
    "random_flip",
    "random_crop",
    "center_crop",
    "mean_std",
    "normalize",
]

"""Makes cnnx/data_files/digits.npz from scikit-learn's copy of the UCI digits.

Run once, by hand, where scikit-learn is installed: ``python tools/make_digits.py``. The file is the
same to the last byte on every run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).resolve().parents[1] / "cnnx" / "data_files" / "digits.npz"


def main() -> None:
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    labels = digits.target.astype(np.uint8)
    if not np.array_equal(images, digits.images):
        raise SystemExit("the grey levels are not the integers 0 to 16 any more")
    np.savez_compressed(TARGET, images=images, labels=labels)
    print(f"{TARGET}: {len(labels)} images, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

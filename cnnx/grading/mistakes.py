"""The catalogue of well-known mistakes: what to say, and which slips of the textbook prove it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cnnx.grading.cases import BACKWARD, CONVOLUTIONS, GRADIENT, POOLS, Arrays, Case
from cnnx.grading.comparison import matches
from cnnx.grading.textbook import compute


@dataclass(frozen=True)
class Mistake:
    """A well-known mistake.

    Attributes
    ----------
    name : str
        Short, for scripts.
    subjects : tuple of str
        Where it occurs.
    slips : tuple of str
        The forms that it takes in the textbook's formulas.
    hint : str
        What to tell the student.
    outputs : tuple of str
        The results that it spoils; empty for any.
    """

    name: str
    subjects: tuple[str, ...]
    slips: tuple[str, ...]
    hint: str
    outputs: tuple[str, ...] = ()


_FORWARD = ("conv_forward",)
_BACKWARD = (BACKWARD,)
_MAX, _AVG = ("MaxPool2D",), ("AvgPool2D",)

CATALOGUE: tuple[Mistake, ...] = (
    Mistake(
        "no activation", _FORWARD, ("no activation",),
        "the result is that of the convolution without its activation; apply it before you return.",
    ),
    Mistake(
        "no bias", _FORWARD, ("no bias", "bias once a channel"),
        "the bias is missing, or added once a channel; add b[f] once to each output of filter f.",
    ),
    Mistake(
        "stride ignored", (*_FORWARD, *POOLS), ("stride ignored",),
        "the stride is ignored where the window is cut out; it begins at (i * stride, j * stride).",
    ),
    Mistake(
        "size without + 1", (*_FORWARD, *POOLS), ("size without + 1",),
        "the output is one row and one column short; its size is (H + 2 * pad - KH) // stride + 1.",
        ("out",),
    ),
    Mistake(
        "pad ignored", _FORWARD, ("pad ignored",),
        "the result is that for pad 0; put `pad` zeros around each image first.",
    ),
    Mistake(
        "flipped kernel", CONVOLUTIONS, ("flipped", "flipped in backward"),
        "the kernel is flipped, as in a true convolution; a CNN layer multiplies X[i + ki, j + kj] "
        "by W[ki, kj] as it stands (cross-correlation), and so does its backward.",
    ),
    Mistake(
        "channels mixed up", CONVOLUTIONS,
        ("channels reversed", "first channel only", "last channel only",
         "channels reversed in backward"),
        "the channels are mixed up or not all summed; channel c of W goes with channel c of X, and "
        "an output is the sum over all of them.",
    ),
    Mistake(
        "rows and columns swapped", (*CONVOLUTIONS, *POOLS),
        ("rows and columns swapped", "rows and columns swapped in backward"),
        "rows and columns are swapped where the window is cut out; i counts rows, j columns.",
    ),
    Mistake(
        "activation gradient", _BACKWARD,
        ("activation ignored in backward", "output taken for Z", "Z taken for output",
         "derivative at dout"),
        "the activation's gradient is ignored or taken at the wrong value; dZ is dout times the "
        "derivative at Z, and in terms of the output that is out > 0 (relu), out * (1 - out) "
        "(sigmoid), 1 - out**2 (tanh).",
    ),
    Mistake(
        "bias before the activation", _BACKWARD, ("bias before the activation",),
        "db sums dout itself; the bias stands before the activation, so sum dZ.", ("db",),
    ),
    Mistake(
        "pad not cropped", _BACKWARD,
        ("not cropped", "cropped at the end only", "cropped at the start only",
         "cropped by minus pad"),
        "the pad is not cut off rightly: dX was summed in the padded image, so return "
        "dX[:, :, pad:pad + H, pad:pad + W] (with pad 0, [pad:-pad] would be empty).", ("dX",),
    ),
    Mistake(
        "stride ignored in backward", (*_BACKWARD, *POOLS), ("stride ignored in backward",),
        "the stride is ignored in backward; the gradient of output (i, j) belongs to the window "
        "that begins at (i * stride, j * stride), as in forward.", ("dX", "dW"),
    ),
    Mistake(
        "not summed over the batch", _BACKWARD,
        ("last image only", "first image only", "bias per image"),
        "the sum over the batch is missing: all images share W and b, so dW and db add up the "
        "gradients of every image.", ("dW", "db"),
    ),
    Mistake(
        "mean over the batch", _BACKWARD, ("mean over the batch", "mean over all"),
        "dW and db are means; they are sums over images and pixels (the loss has divided already).",
        ("dW", "db"),
    ),
    Mistake(
        "bias not summed over pixels", _BACKWARD,
        ("bias per pixel", "bias of the last pixel", "bias of the last pixel, over the batch"),
        "db is not summed over the pixels: b[f] was added to every output of filter f, so db[f] is "
        "the sum of dZ[:, f] over images, rows and columns.", ("db",),
    ),
    Mistake(
        "another shape than b", _BACKWARD,
        ("bias as a column", "bias as a row", "bias with all axes"),
        "db has the right numbers in another shape than b; give it b's: db.reshape(b.shape).",
        ("db",),
    ),
    Mistake(
        "assigned instead of accumulated", (*_BACKWARD, *POOLS),
        ("assigned", "assigned, filter by filter", "window assigned"),
        "a gradient is assigned where it must be accumulated; windows overlap and weights are "
        "shared, so write `+=`, not `=`.", ("dX", "dW"),
    ),
    Mistake(
        "divided wrongly", _AVG,
        ("not divided", "divided by the side", "divided by the stride", "divided by the outputs"),
        "it is divided by the wrong number; the mean and its gradient divide by the area of the "
        "window, pool_size * pool_size.",
    ),
    Mistake(
        "maximum starts at 0", _MAX,
        ("maximum starts at 0", "maximum starts at 0, in the corner"),
        "the search for the maximum starts at 0, which is wrong where all inputs are negative; "
        "start at -np.inf or at the first element of the window.",
    ),
    Mistake(
        "ties", _MAX, ("every equal", "shared among equals", "last of equals"),
        "of equal maxima the first one, row by row, gets the whole gradient; here all of them get "
        "some, or the last one does.", ("max_indices", "dX"),
    ),
    Mistake(
        "position in the window", _MAX, ("position in the window",),
        "the maximum's position is counted from the corner of its window; add the window's first "
        "row and column.", ("max_indices", "dX"),
    ),
    Mistake(
        "row and column swapped", _MAX, ("row and column swapped",),
        "row and column of the maximum are swapped; the row comes first.", ("max_indices", "dX"),
    ),
    Mistake(
        "integer dtype", (*CONVOLUTIONS, *POOLS),
        ("truncated", "truncated before activation", "truncated at each step",
         "truncated at each step, filter by filter"),
        "fractions are cut off: the images are integers, and an array made by zeros_like(X), or "
        "with dtype=X.dtype, holds only whole numbers; make it with dtype=np.float64.",
    ),
    Mistake(
        "dout forgotten", (*_BACKWARD, *POOLS, GRADIENT), ("dout forgotten",),
        "the upstream gradient is forgotten; each term is multiplied by the dout of its output.",
    ),
    Mistake(
        "one-sided difference", (GRADIENT,), ("forward difference", "backward difference"),
        "the difference is one-sided, whose error is as large as the step; take "
        "(f(x + h) - f(x - h)) / (2 * h).",
    ),
    Mistake(
        "step not doubled", (GRADIENT,), ("not halved", "halved twice"),
        "the result is wrong by a factor of two; x + h and x - h lie 2 * h apart.",
    ),
    Mistake(
        "sign", (GRADIENT,), ("sign",),
        "the sign is wrong; subtract f(x - h) from f(x + h), not the other way round.",
    ),
    Mistake(
        "own element only", (GRADIENT,), ("own element only",),
        "only one output is looked at; an input may change every output, so sum over all of them.",
    ),
    Mistake(
        "output not copied", (GRADIENT,), ("view",),
        "f returned x itself, whose elements then moved on; keep a copy: f(x).copy().",
    ),
)  # fmt: skip

# Of the wrong results of the grid. A third of it has one filter, where many shapes look alike. But
# half of it has no pad or no stride, where a second mistake in these does not hide the first.
_FAIR_PART = 0.4
BY_NAME = {mistake.name: mistake for mistake in CATALOGUE}


@dataclass(frozen=True)
class Evidence:
    """A call and what came of it: results by name, and which of them are wrong."""

    case: Case
    outputs: Arrays
    wrong: tuple[str, ...]


def find(subject: str, shrunk: Evidence, seen: Sequence[Evidence]) -> list[Mistake]:
    """Return the mistakes that give the very results of the shrunk case, one for each result.

    Several may, on a case that small. Then the one is meant that explains most of its wrong
    results, and of these the one that agrees with most of all that was seen, right and wrong. One
    that explains hardly any of the other failures agrees by chance.
    """
    suspects = []
    for mistake in CATALOGUE:
        for slip in mistake.slips if subject in mistake.subjects else ():
            given = set(_given(subject, slip, shrunk)).intersection(shrunk.wrong)
            explained = given.intersection(mistake.outputs or given)
            if explained and _explains(subject, slip, explained, seen):
                rank = len(explained), _agreement(subject, slip, seen)
                suspects.append((rank, mistake, explained))
    found: list[Mistake] = []
    for output in shrunk.wrong:
        able = [(rank, mistake) for rank, mistake, explained in suspects if output in explained]
        if able:
            _, meant = max(able, key=lambda suspect: suspect[0])  # the first of equals
            found += [meant] if meant not in found else []
    return found


def _explains(subject: str, slip: str, outputs: set[str], seen: Sequence[Evidence]) -> bool:
    """Whether a slip gives a fair part of all wrong results, or there are none to judge it by."""
    wrong = [evidence for evidence in seen if outputs.intersection(evidence.wrong)]
    told = [e for e in wrong if outputs.intersection(e.wrong, _given(subject, slip, e))]
    return len(told) >= _FAIR_PART * len(wrong)


def _agreement(subject: str, slip: str, seen: Sequence[Evidence]) -> int:
    """How many of all results a slip would have given."""
    return sum(len(_given(subject, slip, evidence)) for evidence in seen)


def _given(subject: str, slip: str, seen: Evidence) -> list[str]:
    """Which of the results of a case are those that the slip gives."""
    try:
        given = compute(subject, seen.case, slip)
    except (ValueError, IndexError):  # the slip does not fit the shapes: the student would fail too
        return []
    return [o for o in seen.outputs if o in given and matches(seen.outputs[o], given[o], seen.case)]

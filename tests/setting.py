"""How a call is made, whatever it computes: where it runs, and what its arrays are like.

`Setting.results` makes it, and holds what is true of every call: one thread gives the same bits, no
input is modified, and the results have the dtype of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import guard
import numpy as np
from conftest import ISAS, KERNELS
from hypothesis import strategies as st
from layouts import LAYOUTS

import cnnx


def _broadcast(array: Any) -> Any:
    """Strides of zero: along the first axis all is alike. This layout alone changes the numbers."""
    return np.broadcast_to(array[:1], array.shape)


PLACES: dict[str, Callable[[Any], Any]] = {"plain": np.copy, **LAYOUTS, "broadcast": _broadcast}
if guard.AVAILABLE:
    PLACES |= {"before_a_guard": guard.before_a_guard, "behind_a_guard": guard.behind_a_guard}


class Setting(NamedTuple):
    """How a call is made: where it runs, and what its arrays are like."""

    implementation: str  # "numpy", or an instruction set of the compiled kernels
    algorithm: str  # as `use_algorithm` has it
    winograd: bool
    threads: int
    guarded: bool  # results stand beside an unmapped page
    dtypes: tuple[str, ...]  # of the arrays, in their order, over and over
    places: tuple[str, ...]  # likewise

    @property
    def dtype(self) -> Any:
        """Of the results: float32 beside float64 makes float64."""
        return np.result_type(*self.dtypes)

    @property
    def by_winograd(self) -> bool:
        """Whether a convolution may round as Winograd's algorithm does."""
        may = self.winograd if self.algorithm == "by shape" else self.algorithm == "winograd"
        return self.implementation != "numpy" and self.dtype == np.float32 and may

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Choose all that is the library's."""
        before = cnnx.get_num_threads()
        cnnx.set_num_threads(self.threads)
        try:
            if self.implementation == "numpy" or KERNELS is None:
                with cnnx.use_backend("numpy"):
                    yield
                return
            isa, algorithm = (
                KERNELS.use_isa(self.implementation),
                KERNELS.use_algorithm(self.algorithm),
            )
            winograd = KERNELS.set_winograd(self.winograd)
            try:
                with ExitStack() as stack:
                    stack.enter_context(cnnx.use_backend("compiled"))
                    if self.guarded:
                        stack.enter_context(guard.results_on_guard_pages())
                    yield
            finally:
                KERNELS.use_isa(isa)
                KERNELS.use_algorithm(algorithm)
                KERNELS.set_winograd(winograd)
        finally:
            cnnx.set_num_threads(before)

    def placed(self, *arrays: Any) -> list[Any]:
        """The arrays in their dtypes and layouts."""
        result = []
        for i, array in enumerate(arrays):
            dtype = self.dtypes[i % len(self.dtypes)]
            result.append(PLACES[self.places[i % len(self.places)]](array.astype(dtype)))
        return result

    def results(self, call: Callable[..., Any], *arrays: Any) -> list[Any]:
        """What the call returns, which must be the same bits on one thread."""
        before = [array.tobytes() for array in arrays]
        with self.chosen():
            results = _listed(call(*arrays))
            if self.threads > 1:
                cnnx.set_num_threads(1)
                for one, many in zip(_listed(call(*arrays)), results, strict=True):
                    assert one.tobytes() == many.tobytes(), (
                        "the bits depend on the number of threads"
                    )
        assert [array.tobytes() for array in arrays] == before, "an input was modified"
        dtype = np.result_type(*(array.dtype for array in arrays if array.dtype.kind == "f"))
        for result in results:
            assert result.ndim == 0 or result.dtype in (dtype, np.int64)
        return results


def _listed(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple) else [np.asarray(result)]


settings = st.builds(
    Setting,
    st.sampled_from([*reversed(ISAS), "numpy"]),
    st.sampled_from(["by shape"] * 4 + list(KERNELS.ALGORITHMS if KERNELS else [])),
    st.booleans(),
    st.sampled_from([1, 2, 3, 5]),
    st.booleans() if guard.AVAILABLE else st.just(False),
    st.sampled_from([("f4",), ("f8",), ("f4",), ("f8",), ("f4", "f8"), ("f8", "f4")]),
    st.one_of(
        st.just(("plain",)),
        st.sampled_from([(place,) for place in PLACES]),
        st.tuples(*[st.sampled_from(list(PLACES))] * 4),
    ),
)  # fmt: skip

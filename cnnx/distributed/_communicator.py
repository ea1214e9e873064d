"""What ranks say to each other: four calls, and MPI behind them.

Everything else in this package asks for a :class:`Communicator` and does not know MPI. mpi4py is
imported when the first communicator is made, never before.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]

_HOW_TO_INSTALL = (
    "training over several processes needs mpi4py and an MPI: pip install 'cnnx[mpi]', and where "
    "the system has no MPI, pip install mpich"
)


class Pending(Protocol):
    """Messages under way."""

    def test(self) -> bool:
        """Let them go on, without waiting, and say whether they have arrived."""

    def wait(self) -> None:
        """Return when they have arrived."""


class Communicator(Protocol):
    """What is asked of the way to the other ranks. Arrays are contiguous, of one dimension."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def exchange(self, send: Array, receive: Array, partner: int, tag: int) -> Pending:
        """Send one array to another rank and receive one from it; both stay untouched meanwhile."""

    def allreduce(self, array: Array) -> Pending:
        """Replace an array by its sum over the ranks, added in any order."""

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, on every rank."""

    def abort(self, status: int) -> None:
        """End the processes of all ranks."""


class MPICommunicator:
    """A communicator of mpi4py's, or all processes that mpiexec has started."""

    def __init__(self, comm: Any = None) -> None:
        mpi = _mpi()
        # A context of its own: no message of the program's can be taken for one of ours.
        self._comm = (mpi.COMM_WORLD if comm is None else comm).Dup()
        self.rank: int = self._comm.rank
        self.size: int = self._comm.size

    def exchange(self, send: Array, receive: Array, partner: int, tag: int) -> Pending:
        """Irecv and Isend."""
        return _Requests(
            self._comm.Irecv(receive, partner, tag), self._comm.Isend(send, partner, tag)
        )

    def allreduce(self, array: Array) -> Pending:
        """Iallreduce, in place."""
        return _Requests(self._comm.Iallreduce(_mpi().IN_PLACE, array))

    def gather(self, value: Any) -> list[Any]:
        """Allgather of pickles: for what is said once, not in every step."""
        values: list[Any] = self._comm.allgather(value)
        return values

    def abort(self, status: int) -> None:
        """MPI_Abort."""
        self._comm.Abort(status)


class _Requests:
    def __init__(self, *requests: Any) -> None:
        self._requests = list(requests)

    def test(self) -> bool:
        return bool(_mpi().Request.Testall(self._requests))

    def wait(self) -> None:
        _mpi().Request.Waitall(self._requests)


@cache
def _mpi() -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # no mpi4py; or one that finds no MPI
        raise ImportError(f"{_HOW_TO_INSTALL} ({error})") from None
    return MPI


@cache
def world() -> Communicator:
    """All processes that mpiexec has started; just this one without it."""
    return MPICommunicator()


def communicator_of(given: Any) -> Communicator:
    """Return the communicator that somebody means by None, one of mpi4py's, or one of his own."""
    if given is None:
        return world()
    if hasattr(given, "Iallreduce"):
        return MPICommunicator(given)
    for method in ("exchange", "allreduce", "gather", "abort"):
        if not callable(getattr(given, method, None)):
            raise TypeError(
                f"communicator is {type(given).__name__}, without {method}(), expected one of "
                "mpi4py's, such as MPI.COMM_WORLD"
            )
    communicator: Communicator = given
    return communicator

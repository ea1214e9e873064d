"""Optimizers, which move parameters against their gradients, and schedules of the learning rate.

The formulas are PyTorch's to the letter, so that a recipe's numbers carry over. Parameters are
updated in place: whoever holds the arrays of ``layer.params`` sees them change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import cos, pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnx.functional import _arguments as check
from cnnx.functional import _optim

__all__ = ["SGD", "Adam", "AdamW", "CosineLR", "StepLR"]

Array = NDArray[Any]

_MOST_STEPS = 2**53  # which a float counts exactly


class Optimizer(ABC):
    """What the optimizers share: the checks, the count of steps, and memory for each parameter.

    Parameters
    ----------
    lr : float
        The learning rate. The attribute `lr` may be changed between steps; schedules do.
    weight_decay : float
        How strongly parameters are pulled to 0.

    Attributes
    ----------
    steps : int
        How many steps were made.
    """

    _slots: tuple[str, ...] = ()  # names of the arrays kept for each parameter

    def __init__(self, lr: float, weight_decay: float) -> None:
        self.lr = check.number(lr, "lr", 0)
        self.weight_decay = check.number(weight_decay, "weight_decay", 0)
        self.steps = 0
        self._memory: dict[str, dict[str, Array]] = {}

    def step(self, layer: Any) -> None:
        """Update the parameters in place from the gradients of the last backward.

        Parameters
        ----------
        layer : layer
            Anything with the dicts `params` and `grads`; the same one on each call, for what the
            optimizer remembers belongs to it.

        Raises
        ------
        TypeError
            If there are no such dicts.
        ValueError
            If a gradient is missing or has another shape than its parameter, or if names or shapes
            are not those of the steps before. Nothing was changed then.
        """
        if not (hasattr(layer, "params") and hasattr(layer, "grads")):
            raise TypeError(
                f"layer is {check.described(layer)}, expected an object with params and grads"
            )
        params, grads = layer.params, layer.grads
        self._check(params, grads)
        if not self._memory:
            self._memory = {
                name: {slot: np.zeros_like(param) for slot in self._slots}
                for name, param in params.items()
            }
        self.steps += 1
        for name, param in params.items():
            self._update(param, grads[name], self._memory[name])

    @abstractmethod
    def _update(self, param: Array, grad: Array, memory: dict[str, Array]) -> None:
        """Update one parameter in place; `steps` already counts this step."""

    def _check(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        for name, param in params.items():
            shape = grads[name].shape if name in grads else None
            if shape != param.shape:
                came = "missing" if shape is None else f"of shape {shape}"
                raise ValueError(f"grads[{name!r}] is {came}, expected shape {param.shape}")
        self.check_memory(params)

    def check_memory(self, params: Mapping[str, Array]) -> None:
        """Raise ValueError unless what is remembered, if anything, is of these parameters."""
        if self._memory and self._memory.keys() != params.keys():
            differing = sorted(self._memory.keys() ^ params.keys())
            raise ValueError(
                f"layer has other parameters than in the steps before ({', '.join(differing)}); "
                "an optimizer serves one model"
            )
        for name, memory in self._memory.items():
            for kept in memory.values():
                if kept.shape != params[name].shape:
                    raise ValueError(
                        f"params[{name!r}] has shape {params[name].shape}, and had {kept.shape} in "
                        "the steps before; an optimizer serves one model"
                    )

    def state_dict(self) -> dict[str, Any]:
        """Return the count of steps, the learning rate and copies of what is remembered."""
        memory = {
            name: {slot: array.copy() for slot, array in slots.items()}
            for name, slots in self._memory.items()
        }
        return {"steps": self.steps, "lr": self.lr, "memory": memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the optimizer that returned `state` stood.

        Parameters
        ----------
        state : mapping
            As :meth:`state_dict` returns it, from an optimizer of the same class.

        Raises
        ------
        ValueError, TypeError
            If it comes from another kind of optimizer, or from none. Nothing was changed then.
        """
        _require_keys(state, {"steps", "lr", "memory"}, "an optimizer's")
        if not isinstance(state["memory"], Mapping):
            raise TypeError(
                f"state['memory'] is {check.described(state['memory'])}, expected a mapping"
            )
        for name, slots in state["memory"].items():
            if not isinstance(slots, Mapping) or set(slots) != set(self._slots):
                raise ValueError(
                    f"state remembers {sorted(slots)} of {name!r}, expected {sorted(self._slots)}: "
                    f"it is not the state of a {type(self).__name__} like this"
                )
        lr = check.number(state["lr"], "state['lr']", 0)
        steps = check.integer(state["steps"], "state['steps']", 0, _MOST_STEPS)
        self._memory = {
            name: {
                slot: check.floating(f"state['memory'][{name!r}][{slot!r}]", array).copy()
                for slot, array in slots.items()
            }
            for name, slots in state["memory"].items()
        }
        self.steps, self.lr = steps, lr


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if wanted.

    ::

        g = grad + weight_decay * param
        v = momentum * v + g                    (v = g in the first step)
        param -= lr * v                         (nesterov: lr * (g + momentum * v))

    Parameters
    ----------
    lr : float
        The learning rate.
    momentum : float
        How much of the last direction is kept; 0.9 is usual.
    weight_decay : float
        How strongly parameters are pulled to 0.
    nesterov : bool
        Look ahead along the new direction; needs momentum.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> dense = cnnx.Dense(1, 1, bias=False, dtype="float64")
    >>> dense.params["weight"][...] = 5
    >>> dense.grads["weight"][...] = 2
    >>> cnnx.SGD(lr=0.5).step(dense)
    >>> dense.params["weight"]
    array([[4.]])
    """

    def __init__(
        self, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
    ) -> None:
        super().__init__(lr, weight_decay)
        self.momentum = check.number(momentum, "momentum", 0)
        self.nesterov = check.flag(nesterov, "nesterov")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is True with momentum 0, expected momentum above 0")
        self._slots = ("momentum",) if self.momentum else ()

    def _update(self, param: Array, grad: Array, memory: dict[str, Array]) -> None:
        velocity = memory.get("momentum")  # zeros before the first step, which makes it grad there
        options = (float(self.lr), self.momentum, self.weight_decay, self.nesterov)
        _optim.sgd(param, grad, velocity, *options)


class Adam(Optimizer):
    """Adam: steps of a size that does not depend on the gradient's (Kingma and Ba 2015).

    In step t::

        g = grad + weight_decay * param
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        param -= lr / (1 - beta1**t) * m / (sqrt(v / (1 - beta2**t)) + eps)

    Parameters
    ----------
    lr : float
        The learning rate.
    betas : (float, float)
        How much of the old averages of gradient and squared gradient is kept.
    eps : float
        Added to the root, so that a gradient of 0 does not divide by it.
    weight_decay : float
        Added to the gradient, as in SGD; :class:`AdamW` is usually the better choice.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> dense = cnnx.Dense(1, 1, bias=False, dtype="float64")
    >>> dense.params["weight"][...] = 5
    >>> dense.grads["weight"][...] = 1234
    >>> cnnx.Adam(lr=0.5).step(dense)
    >>> dense.params["weight"]
    array([[4.5]])
    """

    _slots = ("mean", "square")
    _decoupled = False

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr, weight_decay)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"betas is {check.described(betas)}, expected a pair of numbers")
        self.betas = (
            check.number(betas[0], "betas[0]", 0, below=1),
            check.number(betas[1], "betas[1]", 0, below=1),
        )
        self.eps = check.number(eps, "eps", 0)

    def _update(self, param: Array, grad: Array, memory: dict[str, Array]) -> None:
        options = (float(self.lr), self.betas, self.eps, self.weight_decay, self._decoupled)
        _optim.adam(param, grad, memory["mean"], memory["square"], *options, self.steps)


class AdamW(Adam):
    """Adam with weight decay beside the gradient (Loshchilov and Hutter 2019, arXiv:1711.05101).

    ::

        param *= 1 - lr * weight_decay
        then Adam's step, without weight decay

    Parameters
    ----------
    lr, betas, eps : float, (float, float), float
        As in :class:`Adam`.
    weight_decay : float
        The share by which parameters shrink in each step is ``lr * weight_decay``.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> dense = cnnx.Dense(1, 1, bias=False, dtype="float64")
    >>> dense.params["weight"][...] = 5
    >>> cnnx.AdamW(lr=0.5, weight_decay=0.2).step(dense)  # the gradient is 0
    >>> dense.params["weight"]
    array([[4.5]])
    """

    _decoupled = True

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)


class Schedule(ABC):
    """What the schedules share: lr is a closed form of the count of steps, so nothing drifts.

    The optimizer's present lr is the base, and the first rate is set at once; each :meth:`step`
    sets the next.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        check.methods(optimizer, "optimizer", {"step": ("layer",)}, "cnnx.Adam()")
        self.optimizer = optimizer
        self.base_lr = optimizer.lr
        self.steps = 0
        optimizer.lr = self._lr(0)

    @abstractmethod
    def _lr(self, steps: int) -> float:
        """The learning rate after so many steps."""

    def step(self) -> None:
        """Count one step, of whatever the schedule is in, and set the optimizer's lr."""
        self.steps += 1
        self.optimizer.lr = self._lr(self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the count of steps and the base learning rate."""
        return {"steps": self.steps, "base_lr": self.base_lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the schedule that returned `state` stood, and set the optimizer's lr.

        Raises
        ------
        ValueError, TypeError
            If `state` is not a schedule's. Nothing was changed then.
        """
        _require_keys(state, {"steps", "base_lr"}, "a schedule's")
        steps = check.integer(state["steps"], "state['steps']", 0, _MOST_STEPS)
        self.steps, self.base_lr = steps, check.number(state["base_lr"], "state['base_lr']", 0)
        self.optimizer.lr = self._lr(self.steps)


class StepLR(Schedule):
    """Multiply the learning rate by gamma every so many steps: lr = base * gamma**(t // step_size).

    Parameters
    ----------
    optimizer : optimizer
        Its present lr is the base.
    step_size : int
        Steps between two multiplications.
    gamma : float
        The factor.

    Examples
    --------
    >>> import cnnx
    >>> optimizer = cnnx.SGD(lr=1.0)
    >>> schedule = cnnx.StepLR(optimizer, step_size=2, gamma=0.5)
    >>> rates = []
    >>> for _ in range(5):
    ...     rates.append(optimizer.lr)
    ...     schedule.step()
    >>> rates
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = check.integer(step_size, "step_size", 1)
        self.gamma = check.number(gamma, "gamma", 0)
        super().__init__(optimizer)

    def _lr(self, steps: int) -> float:
        return float(self.base_lr * self.gamma ** (steps // self.step_size))


class CosineLR(Schedule):
    """Half a cosine from the base to min_lr, after a linear warm-up (arXiv:1608.03983).

    ::

        lr = base * (t + 1) / warmup                                             for t < warmup
        lr = min_lr + (base - min_lr) * (1 + cos(pi * p)) / 2                    after that,
             p = (t - warmup) / (total_steps - warmup), and min_lr from p = 1 on

    Parameters
    ----------
    optimizer : optimizer
        Its present lr is the base.
    total_steps : int
        All steps, the warm-up's included.
    min_lr : float
        The rate at the end.
    warmup : int
        Steps of warm-up; fewer than `total_steps`.

    Examples
    --------
    >>> import cnnx
    >>> optimizer = cnnx.SGD(lr=1.0)
    >>> schedule = cnnx.CosineLR(optimizer, total_steps=4, warmup=2)
    >>> rates = []
    >>> for _ in range(5):
    ...     rates.append(round(optimizer.lr, 6))
    ...     schedule.step()
    >>> rates
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, min_lr: float = 0.0, warmup: int = 0
    ) -> None:
        self.total_steps = check.integer(total_steps, "total_steps", 1)
        self.warmup = check.integer(warmup, "warmup", 0)
        if warmup >= total_steps:
            raise ValueError(
                f"warmup is {warmup} and total_steps {total_steps}, expected warmup < total_steps"
            )
        self.min_lr = check.number(min_lr, "min_lr", 0)
        super().__init__(optimizer)

    def _lr(self, steps: int) -> float:
        if steps < self.warmup:
            return self.base_lr * (steps + 1) / self.warmup
        part = min((steps - self.warmup) / (self.total_steps - self.warmup), 1.0)
        return self.min_lr + (self.base_lr - self.min_lr) * (1 + cos(pi * part)) / 2


def _require_keys(state: Any, keys: set[str], whose: str) -> None:
    if not isinstance(state, Mapping):
        raise TypeError(f"state is {check.described(state)}, expected {whose} state_dict()")
    if missing := keys - set(state):
        raise ValueError(f"state has no {', '.join(sorted(missing))}: not {whose} state")

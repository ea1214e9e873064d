"""Optimizers and schedules against PyTorch's published formulas, in plain Python numbers.

The oracles follow the pseudo-code in the documentation of ``torch.optim.SGD``, ``Adam`` and
``AdamW``, one scalar at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import cnnx


class Model:
    """Two parameters and their gradients: all that an optimizer asks for."""

    def __init__(self, dtype: Any = np.float64) -> None:
        self.params = {
            "0.weight": np.array([[1.5, -2.0], [0.5, 3.0]], dtype),
            "0.bias": np.array([0.0, -1.0], dtype),
        }
        self.grads = {name: np.zeros_like(param) for name, param in self.params.items()}

    def fill(self, step: int) -> None:
        """The gradients of one step, whole numbers, the same in every test; some are zero."""
        rng = np.random.default_rng(step)
        for name, param in self.params.items():
            self.grads[name] = rng.integers(-3, 4, param.shape).astype(param.dtype)

    def scalars(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Where every number stands."""
        for name, param in self.params.items():
            for index in np.ndindex(param.shape):
                yield name, index


Rule = Callable[[float, float, float, int, dict[str, float]], float]


def sgd(momentum: float = 0, weight_decay: float = 0, nesterov: bool = False) -> Rule:
    def step(p: float, g: float, lr: float, t: int, memory: dict[str, float]) -> float:
        if weight_decay != 0:
            g = g + weight_decay * p
        if momentum != 0:
            b = momentum * memory["b"] + g if t > 1 else g
            memory["b"] = b
            g = g + momentum * b if nesterov else b
        return p - lr * g

    return step


def adam(betas: tuple[float, float], eps: float, weight_decay: float, decoupled: bool) -> Rule:
    def step(p: float, g: float, lr: float, t: int, memory: dict[str, float]) -> float:
        if decoupled:
            p = p - lr * weight_decay * p
        elif weight_decay != 0:
            g = g + weight_decay * p
        m = memory["m"] = betas[0] * memory.get("m", 0.0) + (1 - betas[0]) * g
        v = memory["v"] = betas[1] * memory.get("v", 0.0) + (1 - betas[1]) * g * g
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        return p - lr * m_hat / (math.sqrt(v_hat) + eps)

    return step


RULES: dict[str, tuple[Callable[[], Any], Rule]] = {
    "SGD": (lambda: cnnx.SGD(0.1), sgd()),
    "SGD-decay": (lambda: cnnx.SGD(0.1, weight_decay=0.05), sgd(0, 0.05)),
    "SGD-momentum": (lambda: cnnx.SGD(0.1, 0.9), sgd(0.9)),
    "SGD-all": (lambda: cnnx.SGD(0.1, 0.8, 0.05), sgd(0.8, 0.05)),
    "SGD-nesterov": (lambda: cnnx.SGD(0.1, 0.9, 0.05, True), sgd(0.9, 0.05, True)),
    "Adam": (lambda: cnnx.Adam(0.1), adam((0.9, 0.999), 1e-8, 0, False)),
    "Adam-options": (
        lambda: cnnx.Adam(0.1, (0.7, 0.9), 1e-2, 0.05),
        adam((0.7, 0.9), 1e-2, 0.05, False),
    ),
    "AdamW": (lambda: cnnx.AdamW(0.1), adam((0.9, 0.999), 1e-8, 0.01, True)),
    "AdamW-options": (
        lambda: cnnx.AdamW(0.1, (0.7, 0.9), 1e-2, 0.3),
        adam((0.7, 0.9), 1e-2, 0.3, True),
    ),
}


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> tuple[Any, Rule]:
    """A fresh optimizer, and what it should do to one number."""
    make, step = RULES[request.param]
    return make(), step


def expected_after(model: Model, step: Rule, rates: list[float]) -> dict[str, Any]:
    """What the parameters should be after so many steps at these rates."""
    expected = {name: param.astype(np.float64) for name, param in model.params.items()}
    for name, index in model.scalars():
        memory: dict[str, float] = {}
        for t, lr in enumerate(rates, start=1):
            model.fill(t)
            p, g = float(expected[name][index]), float(model.grads[name][index])
            expected[name][index] = step(p, g, lr, t, memory)
    return expected


def run(model: Model, optimizer: Any, rates: list[float], first: int = 1) -> None:
    for t, lr in enumerate(rates, start=first):
        model.fill(t)
        optimizer.lr = lr
        optimizer.step(model)


RATES = [0.1, 0.1, 0.05, 0.2, 0.01, 0.3]


def test_steps_are_pytorch_s(rule: tuple[Any, Rule], implementation: str, dtype: Any) -> None:
    optimizer, step = rule
    expected = expected_after(Model(dtype), step, RATES)
    model = Model(dtype)
    run(model, optimizer, RATES)
    for name, param in model.params.items():
        assert param.dtype == dtype
        # Six steps of about ten roundings each, on numbers below 4.
        assert_allclose(param, expected[name], rtol=0, atol=60 * 4 * float(np.finfo(dtype).eps))


def test_every_element_and_every_layout(rule: tuple[Any, Rule], backend: str, rng: Any) -> None:
    # More than one task of 8192 numbers, with a rest; then arrays with gaps, and of another dtype.
    optimizer, step = rule
    model = Model()
    start, grad = rng.standard_normal((2, 3, 5555))
    spread = np.zeros((3, 5555, 2))
    model.params = {"plain": start.copy(), "spread": spread[..., 0], "half": np.float32([1.5])}
    model.params["spread"][...] = start
    model.grads = {"plain": grad, "spread": grad.T.copy().T, "half": np.array([0.5])}
    optimizer.step(model)
    for index in ((0, 0), (1, 2636), (1, 2637), (2, 5554)):
        known = step(float(start[index]), float(grad[index]), 0.1, 1, {})
        for name in ("plain", "spread"):
            assert model.params[name][index] == pytest.approx(known, rel=1e-13, abs=1e-13)
    assert_allclose(model.params["spread"], model.params["plain"], rtol=1e-13, atol=1e-13)
    assert not spread[..., 1].any()
    assert model.params["half"].dtype == np.float32
    assert float(model.params["half"][0]) == pytest.approx(step(1.5, 0.5, 0.1, 1, {}), rel=1e-6)


def test_updates_are_in_place(rule: tuple[Any, Rule]) -> None:
    optimizer, _ = rule
    model = Model()
    arrays = dict(model.params)
    run(model, optimizer, RATES)
    fresh = Model()
    for name, param in model.params.items():
        assert param is arrays[name]
        assert not np.array_equal(param, fresh.params[name])


def test_gradients_are_not_modified(rule: tuple[Any, Rule]) -> None:
    optimizer, _ = rule
    model = Model()
    for t in (1, 2):
        model.fill(t)
        kept = {name: grad.copy() for name, grad in model.grads.items()}
        for grad in model.grads.values():
            grad.flags.writeable = False
        optimizer.step(model)
        for name, grad in model.grads.items():
            assert_array_equal(grad, kept[name])


def test_resuming_gives_the_same_bits(rule: tuple[Any, Rule], request: Any) -> None:
    optimizer, _ = rule
    whole, half = Model(), Model()
    run(whole, optimizer, RATES)
    make = RULES[request.node.callspec.params["rule"]][0]
    first = make()
    run(half, first, RATES[:3])
    state = first.state_dict()
    assert (state["steps"], state["lr"]) == (3, RATES[2])
    second = make()
    second.load_state_dict(state)
    assert (second.steps, second.lr) == (3, RATES[2])
    first.step(half_copy := Model())  # the state is a copy: going on with the first leaves it alone
    assert half_copy.params.keys() == half.params.keys()
    run(half, second, RATES[3:], first=4)
    for name, param in half.params.items():
        assert param.tobytes() == whole.params[name].tobytes()


def test_a_layer_s_own_arrays_change(rule: tuple[Any, Rule]) -> None:
    optimizer, _ = rule
    model = cnnx.Sequential(cnnx.Residual(cnnx.Dense(2, 2, rng=0)), cnnx.Dense(2, 1, rng=1))
    weight, start = model[0].body.params["weight"], model[0].body.params["weight"].copy()
    model.backward(np.ones_like(model(np.ones((3, 2), np.float32))))
    optimizer.step(model)
    assert model[0].body.params["weight"] is weight
    assert not np.array_equal(weight, start)


def test_numpy_numbers_as_rate_keep_float32() -> None:
    # In NumPy 2 a float64 scalar would make float64 of everything it meets.
    plain, scalar = Model(np.float32), Model(np.float32)
    run(plain, cnnx.Adam(0.1), [0.1, 0.2])
    run(scalar, cnnx.Adam(0.1), [np.float64(0.1), np.float64(0.2)])  # type: ignore[list-item]
    for name, param in plain.params.items():
        assert param.tobytes() == scalar.params[name].tobytes()


# ---------------------------------------------------------------- wrong calls


def unchanged_after(optimizer: Any, model: Model, message: str) -> None:
    before = {name: param.copy() for name, param in model.params.items()}
    steps = optimizer.steps
    with pytest.raises(ValueError, match=message):
        optimizer.step(model)
    assert optimizer.steps == steps
    for name, param in model.params.items():
        assert_array_equal(param, before[name])


def test_gradients_must_fit() -> None:
    optimizer, model = cnnx.SGD(0.1), Model()
    model.fill(1)
    bias = model.grads.pop("0.bias")
    unchanged_after(optimizer, model, r"grads\['0\.bias'\] is missing, expected shape \(2,\)")
    model.grads["0.bias"] = bias[:1]
    unchanged_after(optimizer, model, r"is of shape \(1,\), expected shape \(2,\)")


@pytest.mark.parametrize("make", [lambda: cnnx.Adam(0.1), lambda: cnnx.SGD(0.1, 0.9)])
def test_an_optimizer_serves_one_model(make: Callable[[], Any]) -> None:
    optimizer, model = make(), Model()
    model.fill(1)
    optimizer.step(model)
    other = Model()
    other.params["1.weight"] = other.grads["1.weight"] = np.ones(1)
    unchanged_after(optimizer, other, r"other parameters .*\(1\.weight\); an optimizer serves one")
    other = Model()
    other.params["0.bias"] = other.grads["0.bias"] = np.ones(3)
    unchanged_after(optimizer, other, r"params\['0\.bias'\] has shape \(3,\), and had \(2,\)")
    optimizer.step(model)


def test_plain_sgd_serves_one_model_too() -> None:
    optimizer, other = cnnx.SGD(0.1), Model()
    optimizer.step(Model())
    del other.params["0.bias"]
    unchanged_after(optimizer, other, r"other parameters .*\(0\.bias\)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cnnx.SGD(-0.1), "lr is -0.1, expected a finite number from 0"),
        (lambda: cnnx.SGD(math.nan), "lr is nan"),
        (lambda: cnnx.Adam(math.inf), "lr is inf"),
        (lambda: cnnx.SGD(0.1, momentum=-1), "momentum is -1"),
        (lambda: cnnx.SGD(0.1, weight_decay=-1), "weight_decay is -1"),
        (lambda: cnnx.SGD(0.1, nesterov=True), "nesterov is True with momentum 0"),
        (lambda: cnnx.Adam(betas=(0.9, 1.0)), r"betas\[1\] is 1\.0, .* below 1"),
        (lambda: cnnx.AdamW(eps=-1e-8), "eps is -1e-08"),
        (lambda: cnnx.StepLR(cnnx.SGD(1), 0), "step_size is 0, expected an integer from 1"),
        (lambda: cnnx.StepLR(cnnx.SGD(1), 1, -1), "gamma is -1"),
        (lambda: cnnx.CosineLR(cnnx.SGD(1), 5, warmup=5), "warmup is 5 and total_steps 5"),
        (lambda: cnnx.CosineLR(cnnx.SGD(1), 5, min_lr=-1), "min_lr is -1"),
    ],
)
def test_wrong_settings(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_foreign_states_change_nothing() -> None:
    adam, model = cnnx.Adam(0.1), Model()
    adam.step(model)
    sgd = cnnx.SGD(0.5, 0.9)
    with pytest.raises(ValueError, match=r"\['mean', 'square'\].*expected \['momentum'\]"):
        sgd.load_state_dict(adam.state_dict())
    with pytest.raises(ValueError, match=r"state has no lr, memory: not an optimizer's state"):
        sgd.load_state_dict({"steps": 3})
    assert (sgd.steps, sgd.lr) == (0, 0.5)
    schedule = cnnx.StepLR(sgd, 1)
    with pytest.raises(ValueError, match=r"state has no base_lr: not a schedule's state"):
        schedule.load_state_dict({"steps": 3})
    assert (schedule.steps, sgd.lr) == (0, 0.5)


# ---------------------------------------------------------------- schedules


def rates_of(optimizer: Any, schedule: Any, count: int) -> list[float]:
    rates = []
    for _ in range(count):
        rates.append(optimizer.lr)
        schedule.step()
    return rates


def test_step_schedule_by_hand() -> None:
    optimizer = cnnx.SGD(8.0)
    rates = rates_of(optimizer, cnnx.StepLR(optimizer, 3, 0.5), 10)
    assert rates == [8, 8, 8, 4, 4, 4, 2, 2, 2, 1]


def test_cosine_schedule_by_hand() -> None:
    optimizer = cnnx.SGD(3.0)
    rates = rates_of(optimizer, cnnx.CosineLR(optimizer, 6, min_lr=1.0), 9)
    # 2 + cos(pi * t / 6), and then 1 for ever.
    half, root = 0.5, math.sqrt(3) / 2
    expected = [3, 2 + root, 2 + half, 2, 2 - half, 2 - root, 1, 1, 1]
    assert rates == pytest.approx(expected, rel=1e-15)  # one rounding of each cosine


def test_warm_up_by_hand() -> None:
    optimizer = cnnx.SGD(4.0)
    schedule = cnnx.CosineLR(optimizer, 8, min_lr=2.0, warmup=4)
    assert optimizer.lr == 1  # from the first step on
    half = math.sqrt(0.5)
    expected = [1, 2, 3, 4, 4, 3 + half, 3, 3 - half, 2, 2]
    assert rates_of(optimizer, schedule, 10) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    "make",
    [lambda o: cnnx.StepLR(o, 2, 0.3), lambda o: cnnx.CosineLR(o, 7, 0.1, warmup=2)],
    ids=["StepLR", "CosineLR"],
)
def test_schedules_resume_to_the_same_bits(make: Callable[[Any], Any]) -> None:
    optimizer = cnnx.Adam(0.7)
    schedule = make(optimizer)
    whole = rates_of(optimizer, schedule, 9)
    first = cnnx.Adam(0.7)
    schedule = make(first)
    half = rates_of(first, schedule, 4)
    second = cnnx.Adam(0.2)  # whatever it was made with
    resumed = make(second)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert half + rates_of(second, resumed, 5) == whole

"""How long a step takes, learnt from the steps that ran.

Owns the durations of recent steps and a linear model of them; knows numbers only, neither requests
nor what the machine is. Invariant: every predicted duration is positive and grows with the work,
and memory is bounded however long the process runs.

    t(step) = a + b * rows + c * prefill tokens + d * context positions + e * runs of the tower
              + f * codes drawn

Durations are kept by *kind of step* (steps that do about the same, see `_kind_of`): of every kind
the last `WINDOW` steps, of which the median counts. So a rare disturbance moves nothing, a lasting
change is believed after half a window, and a thousand steps of one kind do not drown what ten of
another said.

Shape suffixes: K kinds of step, N steps of one, F features.
"""

from collections import deque
from dataclasses import dataclass
from operator import mul

import numpy as np
import numpy.typing as npt

WINDOW = 9
"""Steps remembered of a kind."""

MAX_KINDS = 384
"""Kinds remembered; the one that was seen longest ago makes room."""

HALF_LIFE_STEPS = 4096
"""After so many steps without another of its kind, what a kind said counts half."""

REFIT_STEPS = 8
"""Steps between two fits, once as many have run."""

PRIOR_F = (1.0, 0.05, 0.05, 1e-4, 20.0, 0.05)
"""Costs relative to an empty step, for what was not seen yet: between what a GPU (rows and tokens
nearly free) and a CPU with small weights (a row 0.15, a token 0.2) were found to need."""

PRIOR_WEIGHT = 0.01
"""Weight of the prior against one kind of step that was seen."""


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What a step computes: `rows` decode one token, `prefill_tokens` do not; both attend to
    `context` positions in all. `tower_runs` images are encoded, and `codes` drawn, by a head of
    their own."""

    rows: int = 0
    prefill_tokens: int = 0
    context: int = 0
    tower_runs: int = 0
    codes: int = 0

    def __add__(self, other: "StepLoad") -> "StepLoad":
        return StepLoad(
            self.rows + other.rows,
            self.prefill_tokens + other.prefill_tokens,
            self.context + other.context,
            self.tower_runs + other.tower_runs,
            self.codes + other.codes,
        )

    def features_F(self) -> tuple[float, ...]:
        """What the costs are multiplied by."""
        return (
            1.0,
            self.rows,
            self.prefill_tokens,
            self.context,
            self.tower_runs,
            self.codes,
        )

    @property
    def is_empty(self) -> bool:
        return not (self.rows or self.prefill_tokens)


@dataclass(frozen=True, slots=True)
class _Typical:
    """Of the last steps of a kind: the mean of the features, the median of the durations."""

    features_F: tuple[float, ...]
    duration_s: float


class _Kind:
    """The last steps of one kind; `last_seen` is the number of the newest."""

    def __init__(self) -> None:
        self._features_NF: deque[tuple[float, ...]] = deque(maxlen=WINDOW)
        self._durations_s: deque[float] = deque(maxlen=WINDOW)
        self.last_seen = 0
        self.typical = _Typical((), 0.0)
        """Replaced as a whole, so that other threads may read it."""

    def note(self, load: StepLoad, duration_s: float, *, number: int) -> None:
        """Step `number` was of this kind."""
        self._features_NF.append(load.features_F())
        self._durations_s.append(duration_s)
        self.last_seen = number
        num = len(self._durations_s)
        means = (sum(values) / num for values in zip(*self._features_NF, strict=True))
        self.typical = _Typical(tuple(means), sorted(self._durations_s)[num // 2])


class StepModel:
    """Call `observe` after every step, from one thread, and ask for durations in seconds from
    any."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[int, ...], _Kind] = {}
        self._num_observed = 0
        self._costs_F: tuple[float, ...] = PRIOR_F
        self.is_measured = False

    def observe(self, load: StepLoad, duration_s: float) -> None:
        """A step took `duration_s`."""
        if load.is_empty or not duration_s > 0.0:
            return
        self._num_observed += 1
        key = _kind_of(load)
        kind = self._kinds.get(key) or _Kind()
        kind.note(load, duration_s, number=self._num_observed)
        if key not in self._kinds and len(self._kinds) >= MAX_KINDS:
            del self._kinds[min(self._kinds, key=lambda k: self._kinds[k].last_seen)]
        self._kinds[key] = kind
        if self._num_observed <= REFIT_STEPS or self._num_observed % REFIT_STEPS == 0:
            self._fit()

    def step_s(self, load: StepLoad) -> float:
        """Duration of a step. Before the first one ran, in units of an empty step."""
        return _product(self._costs_F, load.features_F())

    def usual_s(self, load: StepLoad) -> float:
        """As `step_s`, but by what steps of its kind took, where some were seen: what is promised
        relative to them must not depend on how well a line fits all kinds at once."""
        kind = self._kinds.get(_kind_of(load))
        if kind is None:
            return self.step_s(load)
        typical, costs_F = kind.typical, self._costs_F
        fitted_s = _product(costs_F, typical.features_F)
        return typical.duration_s * _product(costs_F, load.features_F()) / fitted_s

    def tokens_within(self, load: StepLoad, limit_s: float) -> int:
        """How many prefill tokens a step of `load` can take up without exceeding `limit_s`; 0 if
        it does already."""
        left_s = limit_s - self.step_s(load)
        if left_s <= 0.0:
            return 0
        # Every token attends at least to itself.
        per_token_s = self._costs_F[2] + self._costs_F[3]
        return int(min(left_s / per_token_s, 2.0**31)) if per_token_s > 0.0 else 2**31

    def _fit(self) -> None:
        """Least squares of the relative error over the kinds, no cost below zero.

        The prior, in the unit that the medians give it, holds what the steps do not determine.
        """
        kinds = list(self._kinds.values())
        x_KF = np.array([kind.typical.features_F for kind in kinds])
        t_K = np.array([kind.typical.duration_s for kind in kinds])
        age_K = self._num_observed - np.array([kind.last_seen for kind in kinds])
        weight_K = np.sqrt(0.5 ** (age_K / HALF_LIFE_STEPS))
        prior_F = np.array(PRIOR_F)
        prior_F *= np.median(t_K / (x_KF @ prior_F))
        # In units of the prior: `cost_F = prior_F * y_F`, and the prior says that y is 1.
        a = np.vstack(
            [x_KF * prior_F * (weight_K / t_K)[:, None], PRIOR_WEIGHT * np.eye(len(PRIOR_F))]
        )
        b = np.concatenate([weight_K, np.full(len(PRIOR_F), PRIOR_WEIGHT)])
        self._costs_F = tuple((prior_F * _non_negative(a, b)).tolist())
        self.is_measured = True


def _product(costs_F: tuple[float, ...], features_F: tuple[float, ...]) -> float:
    return sum(map(mul, costs_F, features_F), start=0.0)


def _kind_of(load: StepLoad) -> tuple[int, ...]:
    """Rows and tokens to within a quarter of their size, up to 8 exactly: whether a row more is
    dear shows between two and three rows. The context to within a factor of two."""
    return (
        _grade(load.rows),
        _grade(load.prefill_tokens),
        load.context.bit_length(),
        load.tower_runs,
        _grade(load.codes),
    )


def _grade(value: int) -> int:
    """Four grades for every doubling from 4 on."""
    num_dropped = max(0, value.bit_length() - 3)
    return (value >> num_dropped) + 8 * num_dropped


def _non_negative(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Least squares with no coefficient below zero: the most negative one is dropped until none
    is. The first, the cost of an empty step, keeps a small part of its prior instead."""
    floor = np.zeros(a.shape[1])
    floor[0] = 1e-3
    free = np.ones(a.shape[1], dtype=bool)
    while free.any():
        y = floor.copy()
        y[free] = np.linalg.lstsq(a[:, free], b - a[:, ~free] @ floor[~free], rcond=None)[0]
        lowest = int(np.argmin(y - floor))
        if y[lowest] >= floor[lowest]:
            return y
        free[lowest] = False
    return floor

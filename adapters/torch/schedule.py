"""The weights of Hessian penalty and tables, and the learning rate, during a training."""

import math

#: Without a floor the weight falls by so many powers of ten before it is switched off, as in the
#: authors' schedule: to a tenth every 30 epochs, for 250 epochs.
_DECADES_TO_ZERO = 250 / 30


class HessianSchedule:
    """The authors' schedule for a training: a strong penalty first, then less and less.

    A strong Hessian penalty keeps the functions almost affine at the start, so the network first
    fits what is smooth and only then what is not.

    In the first part the weight of the penalty decays exponentially from ``start`` to ``floor``,
    and the learning rate is constant. In the second part the weight stays at ``floor``, and the
    learning rate falls to zero along half a cosine. With ``floor=0`` the weight decays by a factor
    of ``10^(250 / 30)`` in the first part, as in the authors' schedule, and is then 0.

    Parameters
    ----------
    total_steps : int
        Steps of the whole training.
    start, floor : float
        Weights of the penalty, ``0 <= floor <= start``.
    decay_fraction : float
        Share of the steps in the first part, in [0, 1].

    Raises
    ------
    ValueError
        If an argument is out of range.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start: float = 1.0,
        floor: float = 0.0,
        decay_fraction: float = 0.5,
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"HessianSchedule: total_steps must be at least 1, got {total_steps}")
        if not 0 <= floor <= start:
            raise ValueError(
                "HessianSchedule: floor and start must be 0 <= floor <= start, "
                f"got floor={floor}, start={start}"
            )
        if not 0 <= decay_fraction <= 1:
            raise ValueError(
                f"HessianSchedule: decay_fraction must be in [0, 1], got {decay_fraction}"
            )
        self.total_steps = total_steps
        self.start = start
        self.floor = floor
        self.decay_fraction = decay_fraction

    def __call__(self, step: int) -> tuple[float, float]:
        """Return ``(penalty_weight, learning_rate_factor)`` of a step, counted from 0."""
        decay_steps = self.decay_fraction * self.total_steps
        if step < decay_steps:
            fall = self.floor / self.start if self.floor else 10**-_DECADES_TO_ZERO
            return self.start * fall ** (step / decay_steps), 1.0
        progress = (step - decay_steps) / max(self.total_steps - decay_steps, 1)
        return self.floor, 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class PhasedSchedule:
    """The paper's schedule for layers with a branch and with ``tables_weight``, in four phases.

    First the tables weigh nothing: the branches alone learn, an ordinary MLP. Then the weight of
    the tables rises linearly to ``tables_weight``, while a strong penalty keeps their functions
    almost affine. Then the weight of the penalty decays exponentially from ``start`` to ``floor``.
    The main part is what is left; at its end the learning rate, until then constant, decays
    exponentially by the factor ``lr_fall``.

    The paper gives the phases and 0.3 for the tables; lengths and weights of the penalty are not in
    it.

    Parameters
    ----------
    total_steps : int
        Steps of the whole training.
    start, floor : float
        Weights of the penalty, ``0 < floor <= start``; 1e-20 stands for none at the end.
    tables_weight : float
        The weight of the tables from the end of the second phase on.
    shares : (float, float, float)
        Shares of the steps in the first three phases.
    decay : float
        Share of the steps at the end in which the learning rate decays.
    lr_fall : float
        The last learning rate, relative to the first.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start: float = 1.0,
        floor: float = 1e-20,
        tables_weight: float = 0.3,
        shares: tuple[float, float, float] = (0.02, 0.03, 0.1),
        decay: float = 0.4,
        lr_fall: float = 0.01,
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"PhasedSchedule: total_steps must be at least 1, got {total_steps}")
        if not 0 < floor <= start:
            raise ValueError(
                "PhasedSchedule: floor and start must be 0 < floor <= start, "
                f"got floor={floor}, start={start}"
            )
        if not (min(*shares, decay) >= 0 and sum(shares) + decay <= 1):
            raise ValueError(
                "PhasedSchedule: shares and decay must not be negative, and at most 1 together, "
                f"got shares={shares}, decay={decay}"
            )
        if not 0 < lr_fall <= 1:
            raise ValueError(f"PhasedSchedule: lr_fall must be in (0, 1], got {lr_fall}")
        self.total_steps = total_steps
        self.start = start
        self.floor = floor
        self.tables_weight = tables_weight
        self.shares = shares
        self.decay = decay
        self.lr_fall = lr_fall

    def __call__(self, step: int) -> tuple[float, float, float]:
        """Return ``(penalty_weight, learning_rate_factor, tables_weight)`` of a step, from 0."""
        done = step / self.total_steps
        branches, rise, fall = self.shares
        risen = _progress(done - branches, rise)
        fallen = _progress(done - branches - rise, fall)
        decayed = _progress(done - (1 - self.decay), self.decay)
        return (
            self.start * (self.floor / self.start) ** fallen,
            self.lr_fall**decayed,
            self.tables_weight * risen,
        )


def _progress(since: float, length: float) -> float:
    """Return how much of a phase is done, in [0, 1]; all of an empty one once it begins."""
    if since < 0:
        return 0.0
    return min(since / length, 1.0) if length else 1.0

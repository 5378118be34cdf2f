"""The weight of the Hessian penalty and the learning rate during a training."""

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

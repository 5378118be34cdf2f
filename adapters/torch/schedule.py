"""The weight of the Hessian penalty and the learning rate in the course of a fit."""

import math

#: Decades by which the penalty weight falls before it is switched off where there is no floor; the
#: authors' fitting schedule: 250 epochs of a tenth every 30.
_DECADES_TO_ZERO = 250 / 30


class HessianSchedule:
    """The authors' fitting schedule: a strong penalty first, relaxed step by step.

    In the first part the weight decays exponentially from ``start`` to ``floor`` at a constant
    learning rate; then it stays at ``floor`` while the learning rate follows a cosine to zero. For
    ``floor=0`` the weight decays as in the authors' schedule, by a tenth every 30 of 250 epochs,
    before it is switched off.

    Parameters
    ----------
    total_steps : int
        Steps of the whole fit.
    start, floor : float
        Penalty weights, ``0 <= floor <= start``.
    decay_fraction : float
        Share of the steps in the first part, in [0, 1].
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
        """Return ``(penalty_weight, learning_rate_factor)`` of a step counted from 0."""
        decay_steps = self.decay_fraction * self.total_steps
        if step < decay_steps:
            fall = self.floor / self.start if self.floor else 10**-_DECADES_TO_ZERO
            return self.start * fall ** (step / decay_steps), 1.0
        progress = (step - decay_steps) / max(self.total_steps - decay_steps, 1)
        return self.floor, 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

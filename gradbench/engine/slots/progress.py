"""How far a pair's sweep is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """How far a pair's sweep is: trials done, running in slots, and in all; trial-steps computed, and left to compute
    at most (retired trials leave some undone); seconds since this process took it up."""

    done: int
    running: int
    trials: int
    trial_steps: int
    steps_left: int
    total_steps: int
    seconds: float

"""How long work will take, measured from its first steps, for logs in which no progress bar moves."""

import logging
import time

logger = logging.getLogger(__name__)

STEPS, SECONDS = 3, 10.0  # measured before anything is said; what takes no longer than that needs no estimate


class Estimate:
    """Counts steps, and says once how long the rest will take; not by the first one, in which much happens once."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self.steps, self.first, self.begun, self.said = 0, 0, 0.0, False

    def count(self, amount: int = 1) -> None:
        """A step is done, by which so much of the total is."""
        self.steps += 1
        self.done += amount
        now = time.monotonic()
        if self.steps == 1:
            self.first, self.begun = self.done, now
        seconds = now - self.begun
        if self.said or self.steps <= STEPS or seconds < SECONDS:
            return
        self.said, rest = True, self.total - self.done
        if (left := rest * seconds / (self.done - self.first)) > SECONDS:
            units = f"{self.unit}es" if self.unit.endswith("s") else f"{self.unit}s"
            logger.info("%s: about %s left for %d %s", self.title, duration(left), rest, units)


def duration(seconds: float) -> str:
    """A length of time for people: "40 s", "12 min", "3 h 20 min", "2 days 4 h"."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"

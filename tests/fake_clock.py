"""Time for tests of what waits and tries again."""

from llmrec_plugin.systems.remote.transport import Clock


class FakeClock:
    """Time that passes only where somebody sleeps."""

    def __init__(self):
        self.time, self.sleeps = 1000.0, []

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.time += seconds

    def clock(self):
        return Clock(now=lambda: self.time, date=lambda: self.time, sleep=self.sleep, chance=lambda: 0.0)

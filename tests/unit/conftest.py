"""Property tests: no time limit for examples, since machines are shared; the same examples in CI each time."""

from hypothesis import HealthCheck, settings

SLOW = (HealthCheck.too_slow,)  # by the clock
settings.register_profile("unit", deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
settings.load_profile("unit")

"""Property tests: no deadline for an example, since machines are shared; the same examples in CI each time."""

from hypothesis import settings

settings.register_profile("unit", deadline=None, derandomize=True, database=None)
settings.load_profile("unit")

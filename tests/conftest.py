"""For every suite: one thread a process, before anybody imports torch. More would only fight over the same cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

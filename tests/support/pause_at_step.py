"""A run that waits for the test which disturbs it: however fast the machine is, it is not over before.

pause = PauseAtStep(folder / "pause", step=2)
... start the run with `pause.environment` besides its own ...
... its ranks stop after step 2, with a heartbeat that says so; a request to stop is obeyed ...
pause.release()
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

HOOK = Path(__file__).with_name("pause_hook")


@dataclass(frozen=True)
class PauseAtStep:
    """From construction to `release`."""

    file: Path
    step: int

    def __post_init__(self) -> None:
        self.file.write_text(str(self.step))

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(HOOK), os.environ.get("PYTHONPATH")]))
        return {"PYTHONPATH": path, "FINETUNE_TEST_PAUSE": str(self.file)}

    def advance(self, step: int) -> None:
        """The ranks go on, and stop after this later step."""
        self.file.write_text(str(step))

    def release(self) -> None:
        self.file.unlink()

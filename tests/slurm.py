"""A machine with a stand-in for Slurm's `srun` on its path, and what a test does to its jobs."""

import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import stand_in_srun


@dataclass(frozen=True)
class Slurm:
    """The folder that rules the stand-in, and the folder with the command."""

    folder: Path

    @property
    def path(self) -> str:
        """Return the PATH on which `srun` is found."""
        return f"{self.folder / 'bin'}:{os.environ['PATH']}"

    @property
    def starts(self) -> int:
        """Return how many jobs were asked for."""
        file = self.folder / "starts"
        return len(file.read_text()) if file.exists() else 0

    @property
    def job(self) -> int:
        """Return the process id of the last job; 0 where none has started."""
        file = self.folder / "job"
        return int(file.read_text() or 0) if file.exists() else 0

    def runs(self) -> bool:
        """Return whether the last job still runs."""
        with contextlib.suppress(FileNotFoundError):
            return self.job != 0 and Path(f"/proc/{self.job}/stat").read_text().split()[2] != "Z"
        return False

    def hold(self, on: bool) -> None:
        """Let jobs wait in the queue, or start those that do."""
        if on:
            (self.folder / "hold").touch()
        else:
            (self.folder / "hold").unlink()

    def cancel(self) -> None:
        """End the job, as `scancel` does."""
        os.kill(self.job, signal.SIGTERM)


def make_slurm(folder: Path) -> Slurm:
    """Return a Slurm whose `srun` stands in `folder`."""
    (folder / "bin").mkdir(parents=True)
    command = folder / "bin" / "srun"
    command.write_text(f'#!/bin/sh\nSRUN_FOLDER="{folder}" exec "{sys.executable}" "{stand_in_srun.__file__}" "$@"\n')
    command.chmod(0o755)
    return Slurm(folder)

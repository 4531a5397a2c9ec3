"""A running worker, and how it ends: a child of the supervisor, or behind a command that has started it elsewhere."""

import signal
import subprocess
import time
from dataclasses import dataclass

from consilium.client.process.channels import Channel
from consilium.common.host.parents import exit_code

REMOTE_PATIENCE_SECONDS = 15.0
"""How long a command such as `srun` may take to end once its worker has, or once it was asked to."""


@dataclass(eq=False)
class Running:
    """A running worker, or the command that starts it, and what passes to it and back."""

    process: "subprocess.Popen[bytes]"
    channel: Channel
    behind: str = ""
    """What the command is called; empty for a child of this process."""
    ready: bool = False
    """Whether it has said that it can take orders: the first byte that it sends."""
    since: float = 0.0
    """When it said so; a job may have been in a queue for hours before that."""
    counted: bool = False
    """Whether its end has been looked at for whether it came early."""

    async def see_ready(self) -> bool:
        """Wait until it says so; return whether it did, and has not ended."""
        if not self.ready and await self.channel.reader.read(1):
            self.ready, self.since = True, time.monotonic()
        return self.ready

    def died_within(self, seconds: float) -> bool:
        """Return whether it has ended, now, before it was ready or so soon after that."""
        return not self.ready or time.monotonic() - self.since < seconds

    def end(self) -> None:
        """Have it end now; a command is asked to, so that it ends what it has started on another machine."""
        if self.behind:
            self.channel.close()
            self.process.terminate()
        else:
            self.process.kill()

    def leave(self) -> None:
        """Have it end in its own time."""
        if self.process.poll() is None:
            self.process.terminate()
        if self.behind:
            self.channel.close()

    async def exit_code(self) -> int:
        """Wait until it has ended, and kill it if it does not."""
        if self.behind:
            return await exit_code(self.process, patience_seconds=REMOTE_PATIENCE_SECONDS)
        return await exit_code(self.process)

    def cause(self, code: int) -> str:
        """Return why it has ended."""
        if not self.behind:
            return _cause(code)
        return f"'{self.behind}' ended ({_cause(code)}): its job was cancelled, or has failed or reached a limit"


def _cause(code: int) -> str:
    if code >= 0:
        return f"it left with exit code {code}"
    killed = " (often the kernel's, when memory runs out)" if code == -signal.SIGKILL else ""
    return f"it was killed by {signal.Signals(-code).name}{killed}"

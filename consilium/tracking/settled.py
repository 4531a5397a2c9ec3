"""Which rounds of a run's log are final: a round that a crash undid is run again, and counts once."""

from consilium.common.events.run import CheckpointSaved, RoundFinished, RoundUndone, RunEvent, RunFinished, RunResumed


class Settled:
    """Takes a run's events in their order and returns each round when nothing can take it back any more.

    A round is final when its checkpoint is on the disk, as a resumed run goes on after its checkpoint; at the latest,
    when the run has finished. One that is undone all the same is returned again when it has been run again.

    Args:
        written: the last round that is written already.
    """

    def __init__(self, written: int = 0) -> None:
        self._written = written
        self._open: RoundFinished | None = None

    def take(self, event: RunEvent) -> RoundFinished | None:
        """Take in one event; return the round that it makes final, if it does and was not returned before."""
        match event:
            case RoundFinished():
                self._open = event
                return None
            case RoundUndone():
                self._written, self._open = min(self._written, event.round - 1), None
                return None
            case CheckpointSaved() | RunResumed():
                last = event.round
            case RunFinished():
                last = 0 if self._open is None else self._open.round
            case _:
                return None
        settled, self._open = self._open, None
        if settled is None or not self._written < settled.round <= last:
            return None
        self._written = settled.round
        return settled

"""How far a run has come."""

from dataclasses import dataclass

from consilium.common.results import RoundRecord, Stopped
from consilium.common.stopping import Point, stopped_by
from consilium.server.strategies import ServerState
from consilium.server.study.context import Study
from consilium.server.study.handshake import Agreement


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Args:
        weights: digest of the global weights.
        points: what the study is stopped by, in the rounds in which it was measured.
        refused: sites that came late and differ from the others; they are not asked again.
        lost: devices of groups that sent nothing of use in the round that is tried again without them.
        lost_since: when the first of its attempts began to fail (`time.monotonic`); None where none has.
    """

    study: Study
    agreement: Agreement
    state: ServerState
    weights: str
    rounds: tuple[RoundRecord, ...] = ()
    points: tuple[Point, ...] = ()
    refused: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    lost_since: float | None = None

    @property
    def stopped(self) -> Stopped | None:
        """Why the study ends before its last round; None where it does not, or not yet."""
        config = self.study.config
        return None if self.state.round >= config.rounds else stopped_by(config.stopping, self.points)

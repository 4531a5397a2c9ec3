"""A warning where a site went on from another state than the one that the server counts on."""

from consilium.common.events.run import RunWarning
from consilium.common.protocol.replies import FinishReply, RoundReply
from consilium.server.study.context import Study


def warn_of_state(study: Study, reply: RoundReply | FinishReply) -> None:
    """Write into the run's log that what a site kept was damaged or gone, if its reply says so."""
    if reply.state_of is None:
        return
    instead = f"went on from that after round {reply.state_of}" if reply.state_of else "began anew, as its settings say"
    study.folder.log(
        RunWarning(
            message=f"site '{reply.site}': what it kept after its last accepted update was damaged or gone in round "
            f"{reply.round}; it {instead}"
        )
    )

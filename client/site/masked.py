"""A round's answer on its way out, where the study sums securely: its payload masked, and nothing else changed."""

from consilium.client.privacy.secure.sums import Masking, SecureSums
from consilium.client.site.received import Received
from consilium.common.codecs import Identity
from consilium.common.protocol.plans import CONTROL, RoundPlan
from consilium.common.protocol.replies import RoundReply
from consilium.common.weights.arrays import digest, under, with_prefix


def digest_of(received: Received) -> str:
    """Return the digest of all that the server sent for a round: sites that were sent other weights have another."""
    candidates = {f"{name}/{key}": array for name, of in received.candidates.items() for key, array in of.items()}
    return digest({**received.weights, **with_prefix(received.control, CONTROL), **candidates})


def masked(
    sums: SecureSums, plan: RoundPlan, reply: RoundReply, clear: bytes, *, received: str, buffers: frozenset[str]
) -> bytes:
    """Return the payload of a reply, masked.

    Args:
        clear: its payload as the site would send it by itself.
        received: digest of what it trained from.
        buffers: shared arrays that gradients do not move.

    Raises:
        ConsiliumError: a sum that this site does not add to.
    """
    arrays = Identity().decode(clear)
    control = under(arrays, CONTROL)
    delta = {name: array for name, array in arrays.items() if not name.startswith(CONTROL)}
    return sums.mask(plan, Masking(delta, control, reply.num_examples, reply.metrics, received, buffers))

"""The head of a site's audit log, as it travels in every reply to a signed order."""

from pydantic import Field

from consilium.common.host.chained import Head
from consilium.common.study.names import Sha256
from consilium.common.study.record import Record


class AuditHead(Record):
    """How many lines a site's audit log has, the SHA-256 of the last one, and the site's signature of both.

    The line is that of the order which the reply answers.
    """

    count: int = Field(ge=1, le=2**53)
    sha256: Sha256
    signature: str = Field(pattern=r"^[A-Za-z0-9+/=]{1,400}$")

    @property
    def head(self) -> Head:
        """The head without its signature."""
        return Head(self.count, self.sha256)

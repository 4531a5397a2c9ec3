"""Several sites in one process: each attends over gRPC and TLS, and torch is imported once for all of them."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from consilium.client.app import answer_order
from consilium.client.process.channels import Parcel
from consilium.client.process.shared_memory import Box
from consilium.client.wire.connection import Connection
from consilium.client.wire.probe import place_of
from consilium.common.host.logs import start_log
from consilium.common.study.load import load_site


@dataclass
class SiteInThisProcess:
    """Answers a site's orders with the site's own code, without a process of its own."""

    settings: Path
    pool: ThreadPoolExecutor
    inbox: Box = field(default_factory=Box)
    outbox: Box = field(default_factory=Box)

    def rest(self) -> None:
        """Keep everything."""

    async def answer(self, order: Parcel, *, seconds: float) -> Parcel:
        """Answer one order; payloads of these studies are small."""
        loop = asyncio.get_running_loop()
        text, content = await loop.run_in_executor(
            self.pool, answer_order, self.settings, order.content, order.payload or None
        )
        return Parcel(text.encode(), content or b"")


async def attend_all(settings: list[Path]) -> None:
    """Attend until this process is ended; one site at a time computes."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        sites = [Connection(place_of(load_site(path), path), SiteInThisProcess(path, pool)) for path in settings]
        await asyncio.gather(*(site.run() for site in sites))


if __name__ == "__main__":
    start_log()
    asyncio.run(attend_all([Path(path) for path in sys.argv[1:]]))

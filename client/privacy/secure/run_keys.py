"""A site's keys in a run: its own, made for the run, and those of the other sites, believed by their signatures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from consilium.client.privacy.secure.memory import Memory, read_memory, write_memory
from consilium.common.errors import ConfigError, ProtocolError
from consilium.common.host.keys import fingerprint
from consilium.common.privacy.secure.context import sum_digest
from consilium.common.privacy.secure.keys import check_signature, exchanged, make_run_key, public_of, signed
from consilium.common.privacy.secure.party import Party
from consilium.common.protocol.plans import PeersPlan, SignedKey
from consilium.common.study.study import StudyConfig

Keys = Mapping[str, ec.EllipticCurvePublicKey]


@dataclass(frozen=True, eq=False)
class RunKeys:
    """The keys of one run at one site.

    Args:
        folder: of the run, where it keeps its memory.
        own_key: reads the site's own private key.
        checked: reads the keys of the study's sites that people have checked.
    """

    site: str
    study: StudyConfig
    run: str
    folder: Path
    own_key: Callable[[], ec.EllipticCurvePrivateKey]
    checked: Callable[[], Keys]

    def signed_key(self) -> SignedKey:
        """Return this site's key of the run, signed; it is made when it is first asked for.

        Raises:
            ConfigError: this site has no keys of the other sites, or not its own private one.
            StateError: the key cannot be kept.
        """
        self._check_own()
        memory = read_memory(self.folder, site=self.site)
        if memory is None:
            memory = Memory(site=self.site, key=make_run_key())
            write_memory(self.folder, memory)
        public = public_of(memory.key)
        digest = sum_digest(self.study)
        return SignedKey(
            key=public, signature=signed(self.own_key(), public, study=digest, run=self.run, site=self.site)
        )

    def _check_own(self) -> None:
        """Refuse keys of other sites among which this site's own is missing or another one: they are not for it.

        Raises:
            ConfigError: what is wrong.
        """
        keys, own = self.checked(), self.own_key().public_key()
        if self.site not in keys or fingerprint(keys[self.site]) != fingerprint(own):
            raise ConfigError(
                f"site '{self.site}': the checked keys of this study's sites do not hold this site's own key: accept a "
                "bundle that was made after all sites of the study were approved"
            )

    def take_peers(self, plan: PeersPlan) -> None:
        """Check the signature of every key, and keep them; a site's key stays the same for as long as the run lasts.

        Raises:
            ProtocolError: a key that no site of the study has signed, one that has changed, or not this site's own.
        """
        memory, keys, digest = self.memory(), self.checked(), sum_digest(self.study)
        for name, each in plan.keys.items():
            if name not in keys:
                raise ProtocolError(
                    f"site '{self.site}': the server names site '{name}', whose key nobody here has checked: it is not "
                    "in the bundle that was accepted"
                )
            check_signature(keys[name], each.signature, each.key, study=digest, run=self.run, site=name)
        public = {name: each.key for name, each in plan.keys.items()}
        if public.get(self.site) != public_of(memory.key):
            raise ProtocolError(f"site '{self.site}': its own key is not among those that the server passes on")
        for name in memory.peers:
            if public.get(name, memory.peers[name]) != memory.peers[name]:
                raise ProtocolError(f"site '{self.site}': site '{name}' has another key than before; start a new run")
        write_memory(self.folder, memory.model_copy(update={"peers": {**memory.peers, **public}}))

    def memory(self) -> Memory:
        """Return what is remembered of the run.

        Raises:
            ProtocolError: nothing, as this site was not asked for its key.
            StateError: it cannot be read.
        """
        memory = read_memory(self.folder, site=self.site)
        if memory is None:
            raise ProtocolError(
                f"site '{self.site}': it was not asked for its key of run '{self.run}', which comes first"
            )
        return memory

    def party(self, memory: Memory, cohort: Sequence[str]) -> Party:
        """Return this site with the secrets that it has with the others of a cohort."""
        digest = sum_digest(self.study)
        pairs = {
            name: exchanged(memory.key, memory.peers[name], study=digest, run=self.run, own=self.site, peer=name)
            for name in cohort
            if name != self.site
        }
        return Party(self.site, HKDFExpand(SHA256(), 32, b"own").derive(bytes.fromhex(memory.key)), pairs)

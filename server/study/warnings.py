"""Warnings on the sites of a study, as sentences, made before training begins; none ends the run."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from consilium.common.errors import listed
from consilium.common.labels.shift import label_shift
from consilium.common.protocol.patients import LEAST_PATIENTS
from consilium.common.protocol.replies import HandshakeReply
from consilium.common.study.scale import distances
from consilium.common.study.study import StudyConfig
from consilium.server.study.scale import AgreedScale
from consilium.server.study.sentences import MOST_NAMED

Replies = Mapping[str, HandshakeReply]
"""Each site's reply to the handshake."""
DWARFS, DWARFS_THE_OTHER = 100, 1000
"""How many times the others' median (of two sites, the other's) a site's examples must be for a warning."""
SHARES_DIFFER = 0.2
"""Difference of a class's shares at two sites from which on a scale of each site's own is worth a warning."""
FAR_OFF = 20.0
"""How many times the usual distance a site's values of a column must lie away for a warning."""


def at_the_start(study: StudyConfig, replies: Replies, agreed: AgreedScale | None) -> tuple[str, ...]:
    """Return the sentences on the sites that a run begins with."""
    return (
        *_centred_apart(study, replies, agreed),
        *_far_off(study, replies).values(),
        *_classes_at_one_site(replies),
        *_label_shift(study, replies),
        *_unusable_rows(replies),
        *_test_splits_read(replies),
        *_few_test_examples(replies),
        *_equal_rows(study, replies),
        *_dwarfing(replies),
    )


def about_newcomers(
    study: StudyConfig, replies: Replies, *, before: Collection[str], known: Collection[str]
) -> tuple[str, ...]:
    """Return the sentences that are new with sites that came late.

    Args:
        replies: of all sites by now.
        before: the sites that were there already.
        known: the sentences of the run so far.
    """
    larger = [sentence for sentence in _dwarfing(replies) if sentence not in known]
    farther = [sentence for site, sentence in _far_off(study, replies).items() if site not in before]
    return (*larger, *farther)


def _centred_apart(study: StudyConfig, replies: Replies, agreed: AgreedScale | None) -> Iterator[str]:
    """Yield a sentence if every site scales its inputs by its own rows, and one on what that does to this study."""
    if agreed is not None and agreed.why_not is not None:
        yield (f"there is no scale for all sites, so each scales its inputs by its own training rows: {agreed.why_not}")
    if study.task.scale != "site" and (agreed is None or agreed.scale is not None):
        return
    shares = _class_shares(study, replies)
    if not shares:
        return
    name, of = min(sorted(shares.items()), key=lambda item: min(item[1].values()) - max(item[1].values()))
    low, high = min(of, key=of.__getitem__), max(of, key=of.__getitem__)
    if of[high] - of[low] > SHARES_DIFFER:  # one sentence, on the widest difference
        yield (
            f"'{name}' is {of[low]:.0%} of the examples at site '{low}' and {of[high]:.0%} at site '{high}': with "
            "task.scale = 'site' every site's inputs are centred on its own patients, which takes out what tells "
            "sick from healthy; use task.scale = 'federation'"
        )


def _class_shares(study: StudyConfig, replies: Replies) -> dict[str, dict[str, float]]:
    """Return each class's part of the examples, by site, where sites share their counts."""
    shares: dict[str, dict[str, float]] = {}
    for site, reply in sorted(replies.items()):
        counts = reply.card.class_counts or {}
        for name in study.task.classes if sum(counts.values()) else ():
            shares.setdefault(name, {})[site] = counts.get(name, 0) / sum(counts.values())
    return shares


def _label_shift(study: StudyConfig, replies: Replies) -> list[str]:
    """Return sentences on labels that are more frequent at some sites, or not labelled there, by the shared counts."""
    cards = {site: reply.card for site, reply in replies.items()}
    counts = {site: card.label_counts for site, card in cards.items() if card.label_counts is not None}
    noise = {site: card.label_noise for site, card in cards.items() if card.label_noise is not None}
    return label_shift(study.task.label_names, counts, noise)


def _classes_at_one_site(replies: Replies) -> Iterator[str]:
    holders: dict[str, list[str]] = {}
    for site, reply in sorted(replies.items()):
        for name in reply.card.classes:
            holders.setdefault(name, []).append(site)
    for name, sites in sorted(holders.items()):
        if len(sites) == 1 and len(replies) > 1:
            yield (
                f"class '{name}' occurs only at site '{sites[0]}'; no other site can learn to recognise it from its "
                "own data"
            )


def _first_few(sentences: Sequence[str], what: str) -> Iterator[str]:
    """Yield the sentences of the first few sites, and one that counts the other sites that `what`."""
    yield from sentences[:MOST_NAMED]
    if len(sentences) > MOST_NAMED:
        yield f"... and {len(sentences) - MOST_NAMED} more sites {what}"


def _unusable_rows(replies: Replies) -> Iterator[str]:
    skipped = {site: reply.card.num_skipped for site, reply in sorted(replies.items()) if reply.card.num_skipped}
    sentences = [f"site '{site}' skipped {number} unusable rows or files" for site, number in skipped.items()]
    yield from _first_few(sentences, "skipped unusable rows or files")


def _test_splits_read(replies: Replies) -> Iterator[str]:
    for site, reply in sorted(replies.items()):
        readings, allowed = reply.card.test_readings, reply.card.test_readings_allowed
        if readings >= allowed:
            yield (
                f"site '{site}' has read its test split for this study {readings} times of {allowed} (test_readings in "
                "its site.toml): in the end it answers only if the final weights are those of an earlier run"
            )


def _few_test_examples(replies: Replies) -> Iterator[str]:
    """Yield a sentence on the sites that have too few test examples for any verdict: before training, not after."""
    few = sorted(site for site, reply in replies.items() if reply.card.num_test < LEAST_PATIENTS)
    if few:
        yield (
            f"{listed(few, MOST_NAMED, 'sites')}: fewer than {LEAST_PATIENTS} test examples, so no report will say "
            "whether joining helps there; a larger split.test or more examples would change that"
        )


def _equal_rows(study: StudyConfig, replies: Replies) -> Iterator[str]:
    """Yield a sentence for each site some of whose rows are equal."""
    apart = "split.copies = 'ignore' lets them lie in training and test alike, and scores are too good by that"
    advice = "ask the site why they are there twice" if study.split.copies == "together" else apart
    copies, alike = [], []
    for site, reply in sorted(replies.items()):
        card, who = reply.card, f"site '{site}': {{}} of {reply.card.num_examples} examples are"
        if card.num_copies:
            copies.append(f"{who.format(card.num_copies)} exact copies of others; {advice}")
        if card.num_alike and card.num_groups is None:
            alike.append(
                f"{who.format(card.num_alike)} equal to another one, perhaps by chance, and count as different "
                "patients; split.group can name the column that says whose a row is"
            )
    yield from _first_few(copies, "have exact copies")
    yield from _first_few(alike, "have examples that are equal, perhaps by chance")


def _dwarfing(replies: Replies) -> Iterator[str]:
    """Yield a sentence for each site whose training examples are so many that hardly any other site counts.

    The server cannot check the number; the coordinator may know how large the hospital is.
    """
    sizes = {site: reply.card.num_train for site, reply in sorted(replies.items())}
    ordered = sorted(sizes.values())
    for site, size in sizes.items():
        usual = _median_without(ordered, size)
        if size > (DWARFS if len(ordered) > 2 else DWARFS_THE_OTHER) * max(usual, 1):
            yield (
                f"site '{site}' announces {size} training examples, the median of the others is {usual}: where sites "
                "count by size, hardly any other counts; ask the site whether it is true, or weigh otherwise"
            )


def _median_without(ordered: Sequence[int], size: int) -> int:
    """Return the low median of sorted numbers without one `size` of them; `size` itself if it is the only one."""
    middle = (len(ordered) - 2) // 2
    if middle < 0:
        return size
    return ordered[middle] if size > ordered[middle] else ordered[middle + 1]


def _far_off(study: StudyConfig, replies: Replies) -> dict[str, str]:
    """Return a sentence for each site whose values are so far away that a common scale makes all others nearly equal.

    The server cannot see the values; the site's staff may know its units and outliers.
    """
    moments = {site: reply.card.moments for site, reply in sorted(replies.items()) if reply.card.moments is not None}
    columns: dict[str, list[tuple[float, str]]] = {}
    for place, name in enumerate(study.task.scaled_columns if moments else ()):
        sums = {site: (of.counts[place], of.sums[place], of.squares[place]) for site, of in moments.items()}
        known = {site: column for site, column in sums.items() if column[0]}
        for site, times in zip(known, distances(list(known.values())), strict=True):
            if times > FAR_OFF:
                columns.setdefault(site, []).append((times, name))
    return {site: _too_far(site, of) for site, of in columns.items()}


def _too_far(site: str, columns: Sequence[tuple[float, str]]) -> str:
    times, name = max(columns)
    more = f" (and {len(columns) - 1} more)" if len(columns) > 1 else ""
    return (
        f"site '{site}': its values of '{name}'{more} lie {times:.3g} times as far from what is usual as other sites': "
        "by one scale for all, the others' examples would hardly differ from each other; ask the site for its units "
        "and outliers, or choose another task.scale"
    )

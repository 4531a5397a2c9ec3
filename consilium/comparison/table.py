"""Makes the rows of the table: baselines, methods, and what validation chose."""

from collections import Counter
from collections.abc import Mapping, Sequence

from consilium.common.study.privacy import ExamplePrivacy
from consilium.comparison.cells import Cell
from consilium.comparison.choices import Candidate, Choice, Choices, OwnChoice, refit_label
from consilium.comparison.comparison import Comparison
from consilium.comparison.rows import (
    ALONE_CHOSEN,
    ALONE_OWN,
    ALONE_OWN_REFITTED,
    ALONE_REFITTED,
    CHOSEN,
    CONSTANTS,
    FEDAVG,
    LOCAL,
    NAMES,
    OWN,
    OWN_REFITTED,
    POOLED,
    REFITTED,
    SAME_BUDGET,
    TUNED,
    USUAL_TOOLS,
    Place,
    Row,
    shares_text,
)
from consilium.comparison.usual import USUAL


def make_rows(
    comparison: Comparison,
    labels: Sequence[str],
    choices: Choices,
    *,
    notes: Mapping[str, str] | None = None,
    privacies: Mapping[str, ExamplePrivacy] | None = None,
) -> list[Row]:
    """Return the baselines, every method, and what validation chose among those that join and those that do not.

    Args:
        notes: per label what a reader must know of it.
        privacies: per label of a private study what it promises.
    """
    base, notes, privacies = comparison.cells("fedavg"), notes or {}, privacies or {}
    rows = [
        comparison.row(CONSTANTS[comparison.task.label_kind], "majority", base, baseline=True),
        comparison.row(LOCAL, "local", base, baseline=True),
        comparison.row(
            USUAL_TOOLS, USUAL, comparison.cells(USUAL_TOOLS, "usual"), baseline=True, note=_tools(comparison)
        ),
        comparison.row(POOLED, "pooled", comparison.cells(POOLED, "pooled"), baseline=True),
        comparison.row(FEDAVG, "personal", base, baseline=True),
        comparison.row(TUNED, "personal", comparison.cells("fine_tune"), baseline=True),
    ]
    rows += [
        comparison.row(
            label,
            "personal",
            comparison.cells(label),
            note=notes.get(label, ""),
            epsilon=_epsilon(comparison, label, privacies.get(label)),
        )
        for label in labels
        if label not in NAMES
    ]
    if choices.same_budget is not None:
        rows.append(
            comparison.row(
                SAME_BUDGET, choices.same_budget.model, comparison.cells(choices.same_budget.label), baseline=True
            )
        )
    both = choices.num_joined + choices.num_alone
    for refitted in (False, True) if choices.refitted else (False,):
        names = (OWN_REFITTED, ALONE_OWN_REFITTED, REFITTED, ALONE_REFITTED)
        own, alone_own, chosen, alone = names if refitted else (OWN, ALONE_OWN, CHOSEN, ALONE_CHOSEN)
        rows += [
            _own_row(comparison, own, choices.own, refitted=refitted, among=both),
            _own_row(comparison, alone_own, choices.own_alone, refitted=refitted, among=choices.num_alone),
            _choice_row(comparison, chosen, choices.joined, refitted=refitted, among=choices.num_joined),
            _choice_row(comparison, alone, choices.alone, refitted=refitted, among=choices.num_alone),
        ]
    return [row for row in rows if row.places]


def _epsilon(comparison: Comparison, label: str, privacy: ExamplePrivacy | None) -> float | None:
    """Return the budget of a private study; where it gives the noise, the most that any site spent in any cell."""
    if privacy is None or privacy.epsilon is not None:
        return None if privacy is None else privacy.epsilon
    cells = [cell for cells in comparison.cells(label).values() for cell in cells]
    spent = [comparison.facts(cell, site).privacy for cell in cells for site in comparison.sites]
    return max((one.epsilon for one in spent if one is not None), default=None)


def _tools(comparison: Comparison) -> str:
    """Return how often each of the usual tools was chosen."""
    cells = [cell for cells in comparison.cells(USUAL_TOOLS, "usual").values() for cell in cells]
    tools = Counter(str(comparison.facts(cell, site).tool) for cell in cells for site in comparison.sites)
    return shares_text({name: count / tools.total() for name, count in tools.most_common()})


def _choice_row(comparison: Comparison, name: str, choice: Choice, *, refitted: bool, among: int) -> Row:
    seeds = {split: len(cells) for split, cells in comparison.cells("fedavg").items()}
    own = {
        (split, seed, site): one
        for split, one in choice.items()
        for seed in range(seeds.get(split, 0))
        for site in comparison.sites
    }
    return _own_row(comparison, name, own, refitted=refitted, among=among)


def _own_row(comparison: Comparison, name: str, choice: OwnChoice, *, refitted: bool, among: int) -> Row:
    cells: dict[Candidate, dict[int, list[Cell]]] = {}
    places: dict[int, list[dict[str, Place]]] = {}
    failed = set()
    for (split, seed, site), one in choice.items():
        if one not in cells:
            cells[one] = comparison.cells(refit_label(one.label) if refitted else one.label, one.kind)
        if seed >= len(of_split := cells[one].get(split, [])):
            failed.add(split)
            continue
        seeds = places.setdefault(split, [])
        seeds.extend({} for _ in range(seed + 1 - len(seeds)))
        seeds[seed][site] = Place(of_split[seed], one.model, one.name(comparison.facts(of_split[seed], site)))
    whole = {split: seeds for split, seeds in sorted(places.items()) if split not in failed}
    return Row(name, whole, among=among)

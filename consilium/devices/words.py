"""What a simulation found, as rows of tables: the same in a terminal and on the page."""

from consilium.devices.result import DeviceResult, Measured, in_time

MODEL_TITLES = ("model", "users", "rows", "{score}", "worst 5 %", "25 %", "median", "75 %", "best 5 %", "loss")
GROUP_TITLES = ("group", "model", "users", "rows", "{score}", "worst 5 %", "median")
PROFILE_TITLES = ("devices", "drawn", "in the mean", "away", "gave up", "too late", "part in the mean")
_NAMES = {"constant": "constant answer", "global": "global", "personal": "personal"}


def titles(of: tuple[str, ...], result: DeviceResult) -> tuple[str, ...]:
    """Return the titles of a table, with the name of the score."""
    return tuple(title.format(score=result.study.task.score) for title in of)


def model_rows(result: DeviceResult) -> list[tuple[str, ...]]:
    """Return a row for each model: means over all rows, and quantiles over users."""
    told = {**({} if result.constant is None else {"constant": result.constant}), **result.measured}
    return [
        (
            _NAMES.get(name, name),
            f"{one.users:,}",
            f"{one.rows:,}",
            f"{one.score:.3f}",
            *(f"{value:.2f}" for value in one.quantiles),
            "" if name == "constant" else f"{one.loss:.3f}",
        )
        for name, one in told.items()
    ]


def group_rows(result: DeviceResult) -> list[tuple[str, ...]]:
    """Return a row for each group and model."""
    return [
        (group, _NAMES.get(name, name), *_in_short(one))
        for group, told in result.groups.items()
        for name, one in told.items()
    ]


def _in_short(one: Measured) -> tuple[str, ...]:
    return f"{one.users:,}", f"{one.rows:,}", f"{one.score:.3f}", f"{one.quantiles[0]:.2f}", f"{one.quantiles[2]:.2f}"


def profile_rows(result: DeviceResult) -> list[tuple[str, ...]]:
    """Return a row for each kind of device."""
    return [
        (
            name,
            *(f"{count:,}" for count in (one.drawn, one.accepted, one.away, one.dropped, one.late)),
            f"{one.accepted / one.drawn:.0%}" if one.drawn else "",
        )
        for name, one in result.profiles.items()
    ]


def facts(result: DeviceResult) -> str:
    """Return what the simulation was, in a sentence."""
    devices, rounds = result.study.devices, len(result.rounds)
    assert devices is not None
    given_up = sum(not record.accepted for record in result.rounds)
    lost = f", of which {given_up} had too few answers to count" if given_up else ""
    sent = sum(record.bytes_up + record.bytes_down for record in result.rounds)
    kept = (
        ""
        if result.touched is None
        else f" {result.touched:,} users took part and keep weights of their own: personal is about these alone."
    )
    few = f" {result.unmeasured:,} more were to be measured at, but have too few rows." if result.unmeasured else ""
    return (
        f"{result.users:,} users with {result.rows:,} rows, {devices.cohort:,} a round, {rounds} rounds{lost}: "
        f"{result.clock} and {sent / 1e9:.2f} GB on the virtual clock, {in_time(result.seconds)} here.{kept}{few}"
    )

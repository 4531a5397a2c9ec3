"""What is wrong with a command line, in words: click shows ranges as `x>=1` and types as `integer range`."""

import click


def in_words(error: click.ClickException) -> click.ClickException:
    """Return an error about a number or a choice with a sentence of our own, any other as it is."""
    if not isinstance(error, click.BadParameter) or isinstance(error, click.MissingParameter) or error.param is None:
        return error
    expected = _expected(error.param.type)
    if not expected:
        return error
    name = max(error.param.opts, key=len) if isinstance(error.param, click.Option) else error.param.human_readable_name
    given = error.message.rpartition(" is not ")[0].strip("'\"")
    return click.UsageError(f"{name}: must be {expected}, got '{given}'", ctx=error.ctx)


def _expected(kind: object) -> str:
    if isinstance(kind, click.Choice):
        return f"one of {', '.join(map(str, kind.choices))}"
    whole = isinstance(kind, click.types.IntParamType)
    if not whole and not isinstance(kind, click.types.FloatParamType):
        return ""
    number = "a whole number" if whole else "a number"
    least, most = (getattr(kind, bound, None) for bound in ("min", "max"))
    if least is not None and most is not None:
        return f"{number} from {least} to {most}"
    if least is not None:
        return f"{number} of at least {least}"
    return f"{number} of at most {most}" if most is not None else number

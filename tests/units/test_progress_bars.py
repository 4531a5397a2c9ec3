"""Progress from Python: on terminals and in notebooks, and nowhere else."""

import io

import pytest
from rich.console import Console

from consilium.api import bars


def test_nothing_is_shown_without_terminal_and_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    """In a file or a pipe, and wherever it is not wanted."""
    for progress in (None, True, False):
        with bars.bar(3, "study", progress=progress) as shown:
            assert isinstance(shown, bars.Silent)
            shown.at(1, "study")
            shown.say("a note")
    assert ("", "") == tuple(capsys.readouterr())


def test_terminal_shows_how_far_it_is() -> None:
    """The bar's text and numbers, and notes as they are."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with bars.TerminalBar(3, "study", console) as shown:
        shown.say("[b]a note[/b]")
        shown.at(2, "study: berlin")
    text = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO has it
    assert "[b]a note[/b]" in text
    assert "study: berlin" in text
    assert "2/3" in text


def test_notebook_shows_text_and_page() -> None:
    """Both forms say the same; what others wrote is no HTML there."""
    shown = bars.NotebookBar(4, "a<b")
    shown.at(1, "a<b")
    shown.say("<script>")
    assert "a<b [######..................] 1/4" in repr(shown)
    assert "&lt;script&gt;" in shown._repr_html_()
    assert "<script>" not in shown._repr_html_()
    assert "value='1' max='4'" in shown._repr_html_()

"""The auditor's page on privacy: every test that it names behind a sentence exists, and every sentence has one."""

import re
from collections.abc import Iterator

from paths import ROOT

PAGE = (ROOT / "docs" / "auditor" / "privacy.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)?::(test_\w+)`")


def named() -> Iterator[tuple[str, str]]:
    """Yield file and name of every test on the page; one without a file is in the file that was named last."""
    file = ""
    for match in NAMED.finditer(PAGE):
        file = match[1] or file
        yield file, match[2]


def test_page_names_tests_that_exist() -> None:
    """Each in its file."""
    assert len(list(named())) > 20
    missing = [
        (file, name)
        for file, name in named()
        if not re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    assert [] == missing


def test_every_promise_has_code_and_a_test() -> None:
    """In each row of the tables of promises."""
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and line.count("|") == 5]
    promises = [row for row in rows if not row.startswith(("| sentence", "|---"))]
    assert len(promises) > 15
    assert [] == [row for row in promises if not NAMED.search(row)]

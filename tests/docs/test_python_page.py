"""The page about Python: its first block is short and runs; the notebook runs; nobody's files stand in the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import BLOCK
from paths import ROOT

PAGE = ROOT / "docs" / "researcher" / "python.md"
NOTEBOOK = ROOT / "examples" / "python.ipynb"
LINES = 12
"""Most lines of Python for a module and a DataFrame of one's own."""
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[3])
"""


def first_block() -> str:
    """Return the first Python block of the page."""
    blocks: list[str] = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    return (
        next(block for block in blocks if block.startswith("```python")).removeprefix("```python").removesuffix("```")
    )


def run(*arguments: str, cwd: Path) -> str:
    """Run Python in a folder to its end and return what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "IPYTHONDIR": str(cwd / ".ipython")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_own_module_and_frame_take_few_lines() -> None:
    """Imports, data, module, study, run and report: at most twelve lines that hold something."""
    lines = [line for line in first_block().splitlines() if line.strip()]
    assert len(lines) <= LINES
    assert any("nn.Sequential" in line for line in lines)
    assert any("label=" in line for line in lines)


def test_page_works_in_a_folder_with_files_of_common_names(tmp_path: Path) -> None:
    """`server.py`, `client.py` and `common.py` of the caller's own are neither imported nor in the way."""
    for name in ("server.py", "client.py", "common.py"):
        (tmp_path / name).write_text('raise RuntimeError("imported by mistake")\n', encoding="utf-8")
    (tmp_path / "main.py").write_text(first_block(), encoding="utf-8")
    printed = run("main.py", cwd=tmp_path)
    assert all(site in printed for site in ("berlin", "lyon", "porto"))
    assert "report.html" in printed
    assert "\x1b" not in printed


def test_import_is_light_and_complete() -> None:
    """`import consilium` loads nothing heavy; every name that it lists is there, and an unknown one is said."""
    code = (
        "import sys, consilium as cs\n"
        "heavy = [name for name in ('torch', 'numpy', 'pydantic', 'pandas', 'flwr') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "assert set(cs.__all__) <= set(dir(cs))\n"
        "missing = [name for name in cs.__all__ if getattr(cs, name) is None]\n"
        "assert not missing, missing\n"
        "assert cs.__all__ == sorted(cs._PLACES, key=str), 'a name is listed once only'\n"
    )
    run("-c", code, cwd=ROOT)
    with pytest.raises(AttributeError, match="has no attribute 'simulat'"):
        __import__("consilium").simulat  # noqa: B018 # it is the access that fails


def test_missing_pandas_is_a_sentence() -> None:
    """Without the extra `study` the sentence has the command that installs it; what needs no pandas works."""
    code = (
        "import sys\n"
        "sys.modules['pandas'] = None\n"
        "import consilium as cs\n"
        "print(cs.weights([1, 1]), cs.Study(rounds=1))\n"
        "try:\n    cs.simulate\nexcept cs.ConsiliumError as error:\n    print(error)\n"
    )
    printed = run("-c", code, cwd=ROOT)
    assert "[0.5, 0.5] Study(rounds=1)" in printed
    assert (
        "consilium.simulate needs pandas, which is not installed; install it with: pip install 'consilium[study]'"
        in (printed)
    )


def test_notebook_runs_with_its_progress(tmp_path: Path) -> None:
    """Every cell of the committed notebook, which holds no output, runs in a kernel; tables and bars are there."""
    pytest.importorskip("nbclient")
    committed = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert [] == [cell for cell in committed["cells"] if cell.get("outputs") or cell.get("execution_count")]
    out = tmp_path / "out.ipynb"
    run("-c", EXECUTE, str(NOTEBOOK), str(tmp_path), str(out), cwd=tmp_path)
    cells = [cell for cell in json.loads(out.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    shown = ["".join(map(str, json.dumps(cell["outputs"]))) for cell in cells]
    assert "<progress value='5' max='5'>" in shown[1]
    assert "personal" in shown[1]
    assert "probability_1" in shown[4]
    assert "Round(2 of 5" in shown[5]
    assert "Round(3 of 5" not in shown[5]

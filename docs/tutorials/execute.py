"""Run the tutorials and write them with their outputs and figures as notebooks.

    python docs/tutorials/execute.py                 # all: about ten minutes on two cores
    python docs/tutorials/execute.py 01 04           # those whose name begins so

Needs the extras [study] and [docs]. The scripts are the source; the notebooks are made from them.
"""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MOST_BYTES = 300 * 1024


def execute(script: Path) -> Path:
    """Run a script in percent format as a notebook beside it, and return the notebook's path.

    Raises:
        ImportError: jupytext, nbclient or nbformat is missing.
        RuntimeError: a cell fails, or the notebook is too large for a forge to show.
    """
    try:
        import jupytext
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
    except ImportError as error:
        raise ImportError(
            f"{error.name} is missing; the tutorials need pip install 'rtrl_ext[study,docs]'"
        ) from error
    notebook = jupytext.read(script)
    count = len(notebook.cells)
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"  # the same at every run
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }

    def progress(cell: object, cell_index: int) -> None:
        print(f"\r{script.stem}: cell {cell_index + 1} of {count}", end="", file=sys.stderr)

    client = NotebookClient(
        notebook, timeout=None, record_timing=False, coalesce_streams=True, on_cell_start=progress,
        kernel_name="python3", resources={"metadata": {"path": str(HERE)}},
    )  # fmt: skip
    try:
        client.execute()
    except CellExecutionError as error:
        raise RuntimeError(f"{script.name}: {error}") from error
    finally:
        print(file=sys.stderr)
    notebook.metadata["language_info"] = {"name": "python"}
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > MOST_BYTES:
        raise RuntimeError(
            f"{script.name}: the notebook has {len(text.encode())} bytes, expected at most "
            f"{MOST_BYTES}"
        )
    path = script.with_suffix(".ipynb")
    path.write_text(text, encoding="utf-8")
    return path


def main() -> int:
    """Run the tutorials that are asked for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 01 (default: all)")
    names = parser.parse_args().names
    scripts = sorted(HERE.glob("[0-9]*.py"))
    for name in names:
        if not any(script.name.startswith(name) for script in scripts):
            parser.error(f"{name}: no tutorial of that name")
    os.environ.pop("RTRL_EXT_TUTORIAL", None)  # never the shortened form
    os.environ.pop("MPLBACKEND", None)
    try:
        for script in scripts:
            if not names or any(script.name.startswith(name) for name in names):
                path = execute(script)
                print(f"{path.name}: {path.stat().st_size // 1024} KiB")
    except (ImportError, RuntimeError, OSError) as error:
        print(f"execute: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

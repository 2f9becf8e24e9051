"""Rows of spreadsheets (.xlsx, .xls, .ods): the first sheet with cells, as the text of a CSV file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfkit.errors import DataError, first_line
from hfkit.system.console import say_once

SHEETS = (".xlsx", ".xls", ".ods")

MAX_CELLS = 50_000_000  # of the area from the first cell to the last, all of which is in memory


def sheet_fields(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The cells of each row that is not blank, with its place ("row 3"), without columns that are blank in all rows.

    A whole number has no point, a date is written as in ISO 8601. DataError for a file that can't be read.
    """
    try:
        from python_calamine import CalamineError, CalamineWorkbook, PasswordError
    except ImportError:
        fix = 'pip install "hfkit[sheets]", or save the sheet as CSV'
        raise DataError(f"{path}: reading {path.suffix} needs the package python-calamine", fix) from None
    try:
        with CalamineWorkbook.from_path(path) as book:
            names = [one.name for one in book.sheets_metadata if "Visible" in str(one.visible)]
            sheets = (book.get_sheet_by_name(name) for name in names)
            sheet = next((sheet for sheet in sheets if sheet.total_height), None)
            if sheet is None:
                return
            if sheet.total_height * sheet.total_width > MAX_CELLS:
                where = f"its cells reach row {sheet.total_height:,}, column {sheet.total_width:,}"
                raise DataError(f"{path}: {where}", "delete what is far from the table, or save the table as CSV")
            table = sheet.to_python(skip_empty_area=False)
    except DataError:
        raise
    except PasswordError:
        raise DataError(f"{path}: protected by a password", "save it without one") from None
    except BaseException as error:
        if not isinstance(error, CalamineError | OSError) and type(error).__name__ != "PanicException":
            raise
        fix = "open it in a spreadsheet program, and save it as CSV"
        raise DataError(f"{path}: not a whole {path.suffix} file: {first_line(error)}", fix) from None
    if len(names) > 1:
        say_once(f"{path}: sheet '{sheet.name}' of {len(names)} (save another one as CSV to read it)")
    rows = [list(map(_as_text, row)) for row in table]
    used = [number for number, column in enumerate(zip(*rows, strict=True)) if any(column)]
    for number, row in enumerate(rows, start=1):
        if any(row):
            yield f"row {number}", [row[column] for column in used]


def _as_text(cell: Any) -> str:
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return cell.isoformat() if hasattr(cell, "isoformat") else str(cell)

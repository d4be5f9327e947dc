"""Workbooks as other programs than openpyxl write them: their XML is given as it is."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"


def text_cell(reference: str, text: str) -> str:
    return f'<c r="{reference}" t="inlineStr"><is><t>{text}</t></is></c>'


def sheet_xml(rows: str, rest: str = "", before: str = "") -> str:
    return f'<worksheet xmlns="{_MAIN}">{before}<sheetData>{rows}</sheetData>{rest}</worksheet>'


def write_parts(
    path: Path,
    sheets: Mapping[str, str | bytes],
    *,
    formats: Mapping[int, str] | None = None,
    book: str = "",
    parts: Mapping[str, Any] | None = None,
    states: Mapping[str, str] | None = None,
) -> Path:
    """Write an .xlsx file. `sheets`: their XML by their names. `formats`: those of the styles 1, 2, … of cells.

    `book`: XML at the beginning of the workbook. `states`: `hidden` sheets.
    """
    found, kinds = formats or {}, states or {}
    listed = "".join(
        f'<sheet name="{name}" sheetId="{at}" r:id="s{at}"{f""" state="{kinds[name]}" """ if name in kinds else ""}/>'
        for at, name in enumerate(sheets, 1)
    )
    related = "".join(
        f'<Relationship Id="s{at}" Type="{_OFFICE}/worksheet" Target="/xl/worksheets/part{at}.xml"/>'
        for at in range(1, len(sheets) + 1)
    )
    codes = "".join(f'<numFmt numFmtId="{163 + at}" formatCode="{code}"/>' for at, code in found.items())
    styles = "".join(f'<xf numFmtId="{163 + at}"/>' for at in found)
    with zipfile.ZipFile(path, "w") as out:
        kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
        overrides = "".join(
            f'<Override PartName="/xl/worksheets/part{at}.xml" ContentType="{kind}.worksheet+xml"/>'
            for at in range(1, len(sheets) + 1)
        )
        out.writestr(
            "[Content_Types].xml",
            '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            '<Default Extension="xml" ContentType="application/xml"/>'
            f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>'
            f'<Override PartName="/xl/styles.xml" ContentType="{kind}.styles+xml"/>{overrides}</Types>',
        )
        out.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{_PACKAGE}">'
            f'<Relationship Id="r" Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        )
        out.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}">{book}<sheets>{listed}</sheets>'
            '<calcPr calcId="191029"/></workbook>',
        )
        out.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{_PACKAGE}">{related}'
            f'<Relationship Id="st" Type="{_OFFICE}/styles" Target="styles.xml"/></Relationships>',
        )
        out.writestr(
            "xl/styles.xml",
            f'<styleSheet xmlns="{_MAIN}"><numFmts count="{len(found)}">{codes}</numFmts>'
            '<fonts count="1"><font/></fonts><fills count="1"><fill><patternFill patternType="none"/></fill></fills>'
            '<borders count="1"><border/></borders>'
            '<cellStyleXfs count="1"><xf/></cellStyleXfs>'
            f'<cellXfs count="{1 + len(found)}"><xf/>{styles}</cellXfs></styleSheet>',
        )
        for at, text in enumerate(sheets.values(), 1):
            out.writestr(f"xl/worksheets/part{at}.xml", text)
        for name, content in (parts or {}).items():
            out.writestr(name, content)
    return path


def parts_in(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as packed:
        return {name: packed.read(name) for name in packed.namelist()}

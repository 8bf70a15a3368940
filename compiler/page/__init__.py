"""report.html: one self-contained file from JSON records. It loads nothing, so it works from a mail attachment.

Data go in as JSON inside a script element and come out through text nodes only, so that no name from a model is
ever read as markup. The libraries in `vendor/` are whole files of their packages, with their licences beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

VENDOR = ("chart.umd.min.js", "dagre.min.js", "panzoom.min.js")
"""Plots, layout of the graph, zoom; MIT licences."""
SCRIPTS = ("base.js", "tables.js", "plots.js", "graph.js", "main.js")
FRONTIER_SCRIPTS = ("base.js", "tables.js", "plots.js", "frontier.js")

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
"""Content security policy of the page: only what is in the file."""


def page(records: Sequence[Mapping[str, Any]], title: str = "") -> str:
    """The page for one report (see `compiler.bundle_report`), or for several side by side.

    ValueError where a record holds what JSON has no form for.
    """
    names = " · ".join(dict.fromkeys(f"{r['name']} for {r['target']}" for r in records))
    files = "combos.csv, layers.csv and report.json"
    return _document({"reports": list(records)}, title or names, SCRIPTS, files)


def frontier_page(record: Mapping[str, Any]) -> str:
    """The page for a frontier (see `compiler.frontier`). ValueError where it holds what JSON has no form for."""
    title = f"Frontier of {record['name']} for {record['target']}"
    return _document({"reports": [], "frontier": record}, title, FRONTIER_SCRIPTS, "frontier.csv and frontier.json")


def _document(content: Mapping[str, Any], title: str, own: Sequence[str], beside: str) -> str:
    data = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    scripts = [_source("vendor", name) for name in VENDOR] + [_source("assets", name) for name in own]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_source('assets', 'page.css')}</style>",
            "</head>",
            "<body>",
            "<noscript>This report draws its tables and plots with the scripts inside this file; "
            f"{beside} beside it hold the same numbers.</noscript>",
            '<main id="main"></main>',
            f'<script type="application/json" id="data">{_inside_script(data)}</script>',
            f"<!--\n{_source('vendor', 'LICENSES.txt')}-->",
            *(f"<script>\n{text}\n</script>" for text in scripts),
            "</body>",
            "</html>",
            "",
        ]
    )


def _source(*place: str) -> str:
    """A file of this package, without the line that points to a source map: there is none inside the page."""
    text = files("compiler.page").joinpath(*place).read_text(encoding="utf-8")
    return "\n".join(line for line in text.split("\n") if not line.startswith("//# sourceMappingURL="))


def _inside_script(data: str) -> str:
    """JSON that cannot end the script element around it."""
    return data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

"""Writes reports as one self-contained HTML page, which loads nothing from the network and runs no script.

Captions are text, so that they are readable at any width, in any script, and on a light and a dark screen.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from pathlib import Path

from pointdistill.data.files.files import write_aside
from pointdistill.engine.reports.pictures import LINES
from pointdistill.engine.reports.tables import Table

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --page: #ffffff; --card: #f6f8fa; --accent: #0969da; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --page: #0d1117; --card: #151b23; --accent: #4493f8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
.lead, figcaption, .notes, .key { color: var(--soft); }
.headline { font-size: 1.3rem; line-height: 1.35; font-weight: 600; margin: 1rem 0 .5rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1.25rem;
  margin: 0; padding: 1rem 1.25rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
/* A shade at an edge behind which a table goes on; what moves with the table hides it at the table's own ends. */
.scroll { background:
  linear-gradient(to right, var(--page) 40%, transparent) left / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--page) 40%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to right, var(--soft), transparent) left / .8rem 100% no-repeat,
  linear-gradient(to left, var(--soft), transparent) right / .8rem 100% no-repeat; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { background: var(--card); font-weight: 600; }
tr:last-child td { border-bottom: 0; }
.notes { font-size: .85rem; margin: .6rem 0 0; padding-left: 1.1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .7rem 1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; font-size: .85rem; }
figure { margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; min-width: 0; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { font-size: .9rem; margin-top: .6rem; overflow-wrap: anywhere; }
.charts { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.key { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .75rem 0; padding: 0;
  list-style: none; font-size: .9rem; }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px;
  margin-right: .4rem; }
.row { display: grid; gap: .5rem; grid-template-columns: repeat(6, minmax(0, 1fr));
  margin-bottom: .5rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .25rem .25rem .4rem; }
.tile figcaption { margin: 0; padding: 0 .25rem; font-size: .8rem; line-height: 1.3; }
.tile b { display: block; font-size: .75rem; color: var(--soft); }
.query { border: 2px solid var(--accent); }
.right { border-bottom: 4px solid #2da44e; }
.wrong { border-bottom: 4px dashed #d1495b; }
.bars { padding: .5rem 1rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
.bars h3 { margin: .75rem 0 .25rem; }
.bar { display: grid; grid-template-columns: 14rem minmax(0, 1fr) 3.5rem; gap: .1rem .75rem;
  align-items: center; font-size: .9rem; margin: .2rem 0;
  font-variant-numeric: tabular-nums; }
.bar span { overflow-wrap: anywhere; }
.bar span:last-child { text-align: right; }
.track { height: .8rem; background: var(--line); border-radius: 3px; overflow: hidden; }
.fill { height: 100%; }
.best { font-weight: 600; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: .5rem; }
  th, td { white-space: normal; padding: .4rem .5rem; }
  .row { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .bar { grid-template-columns: minmax(0, 1fr) 3.5rem; }
  .bar span:first-child { grid-column: 1 / 3; }
}
"""

_TONES = "".join(
    f".tone{number} {{ background: {color}; }}\n" for number, color in enumerate(LINES)
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG and what it shows."""

    caption: str
    png: bytes


class Mark(StrEnum):
    """What a shape is in a row of shapes."""

    PLAIN = ""
    QUERY = "query"
    RIGHT = "right"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Tile:
    """A shape in a row: its picture, its name and, unless plain, a word above the name."""

    picture: Picture
    mark: Mark = Mark.PLAIN


@dataclass(frozen=True, slots=True)
class Gallery:
    """Rows of at most six tiles under a heading, if it has one; on a narrow screen a row takes two lines."""

    title: str
    rows: tuple[tuple[Tile, ...], ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure in percent."""

    name: str
    percent: float
    tone: int
    """Which colour: the same number, the same colour, everywhere on the page."""


@dataclass(frozen=True, slots=True)
class Bars:
    """Figures of one kind, to be compared; the largest is bold."""

    title: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading, and below it in this order what there is."""

    title: str
    text: str = ""
    key: tuple[str, ...] = ()
    """Names of the colours of the charts, in the order of their tones."""

    bars: tuple[Bars, ...] = ()
    remark: str = ""
    """A paragraph below the bars."""

    tables: tuple[Table, ...] = ()
    charts: tuple[Picture, ...] = ()
    """Side by side where there is room."""

    galleries: tuple[Gallery, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    """Commands to run next, each with what it does."""


def write_report(
    path: Path,
    *,
    title: str,
    headline: str,
    lead: str,
    facts: Mapping[str, str],
    sections: Sequence[Section],
) -> None:
    """Write a self-contained HTML page, completely or not at all.

    Args:
        path: such as ``run/report.html``.
        title: the page's title.
        headline: the result in a sentence; empty for none.
        lead: what the page shows, in a sentence or two.
        facts: names and values: what was run, on what, how long it took. They come last.
        sections: in the order of the page.
    """
    body = [f"<h1>{escape(title)}</h1>"]
    body += [f'<p class="headline">{escape(headline)}</p>'] if headline else []
    body += [f'<p class="lead">{escape(lead)}</p>', *map(_section, sections), _facts(facts)]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{_TONES}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )
    with write_aside(path) as aside:
        # A name of a file may hold bytes that are no text; they are shown as question marks.
        aside.write_bytes(page.encode("utf-8", errors="replace"))


def _facts(facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    pairs = (f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    return "<section>\n<h2>What was run</h2>\n<dl>" + "".join(pairs) + "</dl>\n</section>"


def _section(section: Section) -> str:
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.key:
        names = (
            f'<li><i class="tone{number % len(LINES)}"></i>{escape(name)}</li>'
            for number, name in enumerate(section.key)
        )
        parts.append(f'<ul class="key">{"".join(names)}</ul>')
    if section.bars:
        parts.append(f'<div class="bars">{"".join(map(_bars, section.bars))}</div>')
    if section.remark:
        parts.append(f"<p>{escape(section.remark)}</p>")
    parts += [_table(table) for table in section.tables]
    if section.charts:
        charts = "".join(_figure(picture) for picture in section.charts)
        parts.append(f'<div class="charts">{charts}</div>')
    parts += [_gallery(gallery) for gallery in section.galleries]
    for command, purpose in section.commands:
        parts.append(f"<p>{escape(purpose)}</p>\n<pre><code>{escape(command)}</code></pre>")
    return "\n".join([*parts, "</section>"])


def _bars(bars: Bars) -> str:
    most = max((bar.percent for bar in bars.bars), default=0.0)
    rows = []
    for bar in bars.bars:
        best = " best" if bar.percent == most else ""
        width = min(max(bar.percent, 0.0), 100.0)
        rows.append(
            f'<div class="bar{best}"><span>{escape(bar.name)}</span>'
            f'<div class="track"><div class="fill tone{bar.tone % len(LINES)}" '
            f'style="width:{width:.1f}%"></div></div><span>{bar.percent:.1f} %</span></div>'
        )
    return f"<h3>{escape(bars.title)}</h3>{''.join(rows)}"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = (
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f"<h3>{escape(table.title)}</h3>\n"
        # With a tab stop, so that the keyboard can scroll it.
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        + (f'\n<ul class="notes">{notes}</ul>' if notes else "")
    )


def _gallery(gallery: Gallery) -> str:
    rows = "\n".join(
        f'<div class="row">{"".join(_figure(tile.picture, tile) for tile in row)}</div>'
        for row in gallery.rows
    )
    return f"<h3>{escape(gallery.title)}</h3>\n{rows}" if gallery.title else rows


def _figure(picture: Picture, tile: Tile | None = None) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    caption = escape(picture.caption)
    look = "" if tile is None else f' class="tile {tile.mark}"'
    word = f"<b>{tile.mark}</b>" if tile is not None and tile.mark else ""
    return (
        f'<figure{look}><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{word}{caption}</figcaption></figure>"
    )

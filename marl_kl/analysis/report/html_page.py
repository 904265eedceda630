"""One HTML page that needs nothing else: no server, no network, no script; light or dark as the reader's system is."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_TYPES = {"svg": "image/svg+xml", "png": "image/png"}

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #ffffff; --ink: #1f2328; --soft: #667079; --line: #e2dfd8;
  --accent: #0072b2; --bad: #b3261e; --mark: #fff3c4; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --card: #1e2227; --ink: #e4e6e8; --soft: #9aa4ad;
  --line: #343a41; --accent: #6db9e8; --bad: #ff8a80; --mark: #4a4015; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { margin: .6rem 0; } .soft { color: var(--soft); font-size: .88rem; } .bad { color: var(--bad); font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1.2rem 0;
  padding: 0; }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .9rem; }
.cards dt { color: var(--soft); font-size: .82rem; }
.cards dd { margin: .1rem 0 0; font-size: 1.15rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .75rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; } tr.marked td { background: var(--mark); }
table.numbers th:not(:first-child), table.numbers td:not(:first-child) { text-align: right; white-space: nowrap; }
figure { margin: 1rem 0 1.4rem; }
figcaption { color: var(--soft); font-size: .86rem; margin-top: .45rem; max-width: 56rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .6rem; padding: .5rem; }
details { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .5rem .9rem;
  margin: .7rem 0; }
summary { cursor: pointer; font-weight: 600; } code { font: .92em ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .5em;
  vertical-align: -.06em; }
""".strip()


class Markup(str):
    """Text that is HTML already and is not escaped again."""


class Section(NamedTuple):
    """title: the heading. parts: what stands under it, in order."""

    title: str
    parts: Sequence[Markup]


def page(title: str, lead: Sequence[Markup], sections: Iterable[Section]) -> str:
    """The whole document: `lead` under the title, then the sections."""
    content = "\n".join(
        f"<section>\n<h2>{text(section.title)}</h2>\n{_joined(section.parts)}\n</section>" for section in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        f"<h1>{text(title)}</h1>\n{_joined(lead)}\n{content}\n</body>\n</html>\n"
    )


def text(value: object) -> Markup:
    """`value` as text, whatever is in it; `Markup` as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def paragraph(content: object, kind: str = "") -> Markup:
    """kind: "soft" or "bad", for less and more attention."""
    return Markup(f'<p class="{kind}">{text(content)}</p>' if kind else f"<p>{text(content)}</p>")


def cards(facts: Mapping[str, object]) -> Markup:
    """A few numbers that matter most, by name."""
    items = (f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items())
    return Markup(f'<dl class="cards">{_joined(items)}</dl>')


def table(
    header: Sequence[object], rows: Iterable[Sequence[object]], *, numbers: bool = False, marked: Iterable[int] = ()
) -> Markup:
    """A table.

    Args:
        header, rows: cells.
        numbers: whether all columns but the first are numbers.
        marked: indices of rows to be set off.
    """
    marked = set(marked)
    head = "".join(f"<th>{text(cell)}</th>" for cell in header)
    lines = [
        f"<tr{' class=marked' if index in marked else ''}>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>"
        for index, row in enumerate(rows)
    ]
    kind = ' class="numbers"' if numbers else ""
    return Markup(
        f'<div class="wide"><table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{_joined(lines)}\n</tbody></table>'
        "</div>"
    )


def details(summary: str, parts: Sequence[Markup]) -> Markup:
    """Parts that are folded away under one line."""
    return Markup(f"<details>\n<summary>{text(summary)}</summary>\n{_joined(parts)}\n</details>")


def picture(content: bytes, kind: str, alternative: str, caption: str) -> Markup:
    """A picture inside the page.

    Args:
        content: of the file. kind: "svg" or "png".
        alternative: what it shows, for those who cannot see it. caption: what stands under it.
    """
    data = base64.b64encode(content).decode()
    return Markup(
        f'<figure><img alt="{text(alternative)}" src="data:{_TYPES[kind]};base64,{data}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def swatch(colour: str, name: str) -> Markup:
    """A name with a square of its colour before it."""
    return Markup(f'<span class="swatch" style="background:{text(colour)}"></span>{text(name)}')


def _joined(parts: Iterable[str]) -> str:
    return "\n".join(parts)

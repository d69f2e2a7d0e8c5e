"""HTML: escaped text, tables, tiles, and the page around them; one file that asks for no other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

# Nothing may be loaded and nothing may run, whatever a text holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
FONTS = (
    'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans", '
    '"PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "Noto Sans CJK SC", '
    '"Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", sans-serif'
)
LIGHT = (
    "--paper:#f7f8fa;--card:#ffffff;--ink:#1b1f24;--muted:#69727d;--grid:#e4e7eb;--c1:#2f6fdb;"
    "--c2:#dd6b20;--c3:#2b9a66;--c4:#9a4fc4;--c5:#b88a00;--c6:#cf3f5b;--c7:#138a9e;--c8:#7a6a5d"
)
DARK = (
    "--paper:#101316;--card:#181c20;--ink:#e7eaed;--muted:#98a2ad;--grid:#2b3138;--c1:#6ba1ff;"
    "--c2:#f2985a;--c3:#57c690;--c4:#c58af0;--c5:#e0b840;--c6:#ff7f96;--c7:#53c3d6;--c8:#b8a697"
)
STYLE = f"""
:root{{color-scheme:light dark;{LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 {FONTS}}}
main{{max-width:1120px;margin:0 auto;padding:36px 24px 64px}}
h1{{font-size:26px;line-height:1.25;margin:0;font-weight:650;letter-spacing:-.01em;
overflow-wrap:anywhere}}
h2{{font-size:18px;margin:44px 0 14px;font-weight:650}}
h3{{font-size:14px;margin:0;font-weight:600}}
p{{margin:6px 0;max-width:75ch}}
.muted,small,figcaption span,th{{color:var(--muted)}}
.notes{{border-left:3px solid var(--c2);padding:2px 14px;margin:18px 0}}
.tiles{{display:flex;flex-wrap:wrap;gap:12px;margin:22px 0 0}}
.tile{{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:12px 14px;
min-width:136px;flex:1}}
.tile b{{display:block;font-size:24px;font-weight:650;line-height:1.3;white-space:nowrap;
font-variant-numeric:tabular-nums;letter-spacing:-.01em}}
.tile span,.tile small{{display:block;font-size:12px;color:var(--muted)}}
.grid{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(320px,100%),1fr));gap:14px}}
figure,.card{{background:var(--card);border:1px solid var(--grid);border-radius:10px;
padding:14px 16px 10px;margin:0;min-width:0}}
.stack{{columns:2 400px;column-gap:14px}}
.stack .card{{break-inside:avoid;margin-bottom:14px}}
figure.wide{{grid-column:1/-1}}
figcaption{{display:flex;flex-wrap:wrap;justify-content:space-between;gap:2px 12px;
margin-bottom:6px;font-size:13px}}
svg{{display:block;width:100%;height:auto}}
svg text{{font-family:{FONTS}}}
svg *{{stroke-linejoin:round;stroke-linecap:butt}}
figure.fixed svg{{max-width:var(--width);margin:0 auto}}
.legend{{display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 12px;font-size:13px}}
.legend i{{display:inline-block;width:14px;height:4px;border-radius:2px;margin-right:7px;
vertical-align:middle}}
.scroll{{overflow:auto;max-height:560px}}
table{{border-collapse:collapse;width:100%;font-size:13.5px}}
th,td{{text-align:left;padding:5px 14px 5px 0;vertical-align:top;
border-bottom:1px solid var(--grid)}}
tr:last-child td{{border-bottom:0}}
th{{font-weight:500;font-size:12.5px;position:sticky;top:0;background:var(--card)}}
td.n,th.n{{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}}
td.k{{color:var(--muted);white-space:nowrap;width:1%}}
td.t{{overflow-wrap:anywhere}}
td i{{display:block;height:4px;border-radius:2px;background:var(--c1);opacity:.55}}
td.l{{min-width:5em}}
td.bar{{width:26%;min-width:60px;padding-top:13px}}
mark{{background:none;color:var(--c2);font-weight:600}}
.sample{{margin-bottom:12px}}
.sample p.prompt{{font-weight:600;white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 6px}}
.sample td.t{{white-space:pre-wrap}}
details{{margin-top:14px}}
summary{{cursor:pointer;color:var(--muted);font-size:13.5px}}
pre{{overflow:auto;font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:14px 16px}}
footer{{margin-top:48px;font-size:12.5px;color:var(--muted)}}
@media print{{body{{background:none}}figure,.card,.tile{{break-inside:avoid}}
.scroll{{max-height:none}}}}
"""


UNSEEN = "\n\t\u00a0\u3000\u200c\u200d"  # spaces and joiners that text is written with


def text(value: object) -> str:
    """Any text as HTML, controls and lone surrogates made visible."""
    plain = str(value).encode("utf-8", "replace").decode()
    shown = "".join(c if c.isprintable() or c in UNSEEN else "·" for c in plain)
    return escape(shown)


def tile(what: str, value: str, note: str = "") -> str:
    """A large number."""
    inner = f"<span>{text(what)}</span><b>{text(value)}</b><small>{text(note)}</small>"
    return f'<div class="tile">{inner}</div>'


def tiles(parts: Iterable[str]) -> str:
    """A row of them."""
    return f'<div class="tiles">{"".join(parts)}</div>'


def figure(title: str, svg: str, note: str = "", wide: bool = False, width: float = 0) -> str:
    """A picture with its caption; `width` in points is the most it may grow to."""
    kind = " ".join(["wide"] * wide + ["fixed"] * bool(width))
    style = f' style="--width:{width:.0f}pt"' if width else ""
    caption = f"<figcaption><h3>{text(title)}</h3><span>{text(note)}</span></figcaption>"
    return f'<figure class="{kind}"{style}>{caption}{svg}</figure>'


def grid(parts: Iterable[str]) -> str:
    """Cards and figures beside each other."""
    return f'<div class="grid">{"".join(parts)}</div>'


def stack(parts: Iterable[str]) -> str:
    """Cards of different height in columns."""
    return f'<div class="stack">{"".join(parts)}</div>'


def section(title: str, *parts: str) -> str:
    """A heading and what belongs to it."""
    return f"<section><h2>{text(title)}</h2>{''.join(parts)}</section>"


def paragraph(words: str) -> str:
    """A sentence or two beside a picture."""
    return f'<p class="muted">{text(words)}</p>'


def facts(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """Names and values; those without a value are left out."""
    cells = [
        f'<tr><td class="k">{text(name)}</td><td class="t">{text(value)}</td></tr>'
        for name, value in rows
        if value not in (None, "", [])
    ]
    card = f'<div class="card"><h3>{text(title)}</h3><table>{"".join(cells)}</table></div>'
    return card if cells else ""


def table(head: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """Columns of (name, class) over rows of cells that are HTML already; classes: n a number,
    t any text, k a name, bar a bar."""
    top = "".join(f'<th class="{kind}">{text(name)}</th>' for name, kind in head)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}"{_any_direction(kind)}>{cell}</td>'
            for cell, (_, kind) in zip(row, head, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="card"><div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></div>"
    )


def _any_direction(kind: str) -> str:
    return ' dir="auto"' if kind == "t" else ""


def bar(share: float) -> str:
    """A bar in a cell."""
    return f'<i style="width:{100 * share:.0f}%"></i>'


def legend(names: Iterable[tuple[str, int]]) -> str:
    """Names and the numbers of their colours."""
    parts = [
        f'<span><i style="background:var(--c{colour})"></i>{text(name)}</span>'
        for name, colour in names
    ]
    return f'<div class="legend">{"".join(parts)}</div>'


def folded(title: str, content: str) -> str:
    """What few will read, as it is written."""
    return f"<details><summary>{text(title)}</summary><pre>{text(content)}</pre></details>"


def notes(sentences: Sequence[str]) -> str:
    """What a reader must know before trusting the rest."""
    if not sentences:
        return ""
    return f'<div class="notes">{"".join(f"<p>{text(s)}</p>" for s in sentences)}</div>'


def page(title: str, subtitle: str, parts: Iterable[str], footer: str) -> str:
    """The whole file."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<header><h1>{text(title)}</h1><p class="muted">{text(subtitle)}</p></header>'
        f"{''.join(parts)}<footer>{text(footer)}</footer></main></body></html>\n"
    )

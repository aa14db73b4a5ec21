"""What every report's page looks like: it needs nothing beside it, runs no script, and follows the reader's colours."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape as plain

import cv2
import numpy as np
import numpy.typing as npt

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #616e7c; --line: #d9dee4; --ground: #fff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #9aa5b1; --line: #3a444f; --ground: #16191d; --card: #1f2429; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 auto;
  max-width: 68rem; padding: 1.5rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
p.sub, figcaption { color: var(--soft); } p.sub { margin: .2rem 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { color: var(--soft); font-weight: 500; }
tr.chosen td { font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .8rem; }
.tile { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.5rem; } .tile span { color: var(--soft); }
.remark { border-left: 3px solid #e0a100; padding: .1rem .8rem; margin: .3rem 0; }
img.figure { max-width: 100%; width: 46rem; border-radius: .5rem; background: #fff; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border-radius: .5rem; overflow: hidden; }
figure img { width: 100%; height: 15rem; object-fit: contain; background: #0b0d0f; display: block; }
figcaption { padding: .5rem .7rem; font-size: .85rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); } .escape { color: #d1495b; } .overkill { color: #c98a00; }
.flips { display: grid; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); gap: 1rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; }
.bars td { border: 0; padding-top: .1rem; padding-bottom: .1rem; } .bar { background: #4c8bf5; height: .7rem; }
.true { color: #37b24d; } .found { color: #e03131; }
"""


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page of sections that are HTML already; the title is not."""
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{plain(title)}</title>"
    body = "".join(sections)
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n"


def table(rows: Sequence[Sequence[str]], chosen: int | None = None) -> str:
    """A table of plain text, the first row its head; row `chosen` stands out."""
    head = "".join(f"<th>{plain(cell)}</th>" for cell in rows[0])
    body = [
        f"<tr{' class=chosen' if number == chosen else ''}>{''.join(f'<td>{plain(cell)}</td>' for cell in row)}</tr>"
        for number, row in enumerate(rows[1:])
    ]
    return f"<div class=wide><table><tr>{head}</tr>{''.join(body)}</table></div>"


def picture(image: npt.NDArray[np.uint8]) -> str:
    """A BGR image [H, W, 3] as an element that carries its own bytes."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return f"<img alt='' src='{data_uri(data.tobytes(), 'jpeg')}'>"


def data_uri(image: bytes, kind: str = "png") -> str:
    """An image file's bytes as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"

"""Markdown as safe HTML: a small part of CommonMark and GitHub's tables, enough for cards, guidelines and what models answer.

Every character of the text is escaped; tags come from here only. HTML in the text stays text, links go to http, https and mailto, and no
picture is loaded from anywhere but `pictures`. Left out: nested lists, reference links, footnotes, setext headings; they stay readable text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from markupsafe import Markup, escape

# Bounded, so that a hostile text costs no more than its length.
_INLINE = re.compile(
    r"(?P<code>`[^`\n]{1,2000}`)"
    r"|(?P<image>!\[(?P<alt>[^\]\n]{0,300})\]\((?P<src>[^()\s]{1,500})\))"
    r"|(?P<link>\[(?P<text>[^\]\n]{1,300})\]\((?P<href>[^()\s]{1,1000})\))"
    r"|(?P<bold>\*\*(?=\S)(?P<strong>[^*\n]{1,2000})\*\*)"
    r"|(?P<slant>(?<![\w*])\*(?=\S)(?P<em>[^*\n]{1,2000})\*(?![\w*]))"
)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[^`]*$")
_HEADING = re.compile(r" {0,3}(#{1,6}) +(.*?)[ #]*$")
_ITEM = re.compile(r" {0,3}(?:([-*+])|(\d{1,9})[.)]) +(.*)$")
_RULE = re.compile(r" {0,3}(?:-{3,}|\*{3,}|_{3,}) *$")
_DASHES = re.compile(r"\s*\|?[\s:|-]*-[\s:|-]*$")
_PICTURE = re.compile(r"[A-Za-z0-9_-]+\.svg")


def render(text: str, *, pictures: str = "", top: int = 3) -> Markup:
    """HTML of a Markdown text. `top`: the level of its largest heading in the page; `pictures`: where its local .svg files are."""
    lines = text.replace("\r\n", "\n").replace("\x00", "").split("\n")
    return Markup("\n").join(_blocks(lines, pictures, top))


def _blocks(lines: list[str], pictures: str, top: int) -> Iterator[Markup]:
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at += 1
        elif _FENCE.match(line):
            fence = line.strip()[:3]
            end = next((i for i in range(at + 1, len(lines)) if lines[i].strip().startswith(fence)), len(lines))
            yield Markup("<pre><code>{}</code></pre>").format("\n".join(lines[at + 1 : end]))
            at = end + 1
        elif heading := _HEADING.match(line):
            level = min(len(heading[1]) + top - 1, 6)
            yield Markup("<h{0}>{1}</h{0}>").format(level, _inline(heading[2], pictures))
            at += 1
        elif _RULE.match(line):
            yield Markup("<hr>")
            at += 1
        elif "|" in line and at + 1 < len(lines) and "|" in lines[at + 1] and _DASHES.match(lines[at + 1]):
            end = next((i for i in range(at + 2, len(lines)) if "|" not in lines[i]), len(lines))
            yield _table(line, lines[at + 2 : end], pictures)
            at = end
        elif line.lstrip().startswith(">"):
            end = next((i for i in range(at, len(lines)) if not lines[i].lstrip().startswith(">")), len(lines))
            inside = "\n".join(one.lstrip()[1:].removeprefix(" ") for one in lines[at:end])
            yield Markup("<blockquote><p>{}</p></blockquote>").format(_inline(inside, pictures))
            at = end
        elif _ITEM.match(line):
            end, item = _list(lines, at, pictures)
            yield item
            at = end
        else:
            end = next((i for i in range(at + 1, len(lines)) if _starts(lines[i])), len(lines))
            yield Markup("<p>{}</p>").format(_inline("\n".join(lines[at:end]), pictures))
            at = end


def _starts(line: str) -> bool:
    """Whether a paragraph ends before this line."""
    return not line.strip() or any(kind.match(line) for kind in (_FENCE, _HEADING, _ITEM, _RULE))


def _list(lines: list[str], at: int, pictures: str) -> tuple[int, Markup]:
    first = _ITEM.match(lines[at])
    assert first is not None
    items: list[str] = []
    while at < len(lines) and lines[at].strip():
        found = _ITEM.match(lines[at])
        if found is not None and (found[1] is None) != (first[1] is None):
            break
        if found is not None:
            items.append(found[3])
        else:  # goes on with the item before
            items[-1] += "\n" + lines[at].strip()
        at += 1
    inside = Markup("").join(Markup("<li>{}</li>").format(_inline(item, pictures)) for item in items)
    if first[1] is not None:
        return at, Markup("<ul>{}</ul>").format(inside)
    return at, Markup('<ol start="{}">{}</ol>').format(int(first[2]), inside)


def _table(head: str, body: list[str], pictures: str) -> Markup:
    def row(line: str, tag: str) -> Markup:
        cells = line.strip().removeprefix("|").removesuffix("|").split("|")
        one = Markup("<{0}>{1}</{0}>")
        return Markup("<tr>{}</tr>").format(
            Markup("").join(one.format(Markup(tag), _inline(cell.strip(), pictures)) for cell in cells)
        )

    return Markup(
        '<div class="scroll" tabindex="0" role="group" aria-label="table"><table><thead>{}</thead><tbody>{}</tbody></table></div>'
    ).format(row(head, "th"), Markup("").join(row(line, "td") for line in body))


def _inline(text: str, pictures: str) -> Markup:
    out, at = [], 0
    for found in _INLINE.finditer(text):
        out.append(escape(text[at : found.start()]))
        out.append(_marked(found, pictures))
        at = found.end()
    out.append(escape(text[at:]))
    return Markup("").join(out)


def _marked(found: re.Match[str], pictures: str) -> Markup:
    if found["code"]:
        return Markup("<code>{}</code>").format(found["code"][1:-1])
    if found["image"]:
        if pictures and _PICTURE.fullmatch(found["src"]):
            shown = Markup('<img class="picture" src="{}{}" alt="{}" loading="lazy">')
            return shown.format(pictures, found["src"], found["alt"])
        return Markup('<span class="quiet">[picture: {}]</span>').format(found["alt"] or found["src"])
    if found["link"]:
        said = _inline(found["text"], "")
        if not found["href"].lower().startswith(("https://", "http://", "mailto:")):
            return said
        return Markup('<a href="{}" rel="noopener noreferrer nofollow">{}</a>').format(found["href"], said)
    if found["bold"]:
        return Markup("<strong>{}</strong>").format(_inline(found["strong"], pictures))
    return Markup("<em>{}</em>").format(_inline(found["em"], pictures))

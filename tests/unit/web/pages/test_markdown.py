from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import pytest

from plaudit.web.pages.markdown import render


class Tags(HTMLParser):
    """Every start tag with its attributes, as a browser reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("# Title #", "<h3>Title</h3>"),
        ("###### deep", "<h6>deep</h6>"),
        ("one\ntwo\n\nthree", "<p>one\ntwo</p>\n<p>three</p>"),
        ("- a\n- **b**\n  more", "<ul><li>a</li><li><strong>b</strong>\nmore</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("- a\n1. b", '<ul><li>a</li></ul>\n<ol start="1"><li>b</li></ol>'),
        ("```py\n<b> *x*\n```\nafter", "<pre><code>&lt;b&gt; *x*</code></pre>\n<p>after</p>"),
        ("~~~\nno end", "<pre><code>no end</code></pre>"),
        ("> said\n> **so**", "<blockquote><p>said\n<strong>so</strong></p></blockquote>"),
        ("---", "<hr>"),
        ("a `<i>` and *b* 2*3*4", "<p>a <code>&lt;i&gt;</code> and <em>b</em> 2*3*4</p>"),
    ],
)
def test_blocks_and_marks(text: str, html: str) -> None:
    assert render(text) == html


def test_a_table() -> None:
    html = render("| a | b |\n|---|---|\n| 1 | <2> |\nafter")
    assert "<thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>&lt;2&gt;</td></tr></tbody>" in html
    assert html.endswith("<p>after</p>")


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        '<img src=x onerror="alert(1)">',
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert`1`)",
        "[x](data:text/html,<script>)",
        '[x](https://a.example/"onmouseover="alert)',
        "![x](https://a.example/pixel.png)",
        "![x](../../other/secret.svg)",
        '![" onerror="x](a.svg)',
        "**<b onclick=x>**",
    ],
)
def test_nothing_of_the_text_becomes_markup(text: str) -> None:
    seen = Tags()
    seen.feed(str(render(text, pictures="/card/")))
    assert {tag for tag, _ in seen.found} <= {"p", "a", "img", "span", "strong"}
    for tag, attributes in seen.found:
        assert set(attributes) <= {"href", "rel", "src", "alt", "class", "loading"}, tag
        assert attributes.get("href", "https://").startswith("https://")
        assert re.fullmatch(r"/card/[a-z]+[.]svg", attributes.get("src", "/card/a.svg"))


def test_links_and_pictures() -> None:
    assert (
        render("[a](https://b.example)")
        == '<p><a href="https://b.example" rel="noopener noreferrer nofollow">a</a></p>'
    )
    assert '<img class="picture" src="/card/a.svg" alt="A" loading="lazy">' in render("![A](a.svg)", pictures="/card/")
    assert "<img" not in render("![A](a.svg)")


@pytest.mark.parametrize("piece", ["[", "![", "**", "*a ", "`", "> ", "- ", "|-", "#", "[](", "~~~\n"])
def test_a_hostile_text_costs_no_more_than_its_length(piece: str) -> None:
    began = time.process_time()
    render(piece * 20_000)
    assert time.process_time() - began < 5

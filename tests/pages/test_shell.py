"""What every page shares: headers, static files, error pages, twins."""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from pathlib import Path

import plaudit.web.pages
from plaudit.web.pages import shell
from plaudit.web.pages.shell import Column, Table, twin

FOLDER = Path(plaudit.web.pages.__file__).parent


def test_no_template_has_inline_script_or_style() -> None:
    templates = sorted((FOLDER / "templates").glob("*.html"))
    assert len(templates) >= 7
    for template in templates:
        text = template.read_text()
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|\|safe", text), template.name
        assert not re.search(r"<script(?![^>]*\ssrc=)", text), template.name


def test_what_the_pages_need_is_in_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    packed = project["tool"]["setuptools"]["package-data"]["plaudit"]
    files = [*(FOLDER / "templates").iterdir(), *(FOLDER / "static").iterdir()]
    assert {f"**/*{file.suffix}" for file in files} <= set(packed)


def test_every_page_and_error_forbids_what_it_does_not_need(console) -> None:
    root = console.person("Root", "admin")
    for answer in (
        root.get("/runs"),
        root.get("/nothing"),
        root.get("/runs/run_0"),
        root.get("/runs?as=json"),
        console.visitor().get("/sign-in"),
    ):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"


def test_static_files_are_named_by_their_content_and_kept(console) -> None:
    page = console.visitor().get("/sign-in").text
    addresses = re.findall(r'"(/static/[^"]+)"', page)
    assert {address.rpartition(".")[2] for address in addresses} == {"css", "js", "svg"}
    for address in addresses:
        answer = console.visitor().get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-type"].split(";")[0] in shell.TYPES.values()
    stale = re.sub(r"\.[0-9a-f]{12}\.", ".000000000000.", addresses[0])
    assert console.visitor().get(stale).status_code == 404
    assert console.visitor().get("/static/../shell.py").status_code == 404


def test_an_error_is_a_page_for_a_browser_and_json_for_a_program(console) -> None:
    browser = console.visitor()
    page = browser.get("/nothing")
    assert page.status_code == 404
    assert "<h1>Nothing here</h1>" in page.text
    assert browser.get("/nothing", accept="*/*").json()["error"]["code"] == "not_found"
    assert browser.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert browser.client.delete("/runs").status_code == 405
    wrong = console.person("Ada", "lead").get("/runs?as=xml")
    assert (wrong.status_code, "choose json or csv" in wrong.text) == (422, True)


def test_a_bug_is_a_page_that_says_nothing_of_it(console, monkeypatch) -> None:
    ada = console.person("Ada", "lead")

    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("plaudit.web.pages.runs._listed", broken)
    answer = ada.get("/runs")
    assert answer.status_code == 500
    assert "The service failed" in answer.text
    assert "secret detail" not in answer.text


def test_twins_hold_the_rows_and_no_formula() -> None:
    rows = [{"name": "=1+1", "n": -1.5, "other": 3}, {"name": 'a,\n"b"', "n": None}]
    table = Table("t", "T", (Column("name", "Name"), Column("n", "N", "number")), rows, "")
    keys = [column.key for column in table.columns]
    assert json.loads(twin("json", "t", keys, rows).body) == {
        "t": [{"name": "=1+1", "n": -1.5}, {"name": 'a,\n"b"', "n": None}]
    }
    answer = twin("csv", "t", keys, rows)
    assert list(csv.reader(io.StringIO(bytes(answer.body).decode()))) == [
        ["name", "n"],
        ["'=1+1", "-1.5"],
        ['a,\n"b"', ""],
    ]
    assert 'filename="t.csv"' in answer.headers["content-disposition"]

"""The way in and out, who may open what, and that no other site can send our forms."""

from __future__ import annotations

import stat

import pytest

from plaudit.domain import DEFAULT_PROJECT, AuditEntry, Invitation, Person, Role, utc_now
from plaudit.loop import govern, people
from plaudit.web.app import PAGES

PARTS = {"{name}": "nothing.css", "{run_id}": "run_0"}


def address(template: str) -> str:
    for part, value in PARTS.items():
        template = template.replace(part, value)
    return template


def test_a_link_shows_who_it_is_for_signs_in_by_its_button_and_works_once(console) -> None:
    secret = console.link("Ada", "lead")
    visitor = console.visitor()
    assert visitor.get("/runs").headers["location"] == "/sign-in"
    for _ in range(2):  # a preview by a mail program uses nothing up
        assert "Sign in as Ada?" in visitor.get(f"/sign-in?invitation={secret}").text
    answer = visitor.post("/sign-in", {"invitation": secret})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie.split("; ")  # over plain HTTP a secure cookie would be dropped
    assert visitor.get("/").headers["location"] == "/runs"
    assert visitor.get("/runs").status_code == 200
    other = console.visitor()
    again = other.post("/sign-in", {"invitation": secret})
    assert again.status_code == 410
    assert "was used on" in again.text
    assert "set-cookie" not in again.headers
    assert other.get(f"/sign-in?invitation={secret}").status_code == 410
    assert other.get("/sign-in?invitation=pli_invented").status_code == 404
    assert secret not in str(console.store.find(Invitation)) + str(console.store.find(AuditEntry))
    assert stat.S_IMODE((console.home / "keys" / "cookie.key").stat().st_mode) == 0o600


def test_signing_out_here_and_everywhere(console) -> None:
    first, second = console.person("Ada", "lead"), console.person("Ada")
    assert first.post("/sign-out").headers["location"] == "/sign-in"
    assert first.get("/runs").status_code == 303
    assert second.get("/runs").status_code == 200
    third = console.person("Ada")
    kept = dict(third.client.cookies)
    third.post("/sign-out", {"everywhere": "yes"})
    third.client.cookies.update(kept)  # a thief kept the cookie
    assert third.get("/runs").status_code == 303
    assert second.get("/runs").status_code == 303
    assert console.person("Ada").get("/runs").status_code == 200


def test_a_removed_person_is_out_at_once_and_so_is_a_taken_role(console) -> None:
    console.link("Root", "admin")
    ada = console.person("Ada", "operator")
    people.invite(console.store, DEFAULT_PROJECT, "Ada", ["annotator"], utc_now())
    refused = ada.get("/runs")
    assert refused.status_code == 403
    assert "your roles are: annotator" in refused.text
    people.remove(console.store, DEFAULT_PROJECT, console.named("Ada").id, utc_now())
    assert ada.get("/runs").headers["location"] == "/sign-in"


def test_a_cookie_that_was_changed_is_nobodys(console) -> None:
    ada, root = console.person("Ada", "lead"), console.person("Root", "admin")
    ((name, value),) = ada.client.cookies.items()
    told, mac = value.rsplit(".", 1)
    forged = told.replace(console.named("Ada").id, console.named("Root").id)
    for wrong in (f"{forged}.{mac}", value[:-1], "x", "..", f"{told}.é"):
        answer = console.visitor().client.get("/people", headers={b"cookie": f"{name}={wrong}".encode("latin-1")})
        assert answer.headers["location"] == "/sign-in", wrong
    assert root.get("/people").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin"}, 303),
        ({"sec-fetch-site": "none"}, 303),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "OWN"}, 403),
        ({"origin": "OWN"}, 303),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({}, 403),
    ],
)
def test_a_form_of_another_site_is_refused(console, headers: dict[str, str], status: int) -> None:
    ada = console.person("Ada", "lead")
    sent = {name: value.replace("OWN", console.url) for name, value in headers.items()}
    assert ada.client.post("/sign-out", data={}, headers=sent).status_code == status
    assert ada.get("/runs").status_code == (200 if status == 403 else 303)


def test_every_page_wants_its_permission(console) -> None:
    visitors = {role: console.person(f"{role}-1", role) for role in Role}
    nobody = console.visitor()
    key = govern.create_key(console.store, DEFAULT_PROJECT, "k", [Role.ADMIN], now=utc_now())[1]
    assert len([1 for _, _, _, permission in PAGES if permission]) >= 6
    for method, template, _, permission in PAGES:
        if permission is None:
            continue
        path = address(template)
        call = "get" if method == "GET" else "post"
        assert getattr(nobody, call)(path).headers.get("location") == "/sign-in", path
        assert getattr(nobody, call)(path, authorization=f"Bearer {key}").headers.get("location") == "/sign-in", path
        twin = nobody.client.get(path, headers={"accept": "application/json"}) if method == "GET" else None
        assert twin is None or (twin.status_code, twin.json()["error"]["code"]) == (401, "unauthorized")
        for role, visitor in visitors.items():
            status = getattr(visitor, call)(path).status_code
            assert (status == 403) == (not govern.may([role], permission)), (path, role, status)
            assert status in (200, 403, 404, 422), (path, role, status)


def test_signed_in_is_no_key(console) -> None:
    root = console.person("Root", "admin")
    assert root.get("/v1/models").status_code == 401


def test_two_projects_do_not_see_each_other(console) -> None:
    other = console.project("prj_other")
    mine, theirs = console.run(), console.run(project_id=other)
    ada, eve = console.person("Ada", "admin"), console.person("Eve", "admin", project_id=other)
    for visitor, own, foreign, name in ((ada, mine, theirs, "Eve"), (eve, theirs, mine, "Ada")):
        assert own.id in visitor.get("/runs").text
        assert foreign.id not in visitor.get("/runs").text
        for more in ("", "?as=json", "?as=csv", "/card/accuracy.svg"):
            assert visitor.get(f"/runs/{foreign.id}{more}").status_code == 404
        assert f">{name}<" not in visitor.get("/people").text
    victim = next(one for one in console.store.find(Person) if one.name == "Eve")
    assert ada.post("/people/remove", {"person": victim.id}).status_code == 404
    assert eve.get("/people").status_code == 200


def test_a_person_without_roles_is_told_so(console) -> None:
    nobody = console.person("Nobody", "annotator")
    console.store.change(Person, console.named("Nobody").id, roles=())
    answer = nobody.get("/")
    assert answer.status_code == 200
    assert "Nothing here for you yet" in answer.text


def test_a_form_that_is_none_is_refused(console) -> None:
    visitor = console.visitor()
    for body in (b"\xff", b"invitation=%00", b"&".join(b"a=1" for _ in range(1001)), b"nothing"):
        answer = visitor.client.post("/sign-in", content=body, headers={"sec-fetch-site": "same-origin"})
        assert answer.status_code == 422, body
    big = visitor.client.post("/sign-in", content=b"a=" + b"x" * 1_000_001, headers={"sec-fetch-site": "same-origin"})
    assert big.status_code == 413

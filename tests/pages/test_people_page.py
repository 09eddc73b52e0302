"""The page People: inviting, inviting again, removing."""

from __future__ import annotations

import re

from plaudit.domain import AuditEntry


def link_in(text: str) -> str:
    found = re.search(r'value="[^"]*/sign-in\?invitation=(pli_[\w-]+)"', text)
    assert found is not None, text
    return found[1]


def test_a_person_is_invited_signs_in_and_is_removed(console) -> None:
    root = console.person("Root", "admin")
    shown = root.post("/people", {"name": " Ann ", "role-annotator": "yes", "role-lead": "yes"})
    secret = link_in(shown.text)
    assert secret not in root.get("/people").text  # shown once
    ann = console.visitor()
    assert ann.post("/sign-in", {"invitation": secret}).status_code == 303
    assert ann.get("/runs").status_code == 200
    assert ann.get("/people").status_code == 403
    rows = {row["name"]: row for row in root.get("/people?as=json").json()["people"]}
    assert (rows["Ann"]["roles"], rows["Ann"]["sign_in"]) == ("annotator, lead", "yes")
    assert rows["Ann"]["last_at"] is not None
    answer = root.post("/people/remove", {"person": console.named("Ann").id})
    assert (answer.status_code, answer.headers["location"]) == (303, "/people")
    assert ann.get("/runs").status_code == 303
    done = [entry for entry in console.store.find(AuditEntry) if entry.actor == "Root"]
    assert [entry.action for entry in done] == ["person.sign_in", "person.invite", "person.remove"]


def test_what_cannot_be_done_is_said(console) -> None:
    root = console.person("Root", "admin")
    for form, said in (
        ({"name": "Ann"}, "Ann has no role yet"),
        ({"name": "", "role-lead": "yes"}, "name is &#39;&#39;"),
        ({"name": "<b>", "role-lead": "yes"}, "A link for &lt;b&gt;"),
    ):
        assert said in root.post("/people", form).text
    alone = root.post("/people/remove", {"person": console.named("Root").id})
    assert alone.status_code == 409
    assert "the last admin" in alone.text

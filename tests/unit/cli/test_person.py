from __future__ import annotations

import json
from datetime import timedelta

from click.testing import CliRunner

from plaudit.cli.options import open_home
from plaudit.cli.person import person
from plaudit.cli.up import first_link
from plaudit.domain import Invitation, utc_now
from plaudit.errors import BadInput, NotFound
from plaudit.loop import people
from plaudit.store.database import open_store


def run(home, *arguments: str):
    return CliRunner().invoke(person, [*arguments, "--home", str(home)])


def test_a_person_is_invited_listed_signed_out_and_removed(tmp_path) -> None:
    run(tmp_path, "invite", "Root", "--role", "admin")
    options = ("--role", "lead", "--role", "annotator", "--days", "2", "--url", "https://console.example/", "--json")
    made = json.loads(run(tmp_path, "invite", "Ann", *options).output)
    address, _, secret = made["link"].partition("?invitation=")
    assert address == "https://console.example/sign-in"
    store = open_store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    invitation = store.first(Invitation, person_id=made["id"])
    assert invitation.expires_at - invitation.created_at == timedelta(days=2)
    assert people.accept(store, secret, utc_now()).roles == ("lead", "annotator")
    assert run(tmp_path, "sign-out", "Ann").exit_code == 0
    assert people.signed_in(store, made["id"], 0) is None
    assert run(tmp_path, "remove", "Ann").exit_code == 0
    listed = run(tmp_path, "list", "--json").output
    assert secret not in listed
    rows = {row["name"]: row for row in json.loads(listed)["people"]}
    assert (rows["Ann"]["roles"], rows["Root"]["roles"]) == ([], ["admin"])
    assert rows["Ann"]["removed_at"] is not None
    assert "Ann" in run(tmp_path, "list").output
    assert "http://127.0.0.1:8484/sign-in?invitation=pli_" in run(tmp_path, "invite", "Root").output
    store.close()


def test_what_cannot_be_done_says_so(tmp_path) -> None:
    assert isinstance(run(tmp_path, "invite", "Ann").exception, BadInput)
    assert isinstance(run(tmp_path, "remove", "Ann").exception, NotFound)
    assert isinstance(run(tmp_path, "sign-out", "Ann").exception, NotFound)
    assert run(tmp_path, "invite", "Ann", "--role", "king").exit_code == 2


def test_up_offers_a_link_until_an_admin_has_signed_in(tmp_path) -> None:
    opened = open_home(tmp_path)
    file = tmp_path / "keys" / "sign-in.link"
    first, second = first_link(opened), first_link(opened)
    assert first != second
    assert file.read_text().strip() == second
    assert file.stat().st_mode & 0o777 == 0o600
    assert second is not None
    people.accept(opened.store, second.partition("?invitation=")[2], utc_now())
    assert first_link(opened) is None
    assert not file.exists()
    opened.store.close()

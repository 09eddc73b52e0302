from __future__ import annotations

import re

from plaudit import errors
from plaudit.errors import PlauditError, Refused, Unavailable, UpstreamError


def every() -> list[type[PlauditError]]:
    found, todo = [], [PlauditError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == "plaudit.errors"]


def test_codes_are_unique_and_stable() -> None:
    codes = [kind.code for kind in every()]
    assert len(set(codes)) == len(codes)
    for kind in every():
        if kind is not PlauditError:
            assert kind.code == re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +(\w+)", errors.__doc__ or ""))
    assert drawn == {kind.__name__: kind.code for kind in every() if kind is not PlauditError}


def test_the_sentence_is_the_error() -> None:
    assert str(PlauditError("It broke.")) == PlauditError("It broke.").message == "It broke."
    assert Refused("No.", ["a", "b"]).reasons == ("a", "b")
    assert (Unavailable("x").retry_after_s, UpstreamError("x", 429, 3.0).status) == (1.0, 429)

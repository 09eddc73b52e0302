from __future__ import annotations

from plaudit.loop.prompts import default_family, question_sha256, text_of


def user(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def test_case_width_and_spacing_do_not_make_another_family() -> None:
    assert default_family([user("Reset  my\nＰhone")]) == default_family([user("reset my phone")])
    assert default_family([user("reset my phone")]) != default_family([user("reset my tablet")])


def test_the_family_is_the_last_question_and_the_question_all_of_them() -> None:
    first = [user("A"), {"role": "assistant", "content": "x"}, user("thanks")]
    second = [user("B"), {"role": "assistant", "content": "y"}, user("thanks")]
    assert default_family(first) == default_family(second)
    assert question_sha256(first) != question_sha256(second)


def test_system_prompts_and_answers_are_no_part_of_the_question() -> None:
    plain = [user("A"), {"role": "assistant", "content": "x"}, user("B")]
    dressed = [{"role": "system", "content": "be kind"}, user("A"), {"role": "assistant", "content": "z"}, user("b")]
    assert question_sha256(plain) == question_sha256(dressed)


def test_parts_are_read_and_a_conversation_without_a_user_has_a_family_too() -> None:
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}],
    }
    assert text_of(parts).split() == ["a", "b"]
    assert text_of({"role": "assistant", "content": None}) == ""
    assert default_family([{"role": "system", "content": "one"}]) != default_family(
        [{"role": "system", "content": "two"}]
    )

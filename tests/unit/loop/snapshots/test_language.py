from __future__ import annotations

import pytest

from plaudit.loop.snapshots.language import language


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "How do I reset the password of my account, and what is it for?"),
        ("de", "Wie kann ich das Passwort für mein Konto zurücksetzen und was ist der Grund?"),
        ("fr", "Je ne sais pas comment changer le mot de passe que vous avez pour ce compte."),
        ("es", "No sé cómo cambiar la contraseña de la cuenta y es lo más importante para el cliente."),
        ("it", "Non so come si cambia la password della mia casella, che è una cosa per gli esperti."),
        ("pt", "Não sei como mudar a senha da conta e não é mais uma coisa para o cliente."),
        ("nl", "Ik weet niet wat het wachtwoord van de rekening is, maar ik wil het ook niet."),
        ("ru", "Как мне сбросить пароль?"),
        ("ja", "パスワードを変更する方法は何ですか"),
        ("zh", "如何重置我的密码"),
        ("", "42 + 17"),
        ("", "ok"),
        ("", "def f(x): return x"),
    ],
)
def test_what_a_text_is_written_in(code: str, text: str) -> None:
    assert language(text) == code

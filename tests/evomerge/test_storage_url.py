"""Storage URLs: what is accepted, and that no password is ever shown."""

import pytest

from evomerge.errors import BadSearch
from evomerge.storage_url import has_password, is_shared, masked, parse, without_passwords


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_gets_its_driver(scheme):
    assert str(parse(f"{scheme}://ann@host:5433/merges")) == "postgresql+psycopg://ann@host:5433/merges"


def test_a_url_from_the_environment(monkeypatch):
    monkeypatch.setenv("MERGES", "postgresql://ann:secret@host/merges")
    assert parse("env:MERGES").host == "host"
    assert is_shared("env:MERGES")
    assert not has_password("env:MERGES")
    assert masked("env:MERGES") == "env:MERGES"
    monkeypatch.delenv("MERGES")
    with pytest.raises(BadSearch, match="variable MERGES is not set"):
        parse("env:MERGES")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:secret@host/db",
        "postgresql://ann@host/db?password=secret",
        "postgresql://h/d?sslpassword=secret",
    ],
)
def test_passwords_are_found_and_masked(url):
    assert has_password(url)
    assert "secret" not in masked(url)
    assert without_passwords("no entry with secret", parse(url)) == "no entry with ***"


def test_without_a_password():
    assert not has_password("postgresql://ann@host/db")
    assert not has_password("sqlite:///evomerge.db")
    assert not is_shared("sqlite:///evomerge.db")


@pytest.mark.parametrize(
    "url", ["postgres//user:secret@host", "postgresql://user:secret@host:port/db", "mysql://a:secret@b/c"]
)
def test_other_texts_are_refused_without_showing_a_password(url):
    with pytest.raises(BadSearch, match="expected for example sqlite") as error:
        parse(url)
    assert "secret" not in str(error.value)

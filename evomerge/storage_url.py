"""Storage URLs: what users write, what SQLAlchemy needs, what may be shown.

sqlite:///evomerge.db               a file
postgresql://user@host/database     a server; the password may come from PGPASSWORD or ~/.pgpass
env:NAME                            the URL that the environment variable NAME holds
"""

from __future__ import annotations

import os

import sqlalchemy as sa

from evomerge.errors import BadSearch

ENVIRONMENT = "env:"
SQLITE, POSTGRESQL = "sqlite", "postgresql"
EXAMPLES = "expected for example sqlite:///evomerge.db or postgresql://user@host/database"
_HIDDEN = "***"


def parse(storage: str) -> sa.URL:
    """Return the URL that opens ``storage``: variables looked up, PostgreSQL with its driver.

    Raises:
        BadSearch: it is no URL, names a variable that is not set, or another kind of database.
    """
    text = storage
    if storage.startswith(ENVIRONMENT):
        name = storage.removeprefix(ENVIRONMENT)
        text = os.environ.get(name, "")
        if not text:
            raise BadSearch(f"storage {storage}: the environment variable {name} is not set; {EXAMPLES}")
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):  # a port that is no number; the text may hold a password
        raise BadSearch(f"storage {masked(storage)}: not a URL; {EXAMPLES}") from None
    if url.drivername in ("postgres", POSTGRESQL):
        url = url.set(drivername=f"{POSTGRESQL}+psycopg")
    if url.get_backend_name() not in (SQLITE, POSTGRESQL):
        raise BadSearch(f"storage {masked(storage)}: {url.drivername} is not supported; {EXAMPLES}")
    return url


def is_shared(storage: str) -> bool:
    """Return whether other machines can open the database.

    Raises:
        BadSearch: see `parse`.
    """
    return parse(storage).get_backend_name() != SQLITE


def has_password(storage: str) -> bool:
    """Return whether the text itself holds a password."""
    if storage.startswith(ENVIRONMENT):
        return False
    return any(_passwords(parse(storage)))


def masked(storage: str) -> str:
    """Return a storage URL without its passwords."""
    if storage.startswith(ENVIRONMENT):
        return storage
    try:
        url = sa.make_url(storage)
    except (sa.exc.ArgumentError, ValueError):
        return "(not a URL)"
    hidden = {key: _HIDDEN for key in url.query if "password" in key}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def without_passwords(text: str, url: sa.URL) -> str:
    """Return ``text``, an error of the database's, with the passwords of ``url`` hidden."""
    for password in _passwords(url):
        text = text.replace(password, _HIDDEN)
    return text


def _passwords(url: sa.URL) -> list[str]:
    queried = [value for key, value in url.query.items() if "password" in key]
    return [str(value) for value in (url.password, *queried) if value]

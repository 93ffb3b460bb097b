"""Who may look: nobody from elsewhere without the token; and headers that keep a page at home.

On loopback there is no token, but requests whose `Host` is another name are refused, so that no web site can read the
dashboard by having its own name resolve to 127.0.0.1.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from flask import Flask, Response, redirect, request
from werkzeug.wrappers import Response as AnyResponse

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
COOKIE_SECONDS = 30 * 24 * 3600
REFUSED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>evomerge dashboard</title>
<p>This dashboard asks for a token. Open the address that <code>evomerge dashboard</code> printed; it ends in
<code>?token=...</code>.</p></html>"""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def protect(server: Flask, *, token: str | None, host: str, port: int, script_hashes: Sequence[str]) -> None:
    """Make ``server`` ask for ``token`` (if there is one) and send a strict content security policy.

    Args:
        token: what ``?token=`` must say once; a cookie remembers it.
        host: the address that is listened on; without a token the names of this machine alone are answered.
        port: cookies of dashboards on other ports have other names.
        script_hashes: of the inline scripts of Dash's page.
    """
    policy = _policy(script_hashes)
    cookie = f"evomerge-{port}"

    @server.before_request
    def check() -> AnyResponse | None:
        if request.method not in ("GET", "HEAD", "POST"):
            return Response("not here", status=405)
        if token is None:
            name = urlsplit(f"//{request.host}").hostname or ""
            return None if name in (*LOCAL_NAMES, host) else Response(f"no dashboard is called {name!r}", 403)
        if _equal(request.cookies.get(cookie), token):
            return None
        if not _equal(request.args.get("token"), token):
            return Response(REFUSED, status=401, mimetype="text/html")
        answer = redirect("/" + request.path.lstrip("/"), 303)  # the address without the token
        answer.set_cookie(cookie, token, max_age=COOKIE_SECONDS, httponly=True, samesite="Strict")
        return answer

    @server.after_request
    def add_headers(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        return response


def _equal(given: str | None, expected: str) -> bool:
    """Compare in constant time."""
    return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _policy(script_hashes: Sequence[str]) -> str:
    parts = {
        "default-src": "'none'",
        "script-src": " ".join(["'self'", *script_hashes]),
        "style-src": "'self' 'unsafe-inline'",  # Plotly and Dash set styles from scripts
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items())

"""The dashboard as a web application, and serving it."""

from __future__ import annotations

import logging
import secrets
import threading
from importlib.resources import files
from typing import Any

from dash import Dash
from flask import Flask
from waitress.server import create_server

from evomerge.dashboard import guard, pages
from evomerge.dashboard.callbacks import read_ahead, register
from evomerge.dashboard.links import search_path
from evomerge.dashboard.live import Live
from evomerge.errors import UserMistake

THREADS = 6
MOST_BODY_BYTES = 2**20  # of a request; the browser sends a few names and numbers
FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
{%metas%}
<meta name="color-scheme" content="light dark">
<title>{%title%}</title>
{%favicon%}
{%css%}
</head>
<body>
{%app_entry%}
<noscript>The dashboard needs JavaScript. `evomerge front SEARCH` prints the front without.</noscript>
<footer hidden>{%config%}{%scripts%}{%renderer%}</footer>
</body>
</html>"""


def make_app(live: Live, *, token: str | None, host: str, port: int) -> Flask:
    """Return the dashboard of ``live`` as a WSGI application; see `guard.protect` for the other arguments."""
    server = Flask("evomerge.dashboard")
    server.config["MAX_CONTENT_LENGTH"] = MOST_BODY_BYTES
    app = Dash(
        "evomerge.dashboard",
        server=server,
        assets_folder=str(files("evomerge.dashboard") / "assets"),
        title="evomerge",
        update_title="",
        index_string=FRAME,
        suppress_callback_exceptions=True,  # what callbacks fill is made by other callbacks
        serve_locally=True,
        compress=False,
    )
    app.layout = pages.frame
    register(app, live)
    guard.protect(server, token=token, host=host, port=port, script_hashes=app.csp_hashes())
    return server


class Server:
    """A dashboard that listens; `run` serves until `close`, or an interrupt."""

    def __init__(self, storage: str, *, host: str = "127.0.0.1", port: int = 8050, token: str | None = None) -> None:
        """Listen on ``host`` and ``port`` (0: any free one). Where others can reach it there is always a token.

        Raises:
            UserMistake: the storage cannot be opened, or the address cannot be listened on.
        """
        self.token = token or (None if guard.is_loopback(host) else secrets.token_urlsafe(24))
        self._live = live = Live(storage)
        logging.getLogger("waitress").setLevel(logging.ERROR)
        self._app: Flask | None = None

        def application(environ: Any, start: Any) -> Any:
            assert self._app is not None
            return self._app(environ, start)

        try:
            self._server: Any = create_server(application, host=host, port=port, threads=THREADS, ident=None)
        except OSError as error:
            raise UserMistake(
                f"cannot listen on {host}, port {port}: {error.strerror}; name others with --host and --port"
            ) from None
        self.host, self.port = host, int(self._server.effective_port)
        self._app = make_app(live, token=self.token, host=host, port=self.port)

    def address(self, search: str | None = None) -> str:
        """Return what to open in a browser, with the token if there is one."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        query = f"?token={self.token}" if self.token else ""
        return f"http://{name}:{self.port}{search_path(search) if search else '/'}{query}"

    def run(self, search: str | None = None) -> None:
        """Serve; somebody is about to look at ``search`` (by default the newest), so it is read at once."""
        threading.Thread(target=read_ahead, args=(self._live, search), daemon=True).start()
        self._server.run()

    def close(self) -> None:
        """Stop listening."""
        self._server.close()

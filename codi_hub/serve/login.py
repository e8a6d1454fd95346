"""The login of the page, where the server has a token: a form, and a cookie that says that the token was typed."""

from __future__ import annotations

import asyncio
import hmac

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

PATH = "/login"
COOKIE = "codi_page"
SECONDS = 30 * 24 * 3600  # that a cookie is kept
PAUSE = 1.0  # seconds before a wrong token is answered
FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>CoDi Hub</title><style>
:root {{color-scheme: light dark}}
body {{font: 16px system-ui, sans-serif; max-width: 22em; margin: 15vh auto; padding: 0 1em}}
input, button {{font: inherit; width: 100%; box-sizing: border-box; padding: .6em; margin-top: .6em}}
</style></head><body><h1>CoDi Hub</h1>
<form method="post" action="{path}"><label>Token of this server
<input type="password" name="token" autofocus required autocomplete="current-password"></label>
<button>Open</button></form><p role="alert">{message}</p></body></html>"""


class Login:
    """Who may see the page.

    Args:
        token: of the server; the cookie is a keyed hash, from which it cannot be had.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._cookie = hmac.new(self._token, b"codi page", "sha256").hexdigest()

    def knows(self, request: Request) -> bool:
        """Return whether a browser has logged in."""
        return hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self._cookie.encode())

    @staticmethod
    def form(message: str = "") -> Response:
        """Return the form."""
        return HTMLResponse(FORM.format(path=PATH, message=message), 401, {"Cache-Control": "no-store"})

    async def enter(self, request: Request) -> Response:
        """Answer the form: the page, or after a while the form again."""
        async with request.form(max_files=0, max_fields=1) as form:
            sent = str(form.get("token", ""))
        if not hmac.compare_digest(sent.encode(), self._token):
            await asyncio.sleep(PAUSE)
            return self.form("That is not the token.")
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, self._cookie, SECONDS, httponly=True, samesite="strict", secure=secure)
        return answer

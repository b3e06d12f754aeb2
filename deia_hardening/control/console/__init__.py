"""The console: a few static files at the control plane's own address, which call the same routes as everybody.

The page holds no data and no inline script; whatever it shows goes in as text, never as markup.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from deia_hardening.control.http import SAFE_HEADERS, Response

_FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/console.js": ("console.js", "text/javascript; charset=utf-8"),
    "/forms.js": ("forms.js", "text/javascript; charset=utf-8"),
    "/views.js": ("views.js", "text/javascript; charset=utf-8"),
    "/console.css": ("console.css", "text/css; charset=utf-8"),
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PATHS: Final = frozenset(_FILES)


def page(path: str) -> Response:
    """One of the console's files. Blocking: it is read from the package."""
    name, kind = _FILES[path]
    body = files(__package__).joinpath(name).read_bytes()
    headers = [(key, value) for key, value in SAFE_HEADERS if key != "content-security-policy"]
    headers += [
        ("content-security-policy", _POLICY),
        ("content-type", kind),
        ("content-length", str(len(body))),
    ]
    return Response(200, headers, body)

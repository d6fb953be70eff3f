"""`/` and `/static/...`: the web page. It is a client as any other, and reaches nothing but the routes they have."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response

from memspan.serve.errors import ApiError

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "static"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Read when the server starts: no path of a request ever reaches the file system.
_FILES = {file.name: file.read_bytes() for file in sorted(_FOLDER.iterdir()) if file.suffix in _KINDS}
PATHS = frozenset({"/", *(f"/static/{name}" for name in _FILES)})
"""What is the same for everybody and tells nothing, so that it needs no key: the page must be there to ask for one."""

# Only files of this server, no script or style inside the page, no frame around it, nothing sent elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


@router.get("/")
def page() -> Response:
    return static("index.html")


@router.get("/static/{name}")
def static(name: str) -> Response:
    """
    Raises:
        ApiError: 404.
    """
    if name not in _FILES:
        raise ApiError(404, "there is no such file of the page", "file_not_found")
    kind = _KINDS[Path(name).suffix]
    return Response(_FILES[name], headers={"Content-Security-Policy": _POLICY}, media_type=f"{kind}; charset=utf-8")

"""The page at `/`: static files, read once, with the headers that keep them harmless.

Owns which files there are and how they are sent; knows nothing of what they do, which is to use
the public API as any client would. Invariant: what is served was in memory before the first
request, so no path a client sends is ever looked up on a disk, and every answer carries the
content security policy.
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

FILES = Path(__file__).parents[1] / "ui"

INDEX = "index.html"

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Of what may lie in the folder; anything else there is a mistake."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text of a model can never become markup: a browser that knows this refuses innerHTML.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Kept, and asked for again each time: a new version shows at once, an old one costs no bytes.
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file in both encodings. `etag` is of its content."""

    data: bytes
    compressed: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> "StaticFile":
        """Read and compress it."""
        data = path.read_bytes()
        return cls(
            data,
            gzip.compress(data, compresslevel=9, mtime=0),
            MEDIA_TYPES[path.suffix],
            # Weak, because both encodings share it.
            f'W/"{hashlib.sha256(data).hexdigest()[:20]}"',
        )

    def response(self, request: Request) -> Response:
        """The file as this client can read it, or only the news that its copy still holds."""
        headers = {**HEADERS, "etag": self.etag}
        if self.etag in _listed(request, "if-none-match"):
            return Response(status_code=304, headers=headers)
        if "gzip" in _listed(request, "accept-encoding"):
            headers["content-encoding"] = "gzip"
            return Response(self.compressed, headers=headers, media_type=self.media_type)
        return Response(self.data, headers=headers, media_type=self.media_type)


def ui_router() -> APIRouter:
    """The routes of the page, whose files are read now."""
    files = read_files()
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return files[INDEX].response(request)

    @router.api_route("/ui/{name}", methods=["GET", "HEAD"])
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404)
        return files[name].response(request)

    return router


def read_files() -> Mapping[str, StaticFile]:
    """Every file of the page by its name."""
    return {path.name: StaticFile.read(path) for path in sorted(FILES.iterdir())}


def _listed(request: Request, header: str) -> set[str]:
    """The entries of a header that is a list; one with `q=0` is a no."""
    entries = ",".join(request.headers.getlist(header)).split(",")
    parts = [[part.strip() for part in entry.split(";")] for entry in entries]
    return {name for name, *parameters in parts if "q=0" not in parameters}

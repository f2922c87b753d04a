"""A web page that classifies an image, and the same as JSON for programs."""

import asyncio
import io
import logging
import re
from fnmatch import fnmatch
from functools import partial
from typing import Any

import anyio
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from medtransfer.core.errors import UserError
from medtransfer.report.render import png_uri, render
from medtransfer.serving.classifier import (
    NOTE,
    Classifier,
    ask,
    describe,
    note_of_answers,
    read_image,
    show_where,
    why_no_overlay,
)

log = logging.getLogger(__name__)

MAX_BYTES = 20_000_000
MAX_PIXELS = 30_000_000  # decoding as many with 16 bits takes 1.8 GB
UPLOAD_SECONDS = 60  # a client that has lost its connection would keep its place among those that wait
MAX_WAITING = 16  # images, each up to MAX_BYTES in memory
# The first bytes of forms, JSON, base64 of JPEG and PNG, data URLs, and a PNG from `curl -d`, which drops line breaks
# and zeros. A JPEG always has zeros.
WRAPPED = re.compile(rb"--|[{[\"]|/9j/|iVBOR|data:|(?!BM|RIFF|GIF8)\w{1,40}=|\x89PNG\x1a|\xff\xd8\xff[^\0\r\n]*\Z")
JOINED = re.compile(rb"(?:\xff\xd9|IEND\xaeB`\x82)&(?:\xff\xd8\xff|\x89PNG)")  # by `curl --data-binary`, given twice
HOW = "send the file itself as the body: curl --data-binary @image.jpg http://.../predict"
LOOPBACK = ("127.0.0.1", "localhost")
# The page is self-contained and talks only to this server.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def build_app(classifier: Classifier, hosts: tuple[str, ...] = LOOPBACK) -> FastAPI:
    """Return the server: `GET /` is the page, `POST /predict` takes an image file as the body, `GET /health` a check.

    Requests with other host names than `hosts` are refused, so that pages of other sites cannot reach the server.
    """
    # FastAPI's documentation pages would load scripts from the internet.
    app = FastAPI(title="medtransfer", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts])
    values = {"facts": classifier.facts, "note": NOTE, "max_bytes": MAX_BYTES}
    page = render("medtransfer.serving", "page.html.j2", **values, no_overlay=why_no_overlay(classifier))
    one_at_a_time = anyio.CapacityLimiter(1)  # one request uses every core
    waiting = 0

    # These run outside the thread pool, so that they answer while images wait.
    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        (first, *_) = error.errors()
        return JSONResponse({"detail": f"{first['loc'][-1]}: found {first['input']!r}; expected true or false"}, 422)

    @app.api_route("/", methods=["GET", "HEAD"])  # load balancers ask with HEAD
    async def show() -> HTMLResponse:
        return HTMLResponse(page, headers=HEADERS)

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> dict[str, str]:
        return {"status": "ok", "network_sha256": classifier.facts["network_sha256"]}

    @app.post("/predict")
    async def predict(request: Request, overlay: bool = False) -> JSONResponse:
        nonlocal waiting
        _refuse_foreign_page(request, hosts)
        if waiting >= MAX_WAITING:
            raise HTTPException(503, f"{waiting} images are already waiting; try again later")
        waiting += 1
        try:
            with anyio.fail_after(UPLOAD_SECONDS):
                content = await _read_body(request)
            answer = partial(_answer, classifier, content, overlay)
            return JSONResponse(await anyio.to_thread.run_sync(answer, limiter=one_at_a_time), headers=HEADERS)
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        except asyncio.CancelledError:
            raise HTTPException(503, "the server is stopping") from None
        except TimeoutError:
            raise HTTPException(
                408, f"the image did not arrive within {UPLOAD_SECONDS} seconds; send it again"
            ) from None
        except ClientDisconnect:
            raise HTTPException(400, "the connection ended before the whole image arrived") from None
        finally:
            waiting -= 1

    return app


def _refuse_foreign_page(request: Request, hosts: tuple[str, ...]) -> None:
    origin = request.headers.get("origin")
    if origin is None:
        return
    # Without the scheme, which only the browser knows if a proxy handles TLS. A proxy may also send its own Host.
    page = origin.partition("://")[2]
    name = re.sub(r":\d*$", "", page)
    named = any(fnmatch(name, host) for host in hosts if host not in LOOPBACK)
    if page != request.headers.get("host") and not named:
        proxy = f"; if a proxy serves that page, start with --allow-host {name}" if name else ""
        raise HTTPException(
            403, f"request from a page of {origin}; only this server's own page may send requests{proxy}"
        )


async def _read_body(request: Request) -> bytes:
    """Return the body; one that is too large is refused without reading it to the end."""
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise HTTPException(415, f"Content-Encoding: {encoding!r}; expected a body that is not compressed; {HOW}")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise HTTPException(413, f"more than {MAX_BYTES:,} bytes; send a smaller image")
    if not content:
        raise HTTPException(422, "no image; send an image file as the body")
    if WRAPPED.match(content):
        raise HTTPException(415, f"a form, JSON, base64 or a file altered by `curl -d`; {HOW}")
    if JOINED.search(content):
        raise HTTPException(415, f"several images, expected one per request; {HOW}")
    return bytes(content)


def _answer(classifier: Classifier, content: bytes, overlay: bool) -> dict[str, Any]:
    pixels = read_image(classifier, content, max_pixels=MAX_PIXELS)[None]
    answers = ask(classifier, pixels)
    answer = {
        **describe(classifier, answers[0]),
        "note": note_of_answers(classifier),
        **{key: classifier.facts[key] for key in ("scope", "synthetic", "likeness")},
    }
    if overlay and (why := why_no_overlay(classifier)):
        answer["no_overlay"] = why
    elif overlay:
        buffer = io.BytesIO()
        (drawn,) = show_where(classifier, [content], pixels, answers)
        drawn.save(buffer, format="PNG")
        answer["overlay"] = png_uri(buffer.getvalue())
    return answer

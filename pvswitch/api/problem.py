# SPDX-License-Identifier: Apache-2.0
"""Errors as `application/problem+json` (RFC 9457): raised anywhere below a handler, answered in one place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from pvswitch.api.schemas import Problem, ProblemError
from pvswitch.controller import StaleError
from pvswitch.errors import ApplyError, InvalidDocument
from pvswitch.revisions import StorageError

_log = structlog.get_logger(__name__)

# The problem types of this API; the type of an error is "/problems/" and the slug of its status.
SLUGS = {
    400: "bad-request",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    408: "timeout",
    409: "conflict",
    412: "stale",
    413: "too-large",
    415: "unsupported-media-type",
    422: "invalid",
    428: "precondition-required",
    429: "too-many-requests",
    431: "headers-too-large",
    500: "internal",
    503: "not-ready",
    507: "insufficient-storage",
}


class ApiProblem(Exception):
    """An error with its status; `errors` names single places in the body or the query."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[ProblemError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`status` is one of SLUGS; `detail` is one sentence with the remedy."""
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})


def not_found(what: str, name: str) -> ApiProblem:
    """Return a 404 for a resource."""
    return ApiProblem(404, f"there is no {what} {name!r}")


def unknown_in_query(what: str, key: str, name: str) -> ApiProblem:
    """Return a 422 for a query that names what isn't there."""
    return ApiProblem(
        422, f"there is no {what} {name!r}", [ProblemError(pointer=f"?{key}", detail=f"there is no such {what}")]
    )


def invalid(error: InvalidDocument) -> ApiProblem:
    """Return a 422 for a document with these errors."""
    items = [ProblemError(pointer=item.pointer, detail=item.message) for item in error.errors]
    if len(items) == 1:
        return ApiProblem(422, str(error), items)
    named = f": the first {len(items)} are named" if error.omitted else ""
    return ApiProblem(422, f"{len(items) + error.omitted} values are wrong{named}", items)


def body_of(problem: ApiProblem) -> str:
    """Return the JSON text of a problem."""
    body = Problem(
        type=f"/problems/{SLUGS[problem.status]}",
        title=HTTPStatus(problem.status).phrase,
        status=problem.status,
        detail=problem.detail,
        errors=problem.errors,
    )
    return json.dumps(body.model_dump(mode="json"))


def response(problem: ApiProblem) -> web.Response:
    """Return the answer for a problem."""
    return web.Response(
        status=problem.status,
        text=body_of(problem),
        content_type="application/problem+json",
        headers=problem.headers,
    )


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error of a request into problem+json."""
    try:
        return await handler(request)
    except ApiProblem as problem:
        return response(problem)
    except InvalidDocument as error:
        return response(invalid(error))
    except StaleError as error:
        return response(ApiProblem(412, str(error)))
    except ApplyError as error:
        place = ProblemError(pointer=error.pointer, detail=str(error))
        return response(ApiProblem(409, str(error), [place]))
    except StorageError as error:
        return response(ApiProblem(507, str(error)))
    except web.HTTPException as error:
        return response(_of_aiohttp(request, error))
    except Exception:
        _log.exception("request failed", method=request.method, path=request.rel_url.raw_path)
        return response(ApiProblem(500, "the switch failed to answer: see its log"))


def _of_aiohttp(request: web.Request, error: web.HTTPException) -> ApiProblem:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        detail = f"{request.method} is not possible on {request.path}: use {allowed}"
        return ApiProblem(405, detail, headers={"Allow": allowed})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return ApiProblem(413, "the body is larger than 8 MiB")
    if error.status == 404:
        return ApiProblem(404, f"there is nothing at {request.path}: see /openapi.json")
    status = error.status if error.status in SLUGS else 400
    return ApiProblem(status, error.reason)

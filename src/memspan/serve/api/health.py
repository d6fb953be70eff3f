"""`/health`, `/ready`, `/metrics`, `/openapi.json`: for whoever runs the server."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from memspan.serve.errors import ERRORS, ApiError
from memspan.serve.metrics import CONTENT_TYPE
from memspan.serve.schemas import Health
from memspan.serve.service import Admin, ServiceDep

router = APIRouter(responses={status: ERRORS[status] for status in (401, 403, 429, 503)}, tags=["server"])

PATHS = frozenset({"/health", "/ready"})
"""What an orchestrator asks; it needs no key, and tells nothing else."""


@router.get("/health")
async def health() -> Health:
    """The process answers."""
    return Health()


@router.get("/ready")
async def ready(service: ServiceDep) -> Health:
    """Questions are taken: the model is loaded, and the server is not stopping."""
    if not service.engine.is_ready:
        raise ApiError(503, "the server takes no questions now", "not_ready", retry_after=5)
    return Health()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(service: ServiceDep, _: Admin) -> Response:
    """What Prometheus reads."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> dict[str, Any]:
    """The description of all routes."""
    return request.app.openapi()

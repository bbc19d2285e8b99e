"""What the server says about itself in OpenAPI, which needs no model to say."""

from fastapi import FastAPI

from server.app import ROUTES
from server.openapi import declare_refusals
from server.routes import admin, health


def described_api() -> dict:
    """The schema with the routes that only some settings add."""
    app = FastAPI()
    for router in (*(module.router for module in ROUTES), health.metrics_router, admin.router):
        app.include_router(router)
    declare_refusals(app)
    return app.openapi()

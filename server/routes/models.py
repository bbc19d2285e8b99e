"""`GET /v1/models` and `GET /v1/models/{model}`.

Owns the model card; knows nothing of how the model runs. Invariant: every name listed here is
accepted as `model` by the endpoints.
"""

from fastapi import APIRouter, Request

from server.context import Context, context_of
from server.schemas.models import Architecture, ModelCard, ModelList

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(request: Request) -> ModelList:
    """The one model there is."""
    return ModelList(object="list", data=[_card(context_of(request))])


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, request: Request) -> ModelCard:
    """One model by its name, which may contain slashes."""
    context = context_of(request)
    context.check_model(model)
    return _card(context)


def _card(context: Context) -> ModelCard:
    return ModelCard(
        id=context.model_name,
        object="model",
        created=context.created,
        owned_by="janus-serve",
        root=context.model_name,
        parent=None,
        max_model_len=context.pipeline.config.backbone.max_positions,
        architecture=Architecture(
            input_modalities=["text", "image"], output_modalities=["text", "image"]
        ),
    )

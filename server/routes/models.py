"""`GET /v1/models` and `GET /v1/models/{model}`.

Owns the model card; knows nothing of how the model runs. Invariant: every name listed here is
accepted as `model` by the endpoints.
"""

from fastapi import APIRouter, Request

from janus_core.pipeline import TextOptions
from server.context import Context, context_of
from server.schemas.images import MAX_PARTIAL_IMAGES
from server.schemas.models import (
    Architecture,
    Defaults,
    Limits,
    ModelCard,
    ModelList,
    PictureDefaults,
    PictureGeometry,
    TextDefaults,
)

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
    config, settings = context.pipeline.config, context.settings
    drawing, answering = context.pipeline.drawing_defaults, TextOptions()
    return ModelCard(
        id=context.model_name,
        object="model",
        created=context.created,
        owned_by="janus-serve",
        root=context.model_name,
        parent=None,
        max_model_len=config.backbone.max_positions,
        architecture=Architecture(
            input_modalities=["text", "image"], output_modalities=["text", "image"]
        ),
        picture=PictureGeometry(
            size=f"{config.vq.image_size}x{config.vq.image_size}",
            num_codes=config.vq.num_codes,
            codes_per_row=config.vq.grid,
        ),
        defaults=Defaults(
            text=TextDefaults(temperature=answering.temperature or 0.0, top_p=answering.top_p),
            picture=PictureDefaults(
                guidance_scale=drawing.guidance,
                temperature=drawing.temperature,
                top_p=drawing.top_p,
            ),
        ),
        limits=Limits(
            max_choices=settings.max_choices,
            max_pictures=settings.max_pictures,
            max_partial_images=MAX_PARTIAL_IMAGES,
            max_images_per_request=settings.max_images_per_request,
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
        ),
    )

"""`/sdapi/v1`: the lists that clients of AUTOMATIC1111's web UI ask for when they connect.

Owns what there is to choose from, which is one of each or nothing; knows nothing of drawing.
Invariant: whatever is listed here is accepted by the drawing endpoints.
"""

import os

from fastapi import APIRouter, Request

from server.context import context_of
from server.json_route import JsonRoute
from server.pictures import SAMPLER_NAME
from server.schemas.sdapi import Options
from server.sd_drawing import check_checkpoint

router = APIRouter(prefix="/sdapi/v1", route_class=JsonRoute, tags=["sdapi"])

Item = dict[str, object]


@router.get("/options")
async def read_options(request: Request) -> Item:
    """The settings clients look at."""
    return {"sd_model_checkpoint": context_of(request).model_name, "samples_format": "png"}


@router.post("/options")
async def write_options(body: Options, request: Request) -> None:
    """Change nothing; another checkpoint than the one served is refused."""
    check_checkpoint(context_of(request), body.sd_model_checkpoint)


@router.get("/sd-models")
async def list_models(request: Request) -> list[Item]:
    """The one model there is."""
    name = context_of(request).model_name
    return [
        {
            "title": name,
            "model_name": name,
            "hash": None,
            "sha256": None,
            "filename": name,
            "config": None,
        }
    ]


@router.get("/samplers")
async def list_samplers() -> list[Item]:
    """The one way to draw."""
    return [{"name": SAMPLER_NAME, "aliases": [], "options": {}}]


@router.get("/schedulers")
async def list_schedulers() -> list[Item]:
    """Nothing is scheduled."""
    return [{"name": "automatic", "label": "Automatic", "aliases": None}]


@router.get("/upscalers")
async def list_upscalers() -> list[Item]:
    """How pictures get another size."""
    return [
        {"name": "Lanczos", "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
    ]


@router.get("/sd-vae")
@router.get("/latent-upscale-modes")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
@router.get("/prompt-styles")
@router.get("/loras")
@router.get("/script-info")
async def list_nothing() -> list[Item]:
    """There are none."""
    return []


@router.get("/embeddings")
async def list_embeddings() -> Item:
    """There are none."""
    return {"loaded": {}, "skipped": {}}


@router.get("/scripts")
async def list_scripts() -> Item:
    """There are none."""
    return {"txt2img": [], "img2img": []}


@router.get("/cmd-flags")
async def read_flags() -> Item:
    """None of that program's flags means anything here."""
    return {}


@router.get("/memory")
async def read_memory() -> Item:
    """The machine's memory in bytes; a device's is in the metrics."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page_bytes
    free = os.sysconf("SC_AVPHYS_PAGES") * page_bytes
    return {
        "ram": {"free": free, "used": total - free, "total": total},
        "cuda": {"error": "unavailable"},
    }


@router.post("/refresh-checkpoints")
@router.post("/refresh-vae")
@router.post("/refresh-loras")
@router.post("/reload-checkpoint")
@router.post("/unload-checkpoint")
async def do_nothing() -> None:
    """The model stays as it is."""

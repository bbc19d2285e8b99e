"""The bodies of AUTOMATIC1111's web UI API (`/sdapi/v1`), as far as they mean something here.

Owns its names for what to draw and the shapes of its replies; knows no engine. Field names and
defaults are those of `modules/api/models.py` there. Invariant: a script or extension that is not
here is refused, because a client that asks for one would take the picture for its work.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from server.schemas.common import INT64_MAX, Body, Bool, Float, Int, Reply
from server.schemas.images import MAX_PROMPT_CHARS, Guidance

MAX_NUMBER = 2**31 - 1
"""Of sizes and counts, so that their products are numbers; the settings allow far less."""

Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
Side = Annotated[Int, Field(ge=1, le=MAX_NUMBER)]
Count = Annotated[Int, Field(ge=1, le=MAX_NUMBER)]

_DIFFUSION_FIELDS = frozenset(
    {
        "steps", "sampler_name", "sampler_index", "scheduler", "eta", "s_churn", "s_tmax", "s_tmin",
        "s_noise", "s_min_uncond", "subseed", "seed_resize_from_h", "seed_resize_from_w",
        "restore_faces", "do_not_save_samples", "do_not_save_grid", "save_images", "clip_skip",
        "override_settings_restore_afterwards", "comments", "infotext", "disable_extra_networks",
        "refiner_checkpoint", "refiner_switch_at", "hr_upscaler", "hr_second_pass_steps",
        "hr_sampler_name", "hr_scheduler", "hr_checkpoint_name", "hr_additional_modules",
        "hr_prompt", "hr_negative_prompt", "hr_cfg", "hr_distilled_cfg", "distilled_cfg_scale",
        "firstphase_width", "firstphase_height", "script_args",
    }
)  # fmt: skip


def _number(value: object) -> object:
    """A boolean as the number its clients send instead."""
    return int(value) if isinstance(value, bool) else value


class DrawingOptions(Body):
    """What `txt2img` and `img2img` share. `seed` -1 draws one at random."""

    without_effect: ClassVar[frozenset[str]] = _DIFFUSION_FIELDS
    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "tiling": (False,),
        "styles": ([],),
        "subseed_strength": (0,),
        "script_name": ("", "None"),
        "alwayson_scripts": ({}, []),
    }

    prompt: Text = ""
    negative_prompt: Text | None = None
    seed: Annotated[Int, Field(ge=-1, le=INT64_MAX)] | None = None
    batch_size: Count | None = None
    n_iter: Count | None = None
    cfg_scale: Guidance | None = None
    width: Side | None = None
    height: Side | None = None
    override_settings: dict[str, Any] | None = None
    force_task_id: Annotated[str, Field(max_length=256)] | None = None
    send_images: Bool | None = None

    @property
    def num_pictures(self) -> int:
        """Of all batches."""
        return (self.batch_size or 1) * (self.n_iter or 1)

    @property
    def checkpoint(self) -> str | None:
        """The model the client wants for this request."""
        name = (self.override_settings or {}).get("sd_model_checkpoint")
        return name if isinstance(name, str) and name else None

    def final_size(self) -> tuple[int, int] | None:
        """Width and height asked for, None if neither is."""
        if self.width is None and self.height is None:
            return None
        side = self.width or self.height or 0
        return self.width or side, self.height or side


class TextToImage(DrawingOptions):
    """`txt2img`. The second pass of `enable_hr` is the enlargement alone."""

    without_effect: ClassVar[frozenset[str]] = _DIFFUSION_FIELDS | {"denoising_strength"}

    enable_hr: Bool | None = None
    hr_scale: Annotated[Float, Field(gt=0, le=64)] | None = None
    hr_resize_x: Annotated[Int, Field(ge=0, le=MAX_NUMBER)] | None = None
    hr_resize_y: Annotated[Int, Field(ge=0, le=MAX_NUMBER)] | None = None

    def final_size(self) -> tuple[int, int] | None:
        """After the enlargement, which a size of its own or else a factor decides."""
        size = super().final_size()
        if not self.enable_hr or size is None:
            return size
        if self.hr_resize_x and self.hr_resize_y:
            return self.hr_resize_x, self.hr_resize_y
        factor = 2.0 if self.hr_scale is None else self.hr_scale
        if self.hr_resize_x or self.hr_resize_y:
            factor = (
                self.hr_resize_x / size[0]
                if self.hr_resize_x
                else (self.hr_resize_y or 0) / size[1]
            )
        return round(size[0] * factor), round(size[1] * factor)


class ImageToImage(DrawingOptions):
    """`img2img`. With a `mask`, what it marks is drawn anew as a whole; without, a share of
    `denoising_strength`."""

    without_effect: ClassVar[frozenset[str]] = _DIFFUSION_FIELDS | {
        *(
            "resize_mode",
            "image_cfg_scale",
            "mask_blur",
            "mask_blur_x",
            "mask_blur_y",
            "mask_round",
        ),
        *("inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding"),
        *("initial_noise_multiplier", "include_init_images", "latent_mask"),
    }

    init_images: Annotated[list[str], Field(min_length=1, max_length=1)]
    mask: str | None = None
    inpainting_mask_invert: Annotated[Int, BeforeValidator(_number), Field(ge=0, le=1)] | None = (
        None
    )
    denoising_strength: Annotated[Float, Field(ge=0, le=1)] | None = None


class DrawnImages(Reply):
    """The reply to both: files in base64, the request, and `info`, JSON in a string."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class JobState(Reply):
    """What runs. A step of theirs is a code of ours."""

    skipped: bool
    interrupted: bool
    stopping_generation: bool
    job: str
    job_count: int
    job_timestamp: str
    job_no: int
    sampling_step: int
    sampling_steps: int


class Progress(Reply):
    """How far the oldest running drawing is; `current_image` is half-drawn, in base64."""

    progress: float
    eta_relative: float
    state: JobState
    current_image: str | None
    textinfo: str | None
    current_task: str | None


class ImageBody(Body):
    """`interrogate` and `png-info`: a file in base64 or as a data URL. There is one `model`."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"model"})

    image: str


class Caption(Reply):
    """The reply to `interrogate`."""

    caption: str


class PngInfo(Reply):
    """What a file says about how it was drawn."""

    info: str
    items: dict[str, str]
    parameters: dict[str, str]


class Options(Body):
    """Settings a client wants to change; only naming the served checkpoint changes nothing."""

    sd_model_checkpoint: str | None = None

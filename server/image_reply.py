"""From the engine's events to pictures, all at once or as a stream with half-drawn ones.

Owns the events of the stream and the sums of usage; knows no codes. Invariant: pixels become files
off the event loop, and a stream without an error has exactly one completed event per picture.
"""

import base64
import time
from collections.abc import AsyncIterator, Sequence

from starlette.responses import Response

from janus_core.engine.events import (
    CodeLogprob,
    Finished,
    ImageProgress,
    Pixels,
    Preview,
    Usage,
)
from janus_core.engine.forecast import Estimate
from janus_core.engine.request import ImageRequest
from server.context import Context
from server.dispatch import RequestHandle
from server.picture_file import picture_file
from server.pictures import PictureFormat, describe
from server.schemas.images import (
    CodeLogprobs,
    CompletedImageEvent,
    DrawingBody,
    EventKind,
    ImagesReply,
    ImagesUsage,
    InputTokensDetails,
    OutputTokensDetails,
    PartialImageEvent,
    Picture,
    ProgressEvent,
)
from server.sse import PING, ended_by_error, event_frame


class ImageReply:
    """The pictures of one HTTP request.

    `base_url` is where clients reach this server. `caption` is the text that was drawn if the
    client gave none; it comes back as `revised_prompt`.
    """

    def __init__(
        self,
        context: Context,
        requests: Sequence[ImageRequest],
        *,
        body: DrawingBody,
        style: PictureFormat,
        base_url: str,
        kind: EventKind = "image_generation",
        caption: str | None = None,
    ) -> None:
        self._context = context
        self._requests = requests
        self._body = body
        self._style = style
        self._base_url = base_url.rstrip("/")
        self._kind = kind
        self._caption = caption

    async def response(self, handle: RequestHandle) -> Response:
        """Wait for all pictures, then answer at once. Raises the error of one that failed."""
        pictures: dict[int, Picture] = {}
        usages: list[Usage] = []
        async for item in handle.events():
            assert item is not None, "only an idle limit makes silence visible"
            index, event = item
            if isinstance(event, Finished):
                pictures[index] = await self._picture(index, event)
                usages.append(event.usage)
        reply = ImagesReply(
            created=int(time.time()),
            data=[pictures[index] for index in range(len(self._requests))],
            background="opaque",
            output_format=self._style.format,
            quality=self._body.shown_quality,
            size=self._style.size,
            usage=usage_of_pictures(usages),
        )
        if identifier := self._body.safety_identifier or self._body.user:
            reply.safety_identifier = identifier
        return Response(reply.to_json(), media_type="application/json")

    def frames(self, handle: RequestHandle, *, ping_interval_s: float) -> AsyncIterator[bytes]:
        """The events of a stream. OpenAI's ends without `[DONE]`."""
        events = self._frames(handle, ping_interval_s=ping_interval_s)
        return ended_by_error(events, frame_of=lambda error: event_frame("error", error))

    async def _frames(
        self, handle: RequestHandle, *, ping_interval_s: float
    ) -> AsyncIterator[bytes]:
        async for item in handle.events(idle_s=ping_interval_s):
            if item is None:
                yield PING
                continue
            index, event = item
            if isinstance(event, Preview):
                yield await self._partial(index, event)
            elif isinstance(event, ImageProgress):
                yield self._progress(index, event)
            elif isinstance(event, Finished):
                yield await self._completed(index, event)

    async def _picture(self, index: int, event: Finished) -> Picture:
        file = await self._file(index, _pixels(event))
        picture = Picture(
            revised_prompt=self._caption, seed=self._seed(index), **self._codes(event)
        )
        if self._body.response_format == "url":
            picture.url = self._keep(file)
        else:
            picture.b64_json = _base64(file)
        return picture

    async def _partial(self, index: int, event: Preview) -> bytes:
        file = await self._file(index, event.pixels)
        payload = PartialImageEvent(
            type=f"{self._kind}.partial_image",
            b64_json=_base64(file),
            partial_image_index=event.index,
            created_at=int(time.time()),
            background="opaque",
            output_format=self._style.format,
            quality=self._body.shown_quality,
            size=self._style.size,
            image_index=index,
            seed=self._seed(index),
        )
        return event_frame(payload.type, payload.to_json())

    async def _completed(self, index: int, event: Finished) -> bytes:
        """The event has the bytes even if a URL was asked for: OpenAI's schema requires them."""
        file = await self._file(index, _pixels(event))
        payload = CompletedImageEvent(
            type=f"{self._kind}.completed",
            b64_json=_base64(file),
            created_at=int(time.time()),
            background="opaque",
            output_format=self._style.format,
            quality=self._body.shown_quality,
            size=self._style.size,
            image_index=index,
            seed=self._seed(index),
            usage=usage_of_pictures([event.usage]),
            **self._codes(event),
        )
        if self._body.response_format == "url":
            payload.url = self._keep(file)
        return event_frame(payload.type, payload.to_json())

    def _progress(self, index: int, event: ImageProgress) -> bytes:
        payload = ProgressEvent(
            type=f"{self._kind}.progress",
            created_at=int(time.time()),
            image_index=index,
            seed=self._seed(index),
            num_codes=event.num_codes,
            total_codes=event.total_codes,
            remaining_s=event.remaining_s,
        )
        return event_frame(payload.type, payload.to_json())

    async def _file(self, index: int, pixels: Pixels) -> bytes:
        """The file; a PNG says how it was drawn."""
        metadata = describe(
            self._requests[index],
            prompt=self._caption or self._body.caption or "",
            negative_prompt=self._body.negative_prompt,
            model_name=self._context.model_name,
            style=self._style,
            num_codes=self._context.pipeline.config.vq.num_codes,
        )
        return await picture_file(self._context, self._style, pixels, metadata=metadata)

    def _keep(self, file: bytes) -> str:
        """The URL of a file, which it has from now on."""
        id = self._context.results.put(file, self._style.media_type)
        return f"{self._base_url}/v1/images/{id}/content"

    def _seed(self, index: int) -> int:
        return self._requests[index].sampling.seed

    def _codes(self, event: Finished) -> dict[str, object]:
        """The fields about codes that the client asked for."""
        fields: dict[str, object] = {}
        if self._body.return_token_ids:
            fields["token_ids"] = list(event.codes)
        if self._body.logprobs:
            fields["logprobs"] = _logprobs(event.code_logprobs)
        return fields


def native_size_header(context: Context) -> dict[str, str]:
    """Tells a client that asked for another size what the model really drew."""
    native_px = context.pipeline.config.vq.image_size
    return {"x-janus-native-size": f"{native_px}x{native_px}"}


def estimate_header(estimate: Estimate | None) -> dict[str, str]:
    """Tells a client when, as of its request, its last picture would be there."""
    return {} if estimate is None else {"x-janus-estimated-s": f"{estimate.remaining_s:.1f}"}


def usage_of_pictures(usages: Sequence[Usage]) -> ImagesUsage:
    """Pictures of one request share its prompt, which counts once."""
    input_tokens = max(usage.prompt_tokens for usage in usages)
    output_tokens = sum(usage.output_tokens for usage in usages)
    return ImagesUsage(
        total_tokens=input_tokens + output_tokens,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        input_tokens_details=InputTokensDetails(text_tokens=input_tokens, image_tokens=0),
        output_tokens_details=OutputTokensDetails(image_tokens=output_tokens, text_tokens=0),
    )


def _pixels(event: Finished) -> Pixels:
    assert event.pixels is not None, "a completed picture has pixels"
    return event.pixels


def _base64(file: bytes) -> str:
    return base64.b64encode(file).decode("ascii")


def _logprobs(logprobs: Sequence[CodeLogprob | None]) -> CodeLogprobs:
    """By column, because a client wants tensors of them."""
    is_guided = any(each is not None and each.uncond is not None for each in logprobs)
    return CodeLogprobs(
        cond=[each and each.cond for each in logprobs],
        uncond=[each and each.uncond for each in logprobs] if is_guided else None,
        guided=[each and each.guided for each in logprobs],
    )

"""From the engine's events to pictures, all at once or as a stream with half-drawn ones.

Owns the events of the stream and the sums of usage; knows no codes. Invariant: pixels become files
off the event loop, and a stream without an error has exactly one completed event per picture.
"""

import time
from collections.abc import AsyncIterator, Sequence

from starlette.responses import Response

from janus_core.engine.events import Finished, Pixels, Preview, Usage
from janus_core.engine.request import ImageRequest
from server.context import Context
from server.dispatch import RequestHandle
from server.pictures import PictureFormat
from server.schemas.images import (
    CompletedImageEvent,
    ImageGenerationRequest,
    ImagesReply,
    ImagesUsage,
    InputTokensDetails,
    OutputTokensDetails,
    PartialImageEvent,
    Picture,
)
from server.sse import PING, ended_by_error, event_frame


class ImageReply:
    """The pictures of one HTTP request."""

    def __init__(
        self,
        context: Context,
        requests: Sequence[ImageRequest],
        *,
        body: ImageGenerationRequest,
        style: PictureFormat,
    ) -> None:
        self._context = context
        self._requests = requests
        self._body = body
        self._style = style
        native_px = context.pipeline.config.vq.image_size
        self.headers = {"x-janus-native-size": f"{native_px}x{native_px}"}
        """Tells a client that asked for another size what the model really drew."""

    async def response(self, handle: RequestHandle) -> Response:
        """Wait for all pictures, then answer at once. Raises the error of one that failed."""
        files: dict[int, str] = {}
        usages: list[Usage] = []
        async for item in handle.events():
            assert item is not None, "only an idle limit makes silence visible"
            index, event = item
            if isinstance(event, Finished):
                files[index] = await self._encode(index, _pixels(event))
                usages.append(event.usage)
        reply = ImagesReply(
            created=int(time.time()),
            data=[
                Picture(b64_json=files[index], revised_prompt=None, seed=request.sampling.seed)
                for index, request in enumerate(self._requests)
            ],
            background="opaque",
            output_format=self._style.format,
            quality=self._body.shown_quality,
            size=self._style.size,
            usage=_usage(usages),
        )
        return Response(reply.to_json(), media_type="application/json", headers=self.headers)

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
            elif isinstance(event, Finished):
                yield await self._completed(index, event)

    async def _partial(self, index: int, event: Preview) -> bytes:
        b64_json = await self._encode(index, event.pixels)
        payload = PartialImageEvent(
            type="image_generation.partial_image",
            b64_json=b64_json,
            partial_image_index=event.index,
            created_at=int(time.time()),
            background="opaque",
            output_format=self._style.format,
            quality=self._body.shown_quality,
            size=self._style.size,
            image_index=index,
            seed=self._requests[index].sampling.seed,
        )
        return event_frame(payload.type, payload.to_json())

    async def _completed(self, index: int, event: Finished) -> bytes:
        b64_json = await self._encode(index, _pixels(event))
        payload = CompletedImageEvent(
            type="image_generation.completed",
            b64_json=b64_json,
            created_at=int(time.time()),
            background="opaque",
            output_format=self._style.format,
            quality=self._body.shown_quality,
            size=self._style.size,
            image_index=index,
            seed=self._requests[index].sampling.seed,
            usage=_usage([event.usage]),
        )
        return event_frame(payload.type, payload.to_json())

    async def _encode(self, index: int, pixels: Pixels) -> str:
        """The file in base64; a PNG says how to draw it again."""
        request = self._requests[index]
        metadata = {
            "prompt": self._body.prompt,
            "seed": str(request.sampling.seed),
            "guidance_scale": str(request.guidance),
            "model": self._context.model_name,
        }
        return await self._context.offload.run(self._style.encode, pixels, metadata=metadata)


def _pixels(event: Finished) -> Pixels:
    assert event.pixels is not None, "a completed picture has pixels"
    return event.pixels


def _usage(usages: Sequence[Usage]) -> ImagesUsage:
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

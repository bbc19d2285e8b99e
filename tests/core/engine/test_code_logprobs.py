"""Log-probabilities of drawn codes, against the model asked for each code on its own."""

import pytest
import torch

from janus_core.engine.request import ImageRequest
from tests.core.engine.support import Requests, run
from tests.core.engine.test_constraint import drawn


def twin(reference: torch.nn.Module, request: ImageRequest, codes: list[int]) -> list[list[float]]:
    """Conditional, unconditional and guided log-probability of each code, by a forward pass of
    transformers over the whole sequence."""
    logits = []
    for prompt in (request.token_ids, request.uncond_token_ids):
        words = reference.get_input_embeddings()(torch.tensor([prompt]))
        fed = reference.prepare_embeddings_for_image_generation(torch.tensor([codes[:-1]]))
        states = reference.model.language_model(inputs_embeds=torch.cat((words, fed), 1))
        logits.append(
            reference.model.generation_head(states.last_hidden_state[0, len(prompt) - 1 :])
        )
    cond, uncond = logits
    guided = uncond + request.guidance * (cond - uncond)
    picked = torch.tensor(codes)[:, None]
    return [x.log_softmax(-1).gather(1, picked).flatten().tolist() for x in (cond, uncond, guided)]


@pytest.fixture(scope="module")
def reference(tiny_checkpoint):
    from transformers import JanusForConditionalGeneration

    return JanusForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)


@torch.no_grad()
def test_they_equal_those_of_transformers(requests_for: Requests, reference) -> None:
    wanted = requests_for.image("w", sampling=drawn(1, top_k=20), code_logprobs=True)
    others = [
        requests_for.image("i", "a blue star", sampling=drawn(2)),
        requests_for.image("u", guidance=None, sampling=drawn(3), code_logprobs=True),
        requests_for.image("v", guidance=None, sampling=drawn(4)),
        requests_for.image("x", "a star", guidance=2.0, sampling=drawn(5), code_logprobs=True),
        requests_for.text("t", logprobs=2),
    ]
    log = run(requests_for.engine(), wanted, *others)
    for request in (wanted, others[3]):
        found = log[request.id].end.code_logprobs
        cond, uncond, guided = twin(reference, request, log[request.id].codes)
        assert [entry.cond for entry in found] == pytest.approx(cond, abs=1e-3)
        assert [entry.uncond for entry in found] == pytest.approx(uncond, abs=1e-3)
        assert [entry.guided for entry in found] == pytest.approx(guided, abs=1e-3)
    unguided = log["u"].end.code_logprobs
    assert len(unguided) == 16
    assert all(entry.uncond is None and entry.guided == entry.cond for entry in unguided)
    assert log["i"].end.code_logprobs == log["v"].end.code_logprobs == ()


def test_asking_changes_nothing_and_forced_codes_have_none(requests_for: Requests) -> None:
    plain = requests_for.image("i", sampling=drawn(1))
    codes = run(requests_for.engine(), plain)["i"].codes
    forced = tuple(code if place % 3 else None for place, code in enumerate(codes))
    request = requests_for.image("i", sampling=drawn(1), code_logprobs=True, forced_codes=forced)
    end = run(requests_for.engine(), request)["i"].end
    assert list(end.codes) == codes
    assert [entry is None for entry in end.code_logprobs] == [code is not None for code in forced]

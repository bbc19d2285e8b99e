"""The smallest step there is, to tell a broken machine from a request that cannot be computed.

Owns its plan; knows no tensors. Invariant: it touches no position of any request, because it runs
in the spare slot behind the pool, where padding is written.
"""

from janus_core.engine.plan import StepPlan
from janus_core.engine.request import SamplingParams, TextRequest
from janus_core.engine.sequence import RequestState, Role, Sequence
from janus_core.engine.settings import SLOT_UNIT
from janus_core.engine.slots import Slot


def probe_plan(bos_id: int, *, spare_start: int) -> StepPlan:
    """One token, and one word sampled after it."""
    tokens = [bos_id]
    slot = Slot(spare_start, SLOT_UNIT, tokens, salt="")
    sequence = Sequence(Role.TEXT, tokens, tokens, salt="", slot=slot)
    sampling = SamplingParams(seed=0, temperature=0.0)
    request = TextRequest(id="probe", token_ids=(bos_id,), sampling=sampling, max_tokens=1)
    state = RequestState(request, (sequence,), order=0, max_positions=1, submitted_s=0.0)
    plan = StepPlan()
    plan.add_prefill(state, sequence, 1)
    plan.sampling.append(state)
    return plan

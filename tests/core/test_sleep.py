"""Sleeping gives memory back, and what is woken computes what it did before."""

import subprocess
import sys
from pathlib import Path

import pytest

from janus_core.engine.events import Finished, Pixels
from janus_core.engine.settings import EngineSettings
from janus_core.errors import AsleepError
from janus_core.options import ImageOptions
from janus_core.pipeline import Pipeline

OPTIONS = ImageOptions(seed=7, n=1)


def drawn(pipeline: Pipeline, prompt: str = "a red circle") -> Pixels:
    requests = pipeline.image_requests(prompt, OPTIONS, request_id=f"draw-{prompt}")
    (finished,) = [each for each in pipeline.run(requests) if isinstance(each, Finished)]
    assert finished.pixels is not None
    return finished.pixels


@pytest.fixture
def pipeline(tiny_checkpoint: Path) -> Pipeline:
    return Pipeline.load(str(tiny_checkpoint), settings=EngineSettings(kv_positions=512))


@pytest.mark.parametrize("keep_weights", [True, False])
def test_the_same_seed_draws_the_same_picture_after_waking(
    pipeline: Pipeline, keep_weights: bool
) -> None:
    before = drawn(pipeline)
    pipeline.sleep.fall_asleep(keep_weights=keep_weights)
    assert pipeline.sleep.is_asleep
    with pytest.raises(AsleepError):
        pipeline.decode_codes([0] * pipeline.config.vq.num_codes)
    pipeline.sleep.wake()
    assert not pipeline.sleep.is_asleep
    assert (drawn(pipeline) == before).all()
    pipeline.decode_codes([0] * pipeline.config.vq.num_codes)
    pipeline.engine.check_integrity()


def test_falling_asleep_again_lets_go_of_the_weights_too(pipeline: Pipeline) -> None:
    before = drawn(pipeline)
    pipeline.sleep.fall_asleep(keep_weights=True)
    assert pipeline.sleep._kept is not None
    pipeline.sleep.fall_asleep(keep_weights=False)
    assert pipeline.sleep._kept is None
    pipeline.sleep.wake()
    pipeline.sleep.wake()
    assert (drawn(pipeline) == before).all()


def test_nothing_sleeps_on_live_requests(pipeline: Pipeline) -> None:
    (request,) = pipeline.image_requests("a", OPTIONS, request_id="live")
    pipeline.engine.submit(request)
    pipeline.engine.step()
    with pytest.raises(AssertionError):
        pipeline.sleep.fall_asleep(keep_weights=True)
    assert not pipeline.sleep.is_asleep


def test_a_checkpoint_that_is_gone_leaves_it_asleep(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = drawn(pipeline)
    pipeline.sleep.fall_asleep(keep_weights=False)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline.sleep, "_directory", Path("/nowhere"))
        with pytest.raises(Exception, match="nowhere"):
            pipeline.sleep.wake()
    assert pipeline.sleep.is_asleep
    pipeline.sleep.wake()
    assert (drawn(pipeline) == before).all()


def test_caches_can_be_forgotten(pipeline: Pipeline) -> None:
    drawn(pipeline)
    assert pipeline.engine.stats().kv_cached > 0
    pipeline.engine.reset_caches()
    stats = pipeline.engine.stats()
    assert (stats.kv_cached, stats.vision_cache_bytes) == (0, 0)
    hits = stats.prefix_hits
    drawn(pipeline)
    # What is left is the prefix of the unconditional sequence, within the request itself.
    assert pipeline.engine.stats().prefix_hits == hits
    pipeline.engine.check_integrity()


MEASURE = """
import sys
from server.heap import loading
with loading():
    from janus_core.engine.settings import EngineSettings
    from janus_core.pipeline import Pipeline
    from tests.core.test_sleep import drawn
    settings = EngineSettings(kv_positions=16384, threaded_rendering=True)
    pipeline = Pipeline.load(sys.argv[1], threads=1, settings=settings)

def rss_mib():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 2**20

before = drawn(pipeline)
# As after much work: zeros have no memory until they are written.
kv = pipeline.engine._runner._kv._kv_L2KPH
pool = kv.fill_(1).nbytes / 2**20
del kv
awake = rss_mib()
pipeline.sleep.fall_asleep(keep_weights=True)
dozing = rss_mib()
pipeline.sleep.fall_asleep(keep_weights=False)
asleep = rss_mib()
pipeline.sleep.wake()
assert (drawn(pipeline) == before).all()
pipeline.engine.close()
print(awake, dozing, asleep, pool)
"""


@pytest.mark.slow
def test_memory_really_goes_back_to_the_system(mini_checkpoint: Path) -> None:
    """On the embedded checkpoint, in a process of its own, by what the system says."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(mini_checkpoint)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    awake, dozing, asleep, pool = map(float, done.stdout.split())
    assert dozing < awake - 0.9 * pool
    weights = (mini_checkpoint / "model.safetensors").stat().st_size / 2**20
    assert asleep < dozing - 0.8 * weights

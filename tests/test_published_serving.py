"""Published figures of whole deployments come out of their stated set-ups."""

import pytest

from costmodel.planning.published import MAMBA3_PUBLISHED, deepseek_node, jet_nemotron, mamba3_baseline


@pytest.mark.parametrize("library", ["sglang", "vllm", "trtllm"])
def test_deepseeks_nodes_decode_and_prefill_within_a_fifth_of_what_was_published(library: str) -> None:
    found = deepseek_node(library)
    assert found["decode_per_s"] == pytest.approx(found["published_decode_per_s"], rel=0.2)
    # A day's average, without the cache hits: what one batch at a time gives, whose communication shows.
    assert found["prefill_exposed_per_s"] == pytest.approx(found["published_prefill_per_s"], rel=0.2)
    assert found["prefill_exposed_with_hits_per_s"] == pytest.approx(73_700, rel=0.2)
    # The peak of two batches that take turns lies above any average.
    assert found["prefill_hidden_per_s"] > 1.3 * found["published_prefill_per_s"]


@pytest.mark.parametrize(("context", "published"), [(65_536, 47.3), (262_144, 53.6)])
def test_jet_nemotrons_speed_up_is_that_of_its_cache(context: int, published: float) -> None:
    found = jet_nemotron(context)
    assert found["published_ratio"] == pytest.approx(published, rel=0.001)
    assert (
        found["qwen_cache_bytes"] == context * 2 * 8 * 128 * 2 * 28
    )  # tokens · (K, V) · heads · width · bytes · layers
    assert found["cache_ratio"] == pytest.approx(published, rel=0.05)
    # Beside the cache, 433 sequences have states and products that 9 have not.
    assert 0.7 * published < found["ratio"] < found["batch_ratio"]


def test_mamba3s_baseline_computes_what_lost_its_pages_over_and_over() -> None:
    short, long = mamba3_baseline(4096), mamba3_baseline(16_384)
    assert long["caches_bytes"] == 128 * 2**30  # 128 sequences · 32k tokens · 32 KiB
    assert long["caches_bytes"] > long["room_bytes"] > short["caches_bytes"]
    assert long["preemptions"] > 1000 > short["preemptions"] == 0
    assert long["recomputed"] > 10 > short["recomputed"] == 0
    assert long["seconds"] > 1.2 * long["cached_s"] > 1.2 * long["unlimited_s"]
    # 16 times the bytes in 16.7 times the seconds: a fifth of them goes into prompts that were there already.
    assert MAMBA3_PUBLISHED[16_384] / MAMBA3_PUBLISHED[4096] == pytest.approx(16.7, rel=0.01)
    assert long["published_bytes_per_s"] == pytest.approx(0.52 * 3.35e12, rel=0.02)
    assert short["seconds"] == pytest.approx(MAMBA3_PUBLISHED[4096], rel=0.2)
    assert long["seconds"] == pytest.approx(MAMBA3_PUBLISHED[16_384], rel=0.2)

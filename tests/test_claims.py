"""Published claims: their files, what is measured, how they are judged, and that what was reproduced stays so."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from costmodel.analysis.claims import Claim, claim_files, judge, judged, load_claims, read_claims, tally
from costmodel.analysis.claims import record as record_module
from costmodel.analysis.claims.compiled import after_clearing
from costmodel.analysis.claims.curves import exponent, knee, slope
from costmodel.analysis.claims.judging import CONDITIONAL, CONTRADICTED, REPRODUCED, UNSTATED, evaluate
from costmodel.analysis.claims.quantities import QUANTITIES
from costmodel.analysis.claims.record import changes, record_text, recorded
from costmodel.analysis.claims.setups import SetUp, calibration_of, device_of, model_of, precision_of, sequences
from costmodel.analysis.claims.steps import _counted_kernels, kernels_of, time
from costmodel.analysis.claims.values import Value, counted, cut, less, more
from costmodel.analysis.claims.wording import commands
from costmodel.analysis.comparisons import papers_folder
from costmodel.calibration_files import find_calibration
from costmodel.cli import app
from costmodel.errors import BadInput
from costmodel.hardware import load_hardware
from costmodel.kernels.attention import Attention, attention
from costmodel.mixers import gqa
from costmodel.planning.engine_constants import engine_constants
from costmodel.prediction import predict
from costmodel.step import Precision, Step
from costmodel.transfers import between_libraries

KEYS = ["id", "mechanism", "source", "setup", "claimed", "predicted", "low", "high", "ratio", "verdict", "reason"]
PAPERS = [
    "kimi-linear",
    "deepseek-v3.2",
    "indexcache",
    "deepseek-v4",
    "nsa",
    "moba",
    "msa",
    "minimax",
    "infllm-v2",
    "mamba",
    "mamba-3",
    "rwkv-7",
    "qwen3.5",
    "jet-nemotron",
    "nemotron",
    "samba",
    "jamba",
    "fast-dllm",
    "d2f",
    "d3llm",
    "diffusiongemma",
    "diffusion-serving",
    "flash-attention",
    "flashmla",
    "constant-tokens",
    "deepseek-serving",
]
COUNTED = {
    "id": "mha-cache",
    "mechanism": "mha",
    "what": "cache of one layer",
    "kind": "text",
    "quantity": "cache-bytes",
    "setup": {"mixer": {"kind": "gqa", "heads": 2, "kv_heads": 2, "head_dim": 64}, "context": 1000},
    "unit": "B",
    "claimed": 512_000,
}


def written(folder: Path, *claims: dict[str, Any], **more: Any) -> Path:
    path = folder / "claims.yaml"
    whole = {"schema": 1, "title": "t", "source": "s", "tolerance": 0.15, "claims": list(claims), **more}
    path.write_text(json.dumps(whole))  # which is YAML, too
    return path


def verdict(folder: Path, **changed: Any) -> str:
    [claim] = read_claims(written(folder, {**COUNTED, **changed}))
    return judge(claim)["verdict"]


@pytest.fixture(autouse=True)
def _no_user_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COSTMODEL_DATA", str(tmp_path / "user"))


@pytest.fixture(scope="module")
def every_claim() -> list[Claim]:
    return load_claims()


def test_every_paper_that_was_promised_has_claims_and_ids_are_unique(every_claim: list[Claim]) -> None:
    assert set(PAPERS) <= {path.parent.name for path in claim_files()}
    ids = [claim.id for claim in every_claim]
    assert len(ids) == len(set(ids))
    assert all(claim.source and claim.what and claim.tolerance <= 0.15 for claim in every_claim)


def test_every_claim_has_a_recorded_verdict(every_claim: list[Claim]) -> None:
    assert {claim.id for claim in every_claim} == set(recorded())


def test_what_was_reproduced_stays_so(every_claim: list[Claim]) -> None:
    before = recorded()
    watched = [claim for claim in every_claim if before.get(claim.id) in (REPRODUCED, CONDITIONAL)]
    assert len(watched) > 50
    assert changes([judge(claim, fair=False) for claim in watched], before) == []


def test_the_page_tells_the_recorded_tally(every_claim: list[Claim]) -> None:
    before = recorded()
    stated = [before[claim.id] for claim in every_claim if not claim.uncertain and not claim.unstated]
    text = " ".join((Path(__file__).parent.parent / "docs" / "claims.md").read_text(encoding="utf-8").split())
    counts = [stated.count(verdict) for verdict in (REPRODUCED, CONDITIONAL, CONTRADICTED)]
    told = re.search(r"Of (\d+) claims that are certain .*?, (\d+) are reproduced .*? (\d+) are .*? (\d+) are", text)
    assert told is not None
    assert [int(number) for number in told.groups()] == [len(stated), *counts]


def test_a_claim_of_twice_the_number_is_not_reproduced(every_claim: list[Claim]) -> None:
    counts = [claim for claim in every_claim if not claim.setup.hardware and claim.relation == "equals"]
    assert len(counts) >= 8
    for claim in counts:
        doubled = claim._replace(claimed=tuple(2 * number for number in claim.claimed))
        assert judge(doubled, fair=False)["verdict"] not in (REPRODUCED, CONDITIONAL), claim.id


def test_each_number_of_a_claim_must_be_within_the_tolerance(tmp_path: Path) -> None:
    assert verdict(tmp_path) == REPRODUCED
    over = {"over": {"context": [1000, 2000]}}
    assert verdict(tmp_path, claimed=[512_000, 1_024_000], **over) == REPRODUCED
    assert verdict(tmp_path, claimed=[512_000, 1_300_000], **over) == CONTRADICTED
    assert verdict(tmp_path, claimed=600_000, tolerance=0.2) == REPRODUCED
    assert verdict(tmp_path, claimed=10_000, relation="at-least") == REPRODUCED
    assert verdict(tmp_path, claimed=10_000, relation="at-most") == CONTRADICTED


def test_a_condition_is_run_and_not_believed(tmp_path: Path) -> None:
    right = {"text": "the context is 2000", "setup": {"context": 2000}}
    wrong = {"text": "the context is 3000", "setup": {"context": 3000}}
    assert verdict(tmp_path, claimed=1_024_000, condition=right) == CONDITIONAL
    assert verdict(tmp_path, claimed=1_024_000, condition=wrong) == CONTRADICTED
    assert verdict(tmp_path, condition=wrong) == REPRODUCED  # as stated, it needs no condition
    assert verdict(tmp_path, unstated=["context"]) == UNSTATED


def test_kernels_of_another_implementation_are_less_certain_and_no_other_time() -> None:
    layer = {"kind": "gqa", "heads": 8, "kv_heads": 8, "head_dim": 128}
    own = SetUp(mixer=layer, hardware="h100-sxm", context=4096, phase="prefill", kernels=("attention",))
    of_another = time(own._replace(substitute=True))
    assert of_another.value == time(own).value
    spread = between_libraries()["prefill-attention"]
    assert math.log(of_another.high / of_another.value) > 1.28 * spread
    assert (time(own).basis, of_another.basis) == ("fitted", "transferred")


def test_a_block_for_every_tile_makes_a_started_round_of_a_product_a_whole_one() -> None:
    settings = ("ffns.ffn.d_ff=4096",)
    architecture = str(papers_folder() / "tilelang" / "one-gemm.yaml")
    product = SetUp(
        architecture=architecture,
        settings=settings,
        hardware="h100-sxm",
        phase="prefill",
        kernels=("down_proj",),
        context=8192,
    )
    tuned = product._replace(block_per_tile=True)
    assert time(product).value < time(tuned).value < 1.05 * time(product).value
    # 8448 rows of 128 are 66 times 64 tiles of 128 x 128: whole rounds of 132 units.
    even = (product._replace(context=8448), tuned._replace(context=8448))
    assert time(even[1]).value == pytest.approx(time(even[0]).value, rel=2e-3)


def test_what_was_cleared_before_a_call_is_written_back_in_it() -> None:
    setup = SetUp(architecture="llama-3.1-8b", hardware="h100-sxm", phase="prefill", context=512, kernels=("o_proj",))
    flushed = setup._replace(flushed=True)
    before, after = (after_clearing(each, kernels_of(each)) for each in (setup, flushed))
    left = sum(kernel.count * kernel.ideal.hbm_bytes for kernel in after) - sum(
        kernel.count * kernel.ideal.hbm_bytes for kernel in before
    )
    assert left == pytest.approx(load_hardware("h100-sxm").memory.l2.capacity)
    assert time(flushed).value > time(setup).value
    assert QUANTITIES["hbm-bytes"](flushed).value == QUANTITIES["hbm-bytes"](setup).value


def test_products_leave_in_the_format_that_the_set_up_names() -> None:
    setup = SetUp(architecture="llama-3.1-8b", hardware="h100-sxm", phase="prefill", context=512, kernels=("o_proj",))
    wide, narrow = (kernels_of(setup._replace(outputs=name))[0] for name in ("", "fp8"))
    assert (wide.ideal.written, narrow.ideal.written) == (512 * 4096 * 2, 512 * 4096)


def test_the_step_of_an_engine_is_as_uncertain_as_its_predictions_of_unseen_models() -> None:
    step = SetUp(architecture="llama-3.1-8b", hardware="h100-sxm", context=1024, engine="vllm")
    missed = engine_constants("vllm", load_hardware("h100-sxm")).spread["tpot"]
    assert math.log(time(step).high / time(step).value) > 1.28 * missed
    assert math.log(time(step._replace(engine="")).high / time(step._replace(engine="")).value) < 1.28 * missed


def test_a_set_up_may_name_one_launch_of_a_scan() -> None:
    """What TileLang times is the last of the five launches of Mamba-2's scan, not the scan."""
    mixer = {"kind": "mamba2", "heads": 8, "head_dim": 64, "state": 128}
    scan = SetUp(mixer=mixer, phase="prefill", context=4096, kernels=("chunk scan",), hardware="h100-sxm")
    [whole], [output] = kernels_of(scan), kernels_of(scan.changed({"kernels": ("output",)}))
    assert whole.launches == 5
    assert (output.name, output.launches) == ("output", 1)
    assert (output.module, output.instance) == (
        whole.module,
        whole.instance,
    )  # it is priced with the whole's parameters
    assert output.ideal.flops < whole.ideal.flops
    with pytest.raises(BadInput, match="'outputs' is none of"):
        kernels_of(scan.changed({"kernels": ("outputs",)}))


def test_an_engines_set_up_runs_that_engines_kernels() -> None:
    setup = SetUp(architecture="llama-3.1-8b", hardware="h20", engine="sglang")
    assert calibration_of(setup).library == "sglang"
    assert calibration_of(setup.changed({"library": "vllm"})).library == "vllm"
    assert calibration_of(setup.changed({"engine": ""})).library == "vllm"


def test_kernels_of_ampere_multiply_by_mma_sync_on_hopper() -> None:
    setup = SetUp(architecture="llama-3.1-8b", hardware="h100-sxm", calibrated_on="a100-sxm")
    whole = load_hardware("h100-sxm").compute
    slower = device_of(setup).compute
    assert slower.tensor["bf16"] == pytest.approx(0.629 * whole.tensor["bf16"])
    assert slower.tensor["fp8"] == whole.tensor["fp8"]
    assert slower.vector == whole.vector
    assert device_of(setup).generation == "ampere"  # and in the tiles of Ampere
    for other in ("h100-sxm", "b200-sxm", ""):
        assert device_of(setup._replace(calibrated_on=other)).compute == whole
        assert device_of(setup._replace(calibrated_on=other)).generation == "hopper"
    assert device_of(setup._replace(hardware="a100-sxm")).compute == load_hardware("a100-sxm").compute


def test_a_build_that_keeps_its_state_in_shared_memory_takes_longer() -> None:
    mixer = {"kind": "kda", "heads": 16, "d_k": 128, "d_v": 128, "decay_rank": 128}
    setup = SetUp(mixer=mixer, hardware="h100-sxm", library="vllm", context=8192, phase="prefill")
    setup = setup._replace(kernels=("chunk scan",))
    own = setup._replace(shared_state=True)
    assert [kernel.shape.scan.shared_state for kernel in kernels_of(own)] == [True]
    assert time(own).value > 1.2 * time(setup).value
    elsewhere = setup._replace(kernels=("q_proj",))
    assert kernels_of(elsewhere._replace(shared_state=True)) == kernels_of(elsewhere)


def test_a_benchmark_of_a_recurrence_s_kernels_alone_moves_no_state() -> None:
    mixer = {"kind": "retnet", "heads": 8, "d_k": 64, "d_v": 128}
    setup = SetUp(mixer=mixer, hardware="h100-sxm", context=512, batch=4, phase="prefill", kernels=("chunk-scan",))
    walk, output = kernels_of(setup)
    alone, same = kernels_of(setup._replace(stateless=True))
    state = 4 * 8 * 64 * 128 * 4
    assert walk.executed.read - alone.executed.read == walk.executed.written - alone.executed.written == state
    assert walk.executed.l2 - alone.executed.l2 == walk.ideal.hbm_bytes - alone.ideal.hbm_bytes == 2 * state
    assert same == output


def test_flops_as_so_many_in_fp8_weigh_each_product_by_its_width() -> None:
    dense = SetUp(mixer={"kind": "gqa", "heads": 2, "kv_heads": 2, "head_dim": 64}, context=64, phase="prefill")
    assert QUANTITIES["fp8-flops"](dense).value == 2 * QUANTITIES["flops"](dense).value
    indexer = SetUp(architecture="deepseek-v3.2", context=4096, phase="decode", kernels=("indexer",))
    narrow = indexer.changed({"settings": ("indexer.dtype=mxfp4",)})
    tensor = kernels_of_model(indexer)
    assert QUANTITIES["fp8-flops"](indexer).value == tensor
    assert QUANTITIES["fp8-flops"](narrow).value == tensor / 2


def kernels_of_model(setup: SetUp) -> float:
    return float(sum(kernel.ideal.flops * kernel.count for kernel in _counted_kernels(setup)))


def test_of_a_split_table_only_the_other_numbers_count(tmp_path: Path) -> None:
    """The set-up of the condition stands for a calibration; here it is another width."""
    wide = {"kind": "gqa", "heads": 2, "kv_heads": 2, "head_dim": 128}
    change = {"text": "t", "setup": {"mixer": wide}, "split": True}
    claimed = [1_024_000, 2_048_000, 3_072_000]
    over = {"over": {"context": [1000, 2000, 3000]}, "condition": change}
    [claim] = read_claims(written(tmp_path, {**COUNTED, **over, "claimed": claimed}))
    row = judge(claim)
    assert (row["verdict"], row["points_within_if"], row["condition_split"]) == (CONDITIONAL, 1, True)
    assert "2 of which gave the parameters" in row["reason"]
    assert tally([row])["reproduced_if_split"] == 1
    assert verdict(tmp_path, **over, claimed=[claimed[0], 3 * claimed[1], claimed[2]]) == CONTRADICTED


@pytest.mark.parametrize("name", ["cudnn-h100-hd64-full", "kimi-cache", "fast-dllm-gsm8k-256-cache"])
def test_commands_lead_from_a_claim_to_its_formulas(name: str) -> None:
    [claim] = load_claims([name])
    found = {text.split()[1]: text.split()[1:] for text in commands(claim)}
    assert {"explain", "generate"} & set(found)
    for words in (words for first, words in found.items() if first in ("explain", "generate")):
        assert CliRunner().invoke(app, words).exit_code == 0, words
    if name.startswith("cudnn"):
        assert "d_qk=64" in found["explain"]
        assert found["show"] == ["show", "h100-sxm/vllm"]


def test_a_claim_in_full_shows_the_measured_errors_of_its_kernels() -> None:
    timed = CliRunner().invoke(app, ["claims", "fa3-h100-hd128-full"]).stdout
    assert "vllm_flash_attn_fa3" in timed.split("on points that they never saw:")[1]
    assert "never saw" not in CliRunner().invoke(app, ["claims", "kimi-cache"]).stdout


def test_a_fair_set_up_is_shown_beside_and_changes_no_verdict(tmp_path: Path) -> None:
    fair = {"text": "twice as long", "setup": {"context": 2000}}
    [claim] = read_claims(written(tmp_path, {**COUNTED, "fair": fair}))
    row = judge(claim)
    assert (row["verdict"], row["fair_predicted"]) == (REPRODUCED, 1_024_000)
    assert judge(claim, fair=False)["fair_predicted"] is None


def test_a_condition_holds_for_the_baseline_too(tmp_path: Path) -> None:
    wide = {"kind": "gqa", "heads": 2, "kv_heads": 2, "head_dim": 128}
    against = {"baseline": {"mixer": wide}, "as": "times-less", "unit": "x", "claimed": 2.0}
    [claim] = read_claims(written(tmp_path, {**COUNTED, **against, "condition": {"text": "t", "setup": {"kv": "fp8"}}}))
    assert claim.condition is not None
    assert evaluate(claim).values[0].value == evaluate(claim, claim.condition).values[0].value == 2.0


def test_what_cannot_be_run_is_told_and_a_mistake_names_its_claim(tmp_path: Path) -> None:
    llama = {"architecture": "llama-3.1-8b", "hardware": "a100-sxm", "context": 1024}
    timed = {**COUNTED, "quantity": "time", "unit": "ms", "claimed": 10.0, "setup": llama}
    narrow = {"text": "weights are nvfp4", "setup": {"weights": "nvfp4"}}
    [claim] = read_claims(written(tmp_path, {**timed, "claimed": 1.0, "condition": narrow}))
    row = judge(claim)
    assert (row["verdict"], row["condition_predicted"]) == (CONTRADICTED, None)
    assert "if weights are nvfp4: cannot be run: " in row["reason"]
    [claim] = read_claims(written(tmp_path, {**timed, "setup": {**llama, "weights": "nvfp4"}}))
    assert (judge(claim)["predicted"], judge(claim)["verdict"]) == (None, CONTRADICTED)
    [claim] = read_claims(written(tmp_path, {**timed, "setup": {**llama, "kernels": ["scan"]}}))
    with pytest.raises(BadInput, match="claim mha-cache: kernel 'scan' is none of"):
        judge(claim)


def test_the_tally_counts_only_what_is_certain_and_stated(tmp_path: Path) -> None:
    claims = [
        {**COUNTED, "id": "a"},
        {**COUNTED, "id": "b", "claimed": 1},
        {**COUNTED, "id": "c", "uncertain": True},
        {**COUNTED, "id": "d", "unstated": ["context"]},
    ]
    found = tally([judge(claim) for claim in read_claims(written(tmp_path, *claims))])
    assert (found["claims"], found["stated_and_certain"], found["reproduced"], found["contradicted"]) == (4, 2, 1, 1)
    assert (found["setup_unstated"], found["uncertain"], found["reproduced_share"]) == (1, 1, 0.5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"quantitty": "time"}, "unknown key 'claims.mha-cache.quantitty'; did you mean 'quantity'?"),
        ({"quantity": "cache-byte"}, "did you mean 'cache-bytes'?"),
        ({"setup": {"contextt": 8}}, "unknown key 'claims.mha-cache.setup.contextt'; did you mean 'context'?"),
        ({"setup": {"from": "nodes"}}, "did you mean 'node'?"),
        ({"unit": "TFLOP"}, "did you mean 'TFLOPS'?"),
        ({"claimed": [1, 2], "over": {"context": [1]}}, "needs one value for each of the 2 claimed numbers"),
        ({"claimed": [1, 2]}, "over: missing, which 2 claimed numbers need"),
        ({"baseline": {"context": 8}}, "baseline and as belong together"),
        ({"claimed": "many"}, "claimed: 'many' is not a number"),
        ({"setup": {"phase": "prefil"}}, "did you mean 'prefill'?"),
        ({"condition": {"setup": {}}}, "condition.text: missing"),
        ({"tolerance": 2}, "tolerance: 2 is outside 0 to 1"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_what_was_meant(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput) as caught:
        read_claims(written(tmp_path, {**COUNTED, **changed}, setups={"node": {"context": 8}}))
    assert message in str(caught.value)


def test_an_unknown_claim_is_named_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean 'kimi-cache'"):
        load_claims(["kimi-cahce"])
    assert {claim.paper for claim in load_claims(["flashmla"])} == {"flashmla"}
    assert [claim.id for claim in load_claims(["jet-47"])] == ["jet-47x"]


def test_a_kernel_that_the_set_up_does_not_have_is_named() -> None:
    setup = SetUp(architecture="llama-3.1-8b", hardware="h100-sxm", context=1024, kernels=("scan",))
    with pytest.raises(BadInput, match="kernel 'scan' is none of embedding"):
        QUANTITIES["time"](setup)
    with pytest.raises(BadInput, match="kernel 'scan' is none of"):
        QUANTITIES["time"](setup._replace(layout="tp2"))
    with pytest.raises(BadInput, match="part backward"):
        QUANTITIES["time"](setup._replace(layout="dp2", phase="train", part="backward", kernels=(), batch=2))


def test_a_prompt_in_one_chunk_takes_its_time_and_a_pipeline_hides_stages() -> None:
    setup = SetUp(architecture="llama-3.1-8b", hardware="h100-sxm", phase="prefill", context=8192)
    whole = QUANTITIES["time"](setup).value
    assert QUANTITIES["prefill-in-chunks"](setup).value == pytest.approx(whole)
    chunked = QUANTITIES["prefill-in-chunks"](setup._replace(new_tokens=2048))
    assert chunked.value == pytest.approx(whole, rel=0.1)
    ragged = QUANTITIES["prefill-in-chunks"](setup._replace(new_tokens=setup.context - 512))
    assert ragged.value > whole  # the last chunk holds what is left
    staged = QUANTITIES["prefill-in-chunks"](setup._replace(new_tokens=512, layout="pp4"))
    assert 0.25 < staged.value / QUANTITIES["prefill-in-chunks"](setup._replace(new_tokens=512)).value < 0.4


def test_host_times_are_added_to_each_step_and_each_pass() -> None:
    setup = SetUp(architecture="llama-3.1-8b", hardware="h100-sxm", context=1024, prompt=512, output=16)
    plain, slow = (QUANTITIES["time"](setup._replace(host_s=seconds)).value for seconds in (0.0, 0.01))
    assert slow == pytest.approx(plain + 0.01)
    assert QUANTITIES["time"](setup._replace(engine="prior")).value > plain
    rates = [1 / QUANTITIES["generation-rate"](setup._replace(host_s=seconds)).value for seconds in (0.0, 0.01)]
    assert rates[1] - rates[0] == pytest.approx(0.01 * 16 / 16)  # a pass for each of 16 tokens
    half = QUANTITIES["generation-rate"](setup._replace(counted=8)).value
    assert half == pytest.approx(0.5 / rates[0])


def test_prompts_in_one_piece_leave_room_for_fewer_sequences() -> None:
    """Each brings its results, of up to two kernels in a row; chunks bring those of one chunk, whatever the batch."""
    setup = SetUp(architecture="llama-3.1-8b", hardware="a100-sxm", context=65536)
    chunked, whole = (QUANTITIES["batch-that-fits"](setup._replace(whole_prompts=one)).value for one in (False, True))
    assert 0 < whole < chunked
    # 16.1 GB of weights; 8.6 GB of cache and 65536·3·14336·2 bytes between the products of an FFN for each sequence.
    assert whole == (85.9e9 - 16.1e9) // (65536 * 128 * 1024 + 65536 * 3 * 14336 * 2)


def test_concatenated_keys_and_values_are_read_and_written_once_more_and_states_are_not() -> None:
    """So is a sliding window's cache, up to the window; a recurrence's state is not."""
    setup = SetUp(architecture="jet-nemotron-2b", hardware="h100-sxm", context=65536, batch=8)
    written, copied = (kernels_of(setup._replace(concatenated=one)) for one in (False, True))
    [added] = [kernel for kernel in copied if kernel not in written]
    # Two full layers of 65536 tokens, two windows of 1152; two heads of 128, keys and values of 2 bytes.
    cache = 8 * 2 * (65536 + 1152) * 2 * 2 * 128 * 2
    assert added.count * added.executed.read == added.count * added.executed.written == cache
    with pytest.raises(BadInput, match="one device"):
        time(setup._replace(concatenated=True, layout="tp2"))


def test_small_launches_of_a_source_s_code_take_what_a_kernel_of_no_bytes_takes() -> None:
    setup = SetUp(architecture="llama-3.1-8b", hardware="h100-sxm", context=1024)
    plain, more, twice = (QUANTITIES["time"](setup._replace(launches=count)).value for count in (0, 100, 200))
    assert 1e-6 < (more - plain) / 100 < 5e-6
    assert twice - plain == pytest.approx(2 * (more - plain))
    answers = SetUp(architecture="llama-3.1-8b", hardware="h100-sxm", batch=2, prompt=64, output=8)
    first, slower = (QUANTITIES["answered"](answers._replace(launches=count)).value for count in (0, 100))
    assert slower - first >= 8 * (more - plain) * 0.99


def test_an_entry_that_would_change_nothing_is_refused() -> None:
    setup = SetUp(architecture="llama-3.1-8b", hardware="h100-sxm", prompt=64, output=8)
    with pytest.raises(BadInput, match="a generation: layout, engine of the set-up would change nothing"):
        QUANTITIES["generation-rate"](setup._replace(layout="tp2", engine="vllm"))
    with pytest.raises(BadInput, match="serving: caches of the set-up"):
        QUANTITIES["serving-rate"](setup._replace(caches="benchmarked"))


def test_the_time_of_a_set_up_is_that_of_predict() -> None:
    setup = SetUp(architecture="llama-3.1-8b", hardware="h100-sxm", phase="prefill", context=4096, batch=2)
    row = predict("llama-3.1-8b", "h100-sxm", 4096, phase="prefill", batch=2).row
    found = QUANTITIES["time"](setup)
    assert (found.value, found.low, found.high) == (row.time_s, row.time_low_s, row.time_high_s)
    split = setup._replace(layout="tp2")
    assert (
        QUANTITIES["time"](split).value
        == predict("llama-3.1-8b", "h100-sxm", 4096, phase="prefill", batch=2, layout="tp2").time_s
    )
    assert QUANTITIES["token-rate"](split).value == pytest.approx(4096 * 2 / QUANTITIES["time"](split).value / 2)


def test_parts_of_a_step_add_up_to_the_whole() -> None:
    setup = SetUp(architecture="llama-3.1-8b", hardware="h100-sxm", phase="train", context=2048)
    whole = QUANTITIES["time"](setup).value
    parts = [QUANTITIES["time"](setup._replace(part=part)).value for part in ("forward", "backward")]
    assert sum(parts) == pytest.approx(whole)
    rest = setup._replace(without=("attention",))
    alone = setup._replace(kernels=("attention",))
    assert QUANTITIES["time"](rest).value + QUANTITIES["time"](alone).value == pytest.approx(whole)
    assert QUANTITIES["kernel-share"](alone).value == pytest.approx(QUANTITIES["time"](alone).value / whole)


def test_sequences_of_a_batch_that_fills_memory_or_has_so_many_tokens() -> None:
    setup = SetUp(architecture="llama-3.1-8b", hardware="h100-sxm", context=8192, batch="fill")
    token = 32 * 8 * 128 * 2 * 2
    assert 0.9 * 50e9 < sequences(setup) * 8192 * token < 0.9 * 80 * 2**30 - 16e9
    assert sequences(setup._replace(batch=1, tokens=65536)) == 8
    assert setup._replace(tokens=65536).changed({"batch": 3}).tokens == 0


def test_a_slope_an_exponent_and_a_knee_of_known_curves() -> None:
    def bent(setup: SetUp) -> Value:
        return counted(5.0 + 0.5 * min(setup.context, 3000) + 0.01 * max(setup.context - 3000, 0))

    between = SetUp(contexts=(1000, 9000))
    assert knee(bent, between).value == pytest.approx(3000, rel=0.03)
    assert slope(bent, SetUp(contexts=(4000, 9000))).value == pytest.approx(0.01)
    assert exponent(lambda setup: counted(3.0 * setup.context**1.5), between).value == pytest.approx(1.5)


def test_comparisons_carry_the_errors_of_both_sides() -> None:
    own, baseline = Value(2.0, 1.0, 4.0, "fitted"), Value(8.0, 4.0, 16.0, "prior")
    ratio = more(own, baseline)
    assert (ratio.value, ratio.basis) == (0.25, "prior")
    assert math.log(ratio.high / ratio.value) == pytest.approx(math.sqrt(2) * math.log(2))
    assert less(own, baseline).value == 4.0
    saved = cut(own, baseline)
    assert saved.value == 0.75
    assert saved.low < 0.75 < saved.high


def test_training_writes_no_cache_and_serving_does() -> None:
    d = gqa.Dims(H=16, Hkv=16, dk=128, dv=128)
    served, trained = (gqa.core(d, Step(B=32, S=512, P=0, phase=phase), Precision()) for phase in ("prefill", "train"))
    device = load_hardware("h100-sxm")
    calibration = find_calibration(device, "vllm")
    seconds = [
        kernel.form.terms(kernel, device, calibration.fit(kernel).values).total() for kernel in (served, trained)
    ]
    written_bytes = 32 * 512 * 16 * 256 * 2
    assert seconds[0] - seconds[1] > written_bytes / device.memory.hbm.bandwidth / 2


def test_attention_without_a_mask_takes_the_parameters_of_the_same_kernel_with_one() -> None:
    causal = Attention(B=1, S=4096, P=0, H=32, Hkv=8, dk=128, dv=128)
    calibration = find_calibration(load_hardware("h100-sxm"), "vllm")
    masked, open_ = (calibration.fit(attention("a", shape)) for shape in (causal, causal._replace(bidirectional=True)))
    assert masked.values == open_.values
    assert open_.transferred
    assert open_.model_spread > masked.model_spread


def test_rows_have_the_keys_that_scripts_read() -> None:
    result = CliRunner().invoke(app, ["claims", "kimi-cache", "dsa-order-indexer", "--format", "json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [row["id"] for row in found["rows"]] == ["kimi-cache", "dsa-order-indexer"]
    assert all(set(KEYS) <= set(row) for row in found["rows"])
    assert found["tally"][0]["reproduced"] == 2


def test_a_changed_verdict_is_named_and_leaves_with_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ["claims", "kimi-cache", "--check"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (tmp_path / "verdicts.yaml").write_text(record_text([{"id": "kimi-cache", "verdict": CONTRADICTED}]))
    monkeypatch.setattr(record_module, "papers_folder", lambda: tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "kimi-cache: contradicted → reproduced" in result.stderr


def test_the_record_holds_every_claim_or_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["claims", "kimi-cache", "--record", str(tmp_path / "v.yaml")])
    assert result.exit_code == 2
    assert "without names" in result.stderr
    rows = judged(["kimi-cache"])
    (tmp_path / "verdicts.yaml").write_text(record_text(rows))
    assert yaml.safe_load((tmp_path / "verdicts.yaml").read_text())["verdicts"] == {"kimi-cache": REPRODUCED}


def test_a_checkpoint_leaves_blocks_in_16_bit() -> None:
    found = precision_of(
        SetUp(architecture="glm-5.2", hardware="b300-sxm", weights="nvfp4", unquantised=("mixer", "shared_experts"))
    )
    assert [found.weight(role) for role in ("mixer", "shared_experts", "experts", "ffn")] == [
        "bf16",
        "bf16",
        "nvfp4",
        "nvfp4",
    ]
    assert (found.operand("mixer"), found.operand("experts")) == ("bf16", "nvfp4")


def test_the_layer_that_drafts_runs_as_one_more() -> None:
    plain = SetUp(architecture="glm-5.2", hardware="b300-sxm", phase="prefill", context=8192)
    drafting = plain._replace(drafter=True)
    layers, more_layers = model_of(plain).layers, model_of(drafting).layers
    assert more_layers == (*layers, ("attn", "moe"))
    assert 1.01 < time(drafting).value / time(plain).value < 1.03
    with pytest.raises(BadInput, match="no layer that predicts further tokens"):
        model_of(SetUp(architecture="qwen3-8b", drafter=True))


def test_no_command_is_told_that_would_run_something_else() -> None:
    [claim] = load_claims(["glm52-prefill"])
    assert not any(text.startswith("costmodel predict") for text in commands(claim))
    plain = claim._replace(setup=claim.setup._replace(unquantised=(), drafter=False))
    assert any(text.startswith("costmodel predict") for text in commands(plain))


def test_a_role_that_no_model_has_is_told(tmp_path: Path) -> None:
    text = (claim_files()[0].parent.parent / "deepseek-v3.2" / "claims.yaml").read_text(encoding="utf-8")
    (tmp_path / "claims.yaml").write_text(
        text.replace("unquantised: [mixer]", "unquantised: [mixers]"), encoding="utf-8"
    )
    with pytest.raises(BadInput, match=r"unquantised: unknown role of weights 'mixers'"):
        read_claims(tmp_path / "claims.yaml")

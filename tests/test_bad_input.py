"""Whatever comes in, a command ends with a message and an agreed exit code, and a loader with BadInput."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from costmodel.calibration import SEPARATOR, Calibration, check_calibration, read_calibration
from costmodel.cli import app
from costmodel.errors import BadInput, Impossible
from costmodel.hardware import load_hardware
from costmodel.kernels import forms
from costmodel.loading import MAX_BYTES, read_mapping, write_atomically
from costmodel.model_file import architecture_from_mapping, load_architecture
from costmodel.prediction import predict
from costmodel.units import MAX_CONTEXT, parse_counts, parse_quantity

LLAMA = ("predict", "--arch", "llama-3.1-8b", "--hw", "h100-sxm")
FUZZ = settings(
    max_examples=int(os.environ.get("COSTMODEL_FUZZ", "150")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def _no_user_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COSTMODEL_DATA", str(tmp_path / "user"))
    monkeypatch.delenv("COSTMODEL_DEBUG", raising=False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str, code: int = 2) -> str:
    """The message of a command that must fail with this code, with nothing on stdout."""
    result = run(*arguments)
    assert result.exit_code == code, f"{arguments}: {result.exit_code}\n{result.output}"
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize(
    "arguments,part",
    [
        (("predict", "--arch", "lama-3.1-8b", "--hw", "h100-sxm"), "did you mean 'llama-3.1-8b'?"),
        (("predict", "--arch", "llama-3.1-8b", "--hw", "h100-sxn"), "did you mean 'h100-sxm'?"),
        (("predict", "--arch", "llama", "--hw", "h100-sxm"), "ambiguous"),
        (("predict", "--arch", "llama-3.1-8b,", "--hw", "h100-sxm"), "an empty name"),
        (("predict", "--arch", "", "--hw", "h100-sxm"), "an empty name"),
        (("predict", "--arch", "llama-3.1-8b"), "Missing option '--hw'"),
        ((*LLAMA, "--phase", "prefil"), "did you mean 'prefill'?"),
        ((*LLAMA, "--format", "jsn"), "did you mean 'json'?"),
        ((*LLAMA, "--weights", "fp9"), "did you mean 'fp8'?"),
        ((*LLAMA, "--kv", "none"), "unknown dtype"),
        ((*LLAMA, "--library", "vlm"), "unknown library"),
        ((*LLAMA, "--contxt", "4k"), "did you mean '--context'?"),
        ((*LLAMA, "--context"), "requires an argument"),
        ((*LLAMA, "surplus"), "unexpected extra argument"),
        ((*LLAMA, "--batch", "0"), "allowed are 1 to"),
        ((*LLAMA, "--batch", "2G"), "not a count"),
        ((*LLAMA, "--new-tokens", "8k", "--context", "4k"), "exceed the context"),
        ((*LLAMA, "--phase", "train", "--new-tokens", "8", "--context", "4k"), "processes its whole context"),
        ((*LLAMA, "--set", "mixers.attn.heads"), "expected PATH=VALUE"),
        ((*LLAMA, "--set", "mixers.attn.haeds=4"), "did you mean"),
        ((*LLAMA, "--set", "hw.memory.hbm.bandwith=2x"), "did you mean 'memory.hbm.bandwidth'?"),
        ((*LLAMA, "--set", "hw.bandwidth=2x"), "ambiguous; candidates: hw.links"),
        ((*LLAMA, "--set", "heads=33"), "heads 33 is not a multiple of kv_heads 8"),
        ((*LLAMA, "--set", "heads=0.5x", "--set", "heads=-1"), "outside 1 to"),
        ((*LLAMA, "--set", "hw.memory.hbm.bandwidth=3.35 TB"), "not a quantity in B/s"),
        ((*LLAMA, "--set", "hw.memory.hbm.bandwidth=0 B/s"), "positive"),
        (("list", "mechanism5"), "did you mean 'mechanisms'?"),
        (("show", "lama-3.1-8b"), "did you mean 'llama-3.1-8b'?"),
        (("show", "llama"), "ambiguous"),
        (("show", "a100"), "ambiguous"),
        (("explain", "gqaa"), "gqa"),
        (("predcit",), "predict"),
        (("generate", "--arch", "llama-3.1-8b", "--hw", "h100-sxm", "--method", "guess"), "unknown method"),
        (("generate", "--arch", "llama-3.1-8b", "--hw", "h100-sxm", "--accepted", "x"), "not a valid float"),
        (("compare", "--arch", "llama-3.1-8b,llama-3.1-8b", "--hw", "h100-sxm"), "at least two"),
    ],
)
def test_the_message_names_the_place_and_what_is_right(arguments: tuple[str, ...], part: str) -> None:
    assert part in refused(*arguments)


@pytest.mark.parametrize(
    "context",
    [
        "0",
        "-1",
        "-4k",
        "1.5k",
        "4096.0",
        "1e4",
        "1e13",
        "10000000000000",
        "",
        ",",
        "4k,",
        "4k..",
        "..4k",
        "8k..4k",
        "4k..8k..16k",
        "k",
        "NaN",
        "inf",
        "４k",
        "4 k",
        "0x10",
        "1_000",
        "9" * 400,
    ],
)
def test_contexts_that_are_none(context: str) -> None:
    assert "context" in refused(*LLAMA, f"--context={context}")


def test_the_largest_context_is_served() -> None:
    result = run(*LLAMA, "--context", str(MAX_CONTEXT), "--phase", "all", "--batch", "1000000", "--format", "json")
    assert result.exit_code == 0
    row = json.loads(result.stdout)["rows"][0]
    assert row["context"] == MAX_CONTEXT
    assert math.isfinite(row["time_s"])


@pytest.mark.parametrize(
    "option", [("--full",), ("--part", "1/2"), ("--within", "0"), ("--no-input",), ("--families", "gemm")]
)
def test_what_only_a_measurement_can_mean_is_refused_beside_tables(option: tuple[str, ...]) -> None:
    message = refused("calibrate", "--from-silicon", "x", "--hw", "h100-sxm", *option)
    assert f"{option[0]}: only with --device" in message


def test_a_dtype_without_an_engine_is_impossible() -> None:
    message = refused("predict", "--arch", "llama-3.1-8b", "--hw", "a100-sxm", "--weights", "nvfp4", code=1)
    assert "no engine with fp4" in message
    assert "b200-sxm" in message


PATHS_THAT_ARE_NO_FILES = ["/dev/zero", "/", "/no/such/file.yaml", "/tmp\x00.yaml", "./" + "x" * 5000, "/dev/null"]


@pytest.mark.parametrize("path", PATHS_THAT_ARE_NO_FILES)
def test_folders_devices_and_missing_files(path: str) -> None:
    for load in (load_architecture, load_hardware):
        with pytest.raises(BadInput):
            load(path)
    refused("predict", f"--arch={path}", "--hw", "h100-sxm")
    refused("predict", "--arch", "llama-3.1-8b", f"--hw={path}")
    refused("show", path)


def written(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n".encode() for i in range(9)
)
BROKEN_FILES = {
    "truncated.yaml": b"name: x\nd_model: [1, 2",
    "bomb.yaml": BOMB,
    "object.yaml": b"name: !!python/object/apply:os.system ['true']\n",
    "module.yaml": b"name: !!python/name:os.system\n",
    "deep.yaml": b"[" * 3000 + b"]" * 3000,
    "deep-mapping.yaml": b"".join(b" " * i + b"a:\n" for i in range(200)),
    "huge.yaml": b"#" * (MAX_BYTES + 1),
    "latin.yaml": b"name: \xff\xfe\n",
    "list.yaml": b"- 1\n- 2\n",
    "scalar.yaml": b"7\n",
    "empty.yaml": b"",
    "nul.yaml": b"name: \x00\n",
    "date.yaml": b"name: 2020-13-45\n",
    "keys.yaml": b"1: 2\n? [a, b]\n: c\n",
    "duplicate.yaml": b"? {a: 1}\n: 2\n",
    "int.yaml": b"d_model: " + b"9" * 5000 + b"\n",
    "documents.yaml": b"a: 1\n---\nb: 2\n",
    "truncated.json": b'{"a": [1, 2',
    "deep.json": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nan.json": b'{"hidden_size": NaN, "num_hidden_layers": Infinity}',
    "int.json": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "list.json": b"[1, 2]",
    "empty.json": b"{}",
    "types.json": b'{"architectures": 7, "model_type": ["llama"], "hidden_size": "wide", "num_hidden_layers": {}}',
    "lists.json": b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": [4096],'
    b' "num_hidden_layers": [1], "num_attention_heads": "32", "vocab_size": null, "intermediate_size": true}',
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_broken_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name, BROKEN_FILES[name])
    for load in (load_architecture, load_hardware):
        with pytest.raises(BadInput) as caught:
            load(path)
        assert name in str(caught.value)
        assert len(str(caught.value)) < 20_000
    assert name in refused("predict", "--arch", path, "--hw", "h100-sxm")


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = written(tmp_path, "x.yaml", f"name: !!python/object/apply:pathlib.Path.touch ['{mark}']\n".encode())
    with pytest.raises(BadInput):
        read_mapping(Path(path))
    assert not mark.exists()


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    text = b"name: x\nd_model: -4\nvocab_size: many\nlayerz: []\nmixers: {a: {kind: gqa, heads: 3, kv_heads: 2}}\n"
    message = refused("predict", "--arch", written(tmp_path, "x.yaml", text), "--hw", "h100-sxm")
    for part in ("d_model", "vocab_size", "did you mean 'layers'?", "d_qk: missing", "d_v: missing"):
        assert part in message


@pytest.mark.parametrize("target", ["missing/a.png", "folder.png", "a.pdf", "a", ""])
def test_a_plot_that_cannot_be_written_leaves_nothing(target: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    path = str(tmp_path / target) if target else ""
    message = refused(*LLAMA, "-c", "8k", f"--plot={path}")
    assert "plot" in message or target.rpartition("/")[2] in message
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    write_atomically(path, b"old")

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(BadInput, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.csv"]


def test_names_from_files_bring_no_escape_sequences(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "architectures" / "llama-3.1-8b.yaml").read_bytes()
    path = written(tmp_path, "a\x1b[31mred.yaml", text)
    result = run("predict", "--arch", path, "--hw", "h100-sxm", "-c", "8k")
    assert result.exit_code == 0
    assert "\x1b" not in result.output


WORDS = st.sampled_from(
    [
        "predict",
        "compare",
        "explain",
        "generate",
        "list",
        "show",
        "cite",
        "--arch",
        "--hw",
        "--context",
        "--phase",
        "--batch",
        "--new-tokens",
        "--weights",
        "--kv",
        "--activations",
        "--library",
        "--set",
        "--breakdown",
        "--format",
        "--method",
        "--prompt",
        "--latex",
        "--steps",
        "--accepted",
        "--draft",
        "--block",
        "-c",
        "-p",
        "--help",
        "--version",
        "llama-3.1-8b",
        "mamba2-2.7b",
        "kimi-linear",
        "h100-sxm",
        "a100-sxm",
        "h20",
        "4k",
        "1M",
        "4k..64k",
        "0",
        "-1",
        "1e9",
        "1000000000000",
        "prefill",
        "decode",
        "train",
        "all",
        "json",
        "csv",
        "table",
        "markdown",
        "fp8",
        "int4",
        "nvfp4",
        "bf16",
        "prior",
        "vllm",
        "heads=7",
        "kv_heads=1",
        "hw.compute.units=2x",
        "layers=3",
        "gqa",
        "gemm",
        "mechanisms",
        "hardware",
        "full",
        "block",
        "speculative",
        "=",
        "--",
        "-",
        ",",
        "a=b",
        "window=0",
    ]
)
ARGUMENTS = st.lists(st.one_of(WORDS, WORDS, WORDS, st.text(max_size=12)), max_size=10)


@FUZZ
@given(ARGUMENTS)
def test_any_command_line_ends_with_an_agreed_code(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code in (0, 1, 2), f"{arguments}: {result.output}"
    assert isinstance(result.exception, SystemExit | None)


VALUES = st.one_of(WORDS, st.text(max_size=20), st.integers(-(2**70), 2**70).map(str), st.floats().map(str))


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "--context",
                "--batch",
                "--new-tokens",
                "--phase",
                "--weights",
                "--kv",
                "--activations",
                "--set",
                "--format",
                "--library",
            ]
        ),
        VALUES,
        max_size=4,
    )
)
def test_any_value_of_any_option_ends_with_an_agreed_code(options: dict[str, str]) -> None:
    arguments = [*LLAMA, *(f"{name}={value}" for name, value in options.items())]
    result = run(*arguments)
    assert result.exit_code in (0, 1, 2), f"{arguments}: {result.output}"


OTHER_COMMANDS = {
    "generate": [
        "--prompt",
        "--new-tokens",
        "--block",
        "--steps",
        "--accepted",
        "--draft",
        "--draft-tokens",
        "--method",
        "--set",
    ],
    "compare": ["--context", "--batch", "--phase", "--new-tokens", "--kv", "--set"],
    "explain": ["--context", "--batch", "--phase", "--hw", "--set"],
}


@pytest.mark.parametrize("command", OTHER_COMMANDS)
def test_any_value_of_other_commands_ends_with_an_agreed_code(command: str) -> None:
    models = {"generate": ["--arch=llada-8b", "--hw=h100-sxm"], "compare": ["--arch=qwen3-8b,rwkv7-0.1b", "--hw=h20"]}

    @settings(FUZZ, max_examples=FUZZ.max_examples // 3)
    @given(st.dictionaries(st.sampled_from(OTHER_COMMANDS[command]), VALUES, min_size=1, max_size=3))
    def ends(options: dict[str, str]) -> None:
        arguments = [command, *models.get(command, ["swa"]), *(f"{name}={value}" for name, value in options.items())]
        result = run(*arguments)
        assert result.exit_code in (0, 1, 2), f"{arguments}: {result.output}"

    ends()


PATHS_OF_SETTINGS = [
    "heads",
    "kv_heads",
    "d_qk",
    "d_ff",
    "d_model",
    "vocab_size",
    "max_context",
    "n_layers",
    "kind",
    "layers",
    "name",
    "hw.compute.units",
    "hw.compute.clock",
    "hw.memory.hbm.capacity",
    "hw.power.tdp",
    "hw.compute.special",
]


@FUZZ
@given(
    st.sampled_from(PATHS_OF_SETTINGS),
    st.one_of(VALUES, st.sampled_from(["2x", "0x", "null", "true", "1e400", "-0", "[1]", "{}"])),
)
def test_any_setting_ends_with_an_agreed_code(path: str, value: str) -> None:
    result = run(*LLAMA, "-c", "8k", f"--set={path}={value}")
    assert result.exit_code in (0, 1, 2), f"{path}={value}: {result.output}"


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["gqa", "swiglu", "bf16"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers().map(str), inner, max_size=4)
    ),
    max_leaves=12,
)


def whole_calibration(path: str) -> Calibration:
    """A calibration of which every entry was read."""
    calibration = read_calibration(Path(path))
    check_calibration(calibration, forms())
    return calibration


def calibration_text(tree: dict[str, Any]) -> str:
    """The documents of a calibration, from a mapping that holds the entries as a list."""
    header = {key: value for key, value in tree.items() if key != "entries"}
    entries = tree["entries"] if isinstance(tree.get("entries"), list) else [tree.get("entries")]
    return SEPARATOR.join(yaml.safe_dump(part, sort_keys=False).rstrip() for part in (header, *entries))


@FUZZ
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("x.yaml", "x.json"):
        path = written(tmp_path, name, content)
        for load in (load_architecture, load_hardware):
            with pytest.raises(BadInput):
                load(path)
        with pytest.raises(BadInput):
            whole_calibration(path)


ARCHITECTURE = {
    "name": "x",
    "d_model": 64,
    "vocab_size": 100,
    "mixers": {"a": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16}},
    "ffns": {"f": {"kind": "swiglu", "d_ff": 128}},
    "layers": [{"repeat": 2, "blocks": [["a", "f"]]}],
    "weights": {"default": "bf16"},
    "params_published_b": {"total": 1.0},
    "source": ["here"],
    "notes": "none",
}
HARDWARE = {
    "name": "x",
    "description": "x",
    "vendor": "x",
    "generation": "x",
    "compute": {"units": 1, "clock": "1 GHz", "tensor": {"bf16": "1 TFLOP/s"}, "vector": "1 TFLOP/s", "special": 4},
    "memory": {
        "hbm": {"capacity": "80 GiB", "bandwidth": "1 TB/s"},
        "l2": {"capacity": "1 MiB", "bandwidth": "unknown"},
    },
    "links": {"scale_up": {"bandwidth": "1 GB/s", "devices": 8}},
    "power": {"tdp": "100 W"},
    "sources": {"compute": "here"},
    "unverified": [],
    "notes": "none",
}
CALIBRATION = {
    "schema": 1,
    "id": "x",
    "hardware": "h100-sxm",
    "library": "x",
    "entries": [
        {
            "family": "elementwise",
            "instance": "",
            "parameters": {"launch_s": 2e-6},
            "covariance": "0.1",
            "points": 3,
            "model_spread": 0.1,
            "flops": [1.0, 2.0],
            "hbm_bytes": [1.0, 2.0],
            "held_out": {"n": 1},
        },
    ],
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "head_dim": 16,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 100,
    "tie_word_embeddings": False,
    "rope_scaling": {"factor": 2.0},
    "quantization_config": None,
    "hidden_act": "silu",
}


def places(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all entries, inner and outer."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, below in inner for path in ((*prefix, key), *places(below, (*prefix, key)))]


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with one entry replaced."""
    copy = json.loads(json.dumps(tree))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return copy


@pytest.mark.parametrize(
    "tree", [ARCHITECTURE, HARDWARE, CALIBRATION, CONFIG], ids=["architecture", "hardware", "calibration", "config"]
)
def test_a_file_with_one_strange_entry_is_read_or_refused(tree: Any, tmp_path: Path) -> None:
    name = "x.json" if tree is CONFIG else "x.yaml"
    load: Any = {id(HARDWARE): load_hardware, id(CALIBRATION): whole_calibration}.get(id(tree), load_architecture)
    dump = json.dumps if tree is CONFIG else calibration_text if tree is CALIBRATION else yaml.safe_dump
    load(written(tmp_path, name, dump(tree).encode()))

    @FUZZ
    @given(st.sampled_from(places(tree)), JSON_VALUES)
    def strange(place: tuple[Any, ...], value: Any) -> None:
        path = written(tmp_path, name, dump(changed(tree, place, value)).encode())
        try:
            loaded = load(path)
        except BadInput:
            return
        if tree is ARCHITECTURE or tree is CONFIG:
            try:
                assert all(row.time_s > 0 for row in predict(loaded, "h100-sxm", 100, phase="all"))
            except Impossible:
                return

    strange()


SHIPPED = [
    "kimi-linear-48b-a3b",
    "deepseek-v3.2",
    "nemotron-3-nano-30b-a3b",
    "rwkv7-0.1b",
    "qwen3.5-35b-a3b",
    "gpt-oss-20b",
]
SIZES = st.one_of(st.integers(-1, 9), st.sampled_from([2**20 + 1, 2**31, 0.5, "7", None, True, [], {}]))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_with_two_strange_sizes_runs_or_is_refused(name: str, tmp_path: Path) -> None:
    tree = read_mapping(Path(__file__).parent.parent / "architectures" / f"{name}.yaml")
    sized = [place for place in places(tree) if place[0] in ("mixers", "ffns", "d_model", "vocab_size", "layers")]

    @settings(FUZZ, max_examples=FUZZ.max_examples // 5)
    @given(st.lists(st.tuples(st.sampled_from(sized), SIZES), min_size=1, max_size=2, unique_by=lambda pair: pair[0]))
    def strange(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
        raw = tree
        for place, value in sorted(changes, key=lambda change: -len(change[0])):
            raw = changed(raw, place, value)
        try:
            loaded = architecture_from_mapping(raw, "x.yaml", "x")
            assert all(row.time_s > 0 for row in predict(loaded, "h100-sxm", 100, phase="all"))
        except (BadInput, Impossible):
            return

    strange()


@FUZZ
@given(st.text(max_size=30))
def test_any_text_is_a_count_or_refused(text: str) -> None:
    try:
        counts = parse_counts(text)
    except BadInput:
        return
    assert all(1 <= count <= MAX_CONTEXT for count in counts)
    assert counts


@FUZZ
@given(st.text(max_size=30) | st.floats().map(lambda value: f"{value} TB/s"))
def test_any_text_is_a_quantity_or_refused(text: str) -> None:
    try:
        assert parse_quantity(text, "B/s") == parse_quantity(text, "B/s")
    except BadInput:
        return

"""Number formats by role, from `quantization_config`, `hf_quant_config.json` and the dtype of the file.

Sources: transformers, quantizers (fp8, mxfp4: lists of modules left in 16 bit); vllm-project/compressed-tensors
(groups, targets, ignore); NVIDIA ModelOpt (quant_algo, exclude_modules, quantized_layers).

A role is judged by a few linear layers of each decoder layer, whose names are held against the lists of the file.
Embedding and router stay in 16 bit; so does the head, except in formats that quantise every linear layer they do not
list as left out.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from costmodel.dtypes import BYTES
from costmodel.errors import unknown
from costmodel.huggingface.decoder import Decoder, LayerPair
from costmodel.huggingface.module_names import Names, read_names
from costmodel.loading import Problems

Format = tuple[str, str]
"""Weights and activations of a quantised linear layer; None elsewhere means 16 bit."""

DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "bf16",
    "float": "bf16",
    "auto": "bf16",
    "float8_e4m3fn": "fp8",
}
"""Files saved in float32 are served in 16 bit."""

ALGORITHMS: dict[str, Format] = {
    "FP8": ("fp8", "fp8"),
    "FP8_PER_CHANNEL_PER_TOKEN": ("fp8", "fp8"),
    "FP8_PB_REAL": ("fp8_block", "fp8_block"),
    "FP8_PB_WO": ("fp8_block", "bf16"),
    "NVFP4": ("nvfp4", "nvfp4"),
    "NVFP4_AWQ": ("nvfp4", "nvfp4"),
    "W4A16_NVFP4": ("nvfp4", "bf16"),
    "W4A8_NVFP4_FP8": ("nvfp4", "fp8"),
    "MXFP4": ("mxfp4", "mxfp4"),
    "W4A16_MXFP4": ("mxfp4", "bf16"),
    "W4A8_MXFP4_FP8": ("mxfp4", "fp8"),
    "W4A16_AWQ": ("int4", "bf16"),
    "W4A16": ("int4", "bf16"),
    "W4A8_AWQ": ("int4", "fp8"),
    "INT8_SQ": ("int8", "int8"),
    "W8A8_SQ_PER_CHANNEL": ("int8", "int8"),
    "W8A16": ("int8", "bf16"),
}
KV_ALGORITHMS = {"FP8": "fp8", "NVFP4": "nvfp4", "INT8": "int8"}
PLAIN_METHODS: dict[str, Format] = {"fp8": ("fp8", "fp8"), "fbgemm_fp8": ("fp8", "fp8"), "mxfp4": ("mxfp4", "bf16")}
BLOCKS: Format = ("fp8_block", "fp8_block")
METHODS = (*PLAIN_METHODS, "compressed-tensors", "modelopt", "modelopt_fp4", "awq", "gptq", "bitsandbytes")

LEFT_OUT = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules", "llm_int8_skip_modules")

_SOFTMAX = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_LATENT = ("self_attn.q_b_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.o_proj")
# Mixers of kinds that are not listed here have the four matrices of softmax attention.
USUAL_PATHS: dict[str, tuple[str, ...]] = {
    "mla": _LATENT,
    "dsa": _LATENT,
    "gdn": ("linear_attn.out_proj",),
    "mamba1": ("mixer.in_proj", "mixer.out_proj"),
    "mamba2": ("mixer.in_proj", "mixer.out_proj"),
    "rwkv7": ("attn.o_proj",),
    "mlp": ("mlp.down_proj",),
    "swiglu": ("mlp.down_proj",),
    "rwkv_cmix": ("ffn.value",),
    "linear": ("mlp.linear_mlp",),
    "per_layer_input": ("per_layer_projection",),
    "shared_kv": ("self_attn.q_proj", "self_attn.o_proj"),
    "experts": ("mlp.experts.0.down_proj",),
    "shared_experts": ("mlp.shared_experts.down_proj",),
}


@dataclass(slots=True)
class Scheme:
    """Which format a module has: none when ignored, that of the first group that names it, else the general one."""

    general: Format | None = None
    quantises_head: bool = False
    groups: list[tuple[Names, Format]] = field(default_factory=list)
    ignored: Names | None = None

    def format(self, name: str, layer: str) -> Format | None:
        """The format of a module, None for 16 bit."""
        if self.ignored is not None and self.ignored.match(name, layer):
            return None
        for names, found in self.groups:
            if names.match(name, layer):
                return found
        return self.general


@dataclass(slots=True)
class Formats:
    """What the architecture file says about number formats."""

    weights: dict[str, str]
    activations: str | None = None
    kv: str | None = None
    notes: list[str] = field(default_factory=list)


def formats(
    problems: Problems,
    outer: Mapping[str, Any],
    inner: Mapping[str, Any],
    beside: Mapping[str, Any] | None,
    decoder: Decoder,
) -> Formats:
    """Formats of a model from its file, its decoder part and the ModelOpt file beside it (None: there is none)."""
    base, notes = _base(problems, inner, outer)
    quantization = outer.get("quantization_config") or inner.get("quantization_config")
    place, place_beside = "quantization_config", "hf_quant_config.json quantization"
    extra = problems.mapping((beside or {}).get("quantization") or {}, place_beside)
    if quantization is None and extra:
        quantization, place = {"quant_method": "modelopt", **extra}, place_beside
    result = Formats({"default": base}, notes=notes)
    if quantization is None:
        return result
    quantization = problems.mapping(quantization, place)
    scheme = _scheme(problems, place, quantization)
    stated = {key: value for key, value in quantization.items() if value is not None}
    result.kv = _kv(problems, place, {**extra, **stated})
    _judge(scheme, decoder, result)
    expert = inner.get("expert_dtype") or outer.get("expert_dtype")
    moe = any(block["kind"] == "moe" for block in decoder.ffns.values())
    # The field is that of the original file; a later quantization of the experts stands in the groups.
    if expert == "fp4" and moe and result.weights.get("experts") in (None, "fp8", "fp8_block"):
        result.weights["experts"] = "mxfp4"
    return result


def _base(problems: Problems, inner: Mapping[str, Any], outer: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The dtype of what is not quantised, and a remark where the file has a wider one."""
    for values, key in itertools.product((inner, outer), ("dtype", "torch_dtype")):
        value = values.get(key)
        if value is None:
            continue
        name = str(value)[:60].removeprefix("torch.")
        if name not in DTYPES:
            problems.add(f"{key}: {unknown('dtype', name, DTYPES)}")
            return "bf16", []
        remark = ["weights are saved in float32; they count as bf16, in which engines load them"]
        return DTYPES[name], remark if name in ("float32", "float") else []
    return "bf16", []


def _scheme(problems: Problems, place: str, quantization: Mapping[str, Any]) -> Scheme:
    method = quantization.get("quant_method")
    if method is None and quantization.get("quant_algo"):
        method = "modelopt"
    if method not in METHODS:
        problems.add(f"{place}.quant_method: {unknown('method', str(method)[:60], METHODS)}")
        return Scheme()
    lists = [value for value in (quantization.get(key) for key in LEFT_OUT) if isinstance(value, list)]
    left = list(itertools.chain.from_iterable(lists))
    scheme = Scheme(ignored=read_names(problems, f"{place} (modules left in 16 bit)", left))
    if method in PLAIN_METHODS and quantization.get("moe_quant_algo"):
        # ModelOpt on top of an fp8 file: only the layers it lists changed, and what it left out stayed fp8.
        _modelopt(problems, place, quantization, scheme)
        scheme.general, scheme.ignored = _plain(method, quantization), None
        return scheme
    scheme.quantises_head = method in ("compressed-tensors", "modelopt", "modelopt_fp4")
    if method in PLAIN_METHODS and not quantization.get("quant_algo"):
        scheme.general = _plain(method, quantization)
    elif method in ("awq", "gptq", "bitsandbytes"):
        scheme.general = _weight_only(problems, place, method, quantization)
    elif method == "compressed-tensors":
        _groups(problems, place, quantization, scheme)
    else:
        _modelopt(problems, place, quantization, scheme)
    return scheme


def _plain(method: str, quantization: Mapping[str, Any]) -> Format:
    """The format that the method itself means; fp8 is scaled by blocks where the file gives their size."""
    return BLOCKS if method == "fp8" and quantization.get("weight_block_size") else PLAIN_METHODS[method]


def _weight_only(problems: Problems, place: str, method: str, quantization: Mapping[str, Any]) -> Format | None:
    bits = quantization.get("bits", quantization.get("w_bit"))
    if method == "bitsandbytes":
        bits = 4 if quantization.get("load_in_4bit") is True else 8
    if bits not in (4, 8) or isinstance(bits, bool):
        problems.add(f"{place}.bits: {str(bits)[:60]!r} is not covered; allowed: 4, 8")
        return None
    return f"int{bits}", "bf16"


def _modelopt(problems: Problems, place: str, quantization: Mapping[str, Any], scheme: Scheme) -> None:
    algorithm = quantization.get("quant_algo")
    layers = quantization.get("quantized_layers")
    if isinstance(layers, dict):
        by_format: dict[Format, list[str]] = {}
        for name, entry in layers.items():
            listed = entry.get("quant_algo") if isinstance(entry, dict) else entry
            found = _algorithm(problems, f"{place}.quantized_layers", listed)
            if found:
                by_format.setdefault(found, []).append(str(name))
        where = f"{place}.quantized_layers"
        scheme.groups = [(read_names(problems, where, names), key) for key, names in by_format.items()]
    elif algorithm == "MIXED_PRECISION" or (algorithm is None and quantization.get("config_groups")):
        _groups(problems, place, quantization, scheme)
    elif algorithm is not None:
        scheme.general = _algorithm(problems, f"{place}.quant_algo", algorithm)


def _algorithm(problems: Problems, place: str, value: Any) -> Format | None:
    if isinstance(value, str) and value.upper() in ALGORITHMS:
        return ALGORITHMS[value.upper()]
    problems.add(f"{place}: {unknown('algorithm', str(value)[:60], ALGORITHMS)}")
    return None


def _groups(problems: Problems, place: str, quantization: Mapping[str, Any], scheme: Scheme) -> None:
    groups = problems.mapping(quantization.get("config_groups") or {}, f"{place}.config_groups")
    if not groups:
        problems.add(f"{place}.config_groups: missing; the groups say which layers have which format")
    for name, group in groups.items():
        where = f"{place}.config_groups.{name[:60]}"
        group = problems.mapping(group, where)
        weights = _number_format(problems, f"{where}.weights", group.get("weights"), group.get("format"))
        activations = _number_format(problems, f"{where}.input_activations", group.get("input_activations"), None)
        targets = group.get("targets")
        if weights is None:
            continue
        found = (weights, activations or "bf16")
        if not isinstance(targets, list) or "Linear" in targets:
            scheme.general = scheme.general or found
        else:
            scheme.groups.append((read_names(problems, f"{where}.targets", targets), found))


def _number_format(problems: Problems, place: str, value: Any, packing: Any) -> str | None:
    """The format of {num_bits, type, group_size, strategy}: nvfp4 has 16 elements a scale, mxfp4 32."""
    if value is None:
        return None
    value = problems.mapping(value, place)
    bits, kind, group = value.get("num_bits"), value.get("type"), value.get("group_size")
    if bits == 4 and kind == "float":
        return "mxfp4" if group == 32 or str(packing).startswith("mxfp4") else "nvfp4"
    if (bits, kind) in ((8, "float"), (8, "int"), (4, "int")):
        if kind == "float":
            return "fp8_block" if value.get("strategy") == "block" else "fp8"
        return f"int{bits}"
    shown = f"{str(bits)[:20]} bits of type {str(kind)[:20]!r}"
    problems.add(f"{place}: {shown} are not covered; allowed: 8 or 4 bits, float or int")
    return None


def _kv(problems: Problems, place: str, quantization: Mapping[str, Any]) -> str | None:
    algorithm = quantization.get("kv_cache_quant_algo")
    if isinstance(algorithm, str) and algorithm.upper() in KV_ALGORITHMS:
        return KV_ALGORITHMS[algorithm.upper()]
    if algorithm is not None:
        problems.add(f"{place}.kv_cache_quant_algo: {unknown('algorithm', str(algorithm)[:60], KV_ALGORITHMS)}")
    return _number_format(problems, f"{place}.kv_cache_scheme", quantization.get("kv_cache_scheme"), None)


def _judge(scheme: Scheme, decoder: Decoder, result: Formats) -> None:
    """The format of each role: that of most of its layers, with a note where they differ."""
    found: dict[str, list[Format | None]] = {}
    for index, pair in enumerate(decoder.layers):
        for role, paths in _parts(decoder, pair):
            each = [scheme.format(f"model.layers.{index}.{path}", str(index)) for path in paths]
            found.setdefault(role, []).extend(each)
    if scheme.quantises_head:
        found["head"] = [scheme.format("lm_head", "")]
    activations = set()
    for role, each in found.items():
        chosen, count = Counter(each).most_common(1)[0]
        if count < len(each):
            others, shown = f"{len(each) - count} of {len(each)}", chosen[0] if chosen else "16 bit"
            result.notes.append(f"quantization: {others} {role} matrices are not {shown}; all count as {shown}")
        if chosen is not None:
            result.weights[role] = chosen[0]
            activations.add(chosen[1])
    if activations:
        result.activations = max(activations, key=lambda dtype: (BYTES[dtype], dtype))
        if len(activations) > 1:
            shown = ", ".join(sorted(activations))
            result.notes.append(f"quantization: activations are {shown}; all count as {result.activations}")


def _parts(decoder: Decoder, pair: LayerPair) -> Iterable[tuple[str, tuple[str, ...]]]:
    """The roles of a layer, with the linear layers that stand for each."""
    mixers, ffn = pair
    for mixer in (mixers,) if isinstance(mixers, str) else mixers or ():
        yield "mixer", decoder.paths.get(mixer) or USUAL_PATHS.get(decoder.mixers[mixer]["kind"], _SOFTMAX)
    if ffn is None:
        return
    block = decoder.ffns[ffn]
    if block["kind"] != "moe":
        yield "ffn", decoder.paths.get(ffn) or USUAL_PATHS[block["kind"]]
        return
    yield "experts", decoder.paths.get("experts") or USUAL_PATHS["experts"]
    if block.get("shared") or block.get("dense_d_ff"):
        yield "shared_experts", decoder.paths.get("shared_experts") or USUAL_PATHS["shared_experts"]

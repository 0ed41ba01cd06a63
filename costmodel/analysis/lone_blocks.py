"""A mechanism by itself: a model of one layer, in the sizes of a model that is known for it."""

from collections.abc import Iterator, Sequence
from typing import Any

from costmodel import ffns, mixers
from costmodel.architecture import Architecture, Block
from costmodel.dims import by_name
from costmodel.errors import BadInput
from costmodel.loading import Problems, available, data_folder
from costmodel.model_file import load_architecture, read_dims, setting_value
from costmodel.settings import apply_settings

SHOWN_WITH = (
    "llama-3.1-8b",
    "mistral-7b-v0.1",
    "deepseek-v3",
    "deepseek-v3.2",
    "qwen3-next-80b-a3b",
    "kimi-linear-48b-a3b",
    "mamba2-2.7b",
    "rwkv7-7.2b",
)
"""Models whose blocks stand for a mechanism, the best known first; after them the others by name."""


def find_module(target: str) -> Any:
    """The mixer or FFN of this name or alias, None when an architecture or nothing has the name."""
    if "/" in target or target.endswith((".yaml", ".yml", ".json")):
        return None
    file_name = target.replace("-", "_")
    if file_name not in (*mixers.names(), *ffns.names()) and target in available("architectures"):
        return None
    for find in (mixers.mixer, ffns.ffn):
        try:
            return find(target)
        except BadInput:
            continue
    return None


def typical_block(module: Any) -> tuple[str | None, Any, int]:
    """The model whose block stands for a mechanism, the block's dimensions, and the model's width."""
    folder = data_folder("architectures")
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    spellings = [f"kind: {name}" for name in (module.NAME, module.NAME.replace("_", "-"), *module.ALIASES)]
    for name in [*(name for name in SHOWN_WITH if name in names), *names]:
        path = folder / f"{name}.yaml"
        if not any(spelling in path.read_text(encoding="utf-8") for spelling in spellings):
            continue
        model = load_architecture(str(path))
        for _, block in blocks_of(model):
            if block.module is module:
                return name, block.dims, model.D
    return None, module.EXAMPLES[0], 64


def lone_block(module: Any, dims: Any, D: int, settings: Sequence[str] = ()) -> Architecture:
    """A model of one layer with this mechanism only; settings change its fields and `d_model`."""
    section = "mixers" if hasattr(module, "cache") else "ffns"
    raw: dict[str, Any] = {"d_model": D, section: {module.NAME: by_name(dims)}}
    apply_settings(raw, settings, "", module.NAME, quantity=setting_value)
    problems = Problems(module.NAME)
    width = problems.whole_number(raw["d_model"], "d_model", most=10**7)
    changed = read_dims(problems, module.Dims, raw[section][module.NAME], f"{section}.{module.NAME}")
    if changed is not None:
        for message in module.check(changed):
            problems.add(message)
    problems.raise_if_any()
    blocks = {module.NAME: Block(module.NAME, module, changed)}
    layer = (module.NAME, None) if section == "mixers" else (None, module.NAME)
    return Architecture(
        name=module.NAME,
        title=module.TITLE,
        D=width,
        V=1,
        tied_embeddings=True,
        max_context=None,
        mixers=blocks if section == "mixers" else {},
        ffns=blocks if section == "ffns" else {},
        layers=(layer,),
        weights={"default": "bf16"},
    )


def blocks_of(model: Architecture) -> Iterator[tuple[str, Block]]:
    """All mixers and FFNs of a model, by name."""
    yield from model.mixers.items()
    yield from model.ffns.items()

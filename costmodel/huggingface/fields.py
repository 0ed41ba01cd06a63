"""Typed reading of a `config.json`: a wrong or missing field is noted with its name, its value and what is allowed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from costmodel.errors import unknown
from costmodel.loading import Problems

MAX_LAYERS = 10_000
MOST = 2**31

MIXER_FIELDS = frozenset(
    {
        "attention_chunk_size",
        "attention_other_setting",
        "attn_layer_indices",
        "attn_layer_period",
        "attn_type_list",
        "block_configs",
        "compress_ratios",
        "efficient_attention_config",
        "full_attention_interval",
        "hidden_size_per_layer_input",
        "hybrid_layer_ids",
        "hybrid_layer_pattern",
        "hybrid_override_pattern",
        "index_topk",
        "indexer_types",
        "kv_lora_rank",
        "layer_group_size",
        "layer_types",
        "layers_block_type",
        "linear_attn_config",
        "linear_num_value_heads",
        "mamba_d_state",
        "mamba_n_heads",
        "mamba_num_heads",
        "mixer_types",
        "moe_num_experts",
        "n_mamba_heads",
        "n_routed_experts",
        "num_experts",
        "num_kv_shared_layers",
        "num_local_experts",
        "sliding_window",
        "sliding_window_pattern",
        "sparse_attention_config",
        "sparse_config",
        "ssm_cfg",
        "ssm_state_size",
        "state_size",
    }
)
"""Fields that say which mixer or FFN a layer has. A reader that overlooks one that is set has misread the model."""


class Fields:
    """The fields of one mapping of the file. `seen` remembers which were asked for.

    >>> f = Fields({"heads": 8, "width": 0}, Problems("config.json"))
    >>> f.whole("heads", "num_heads"), f.whole("width"), f.problems.found
    (8, 1, ['width: 0 is outside 1 to 2147483648'])
    """

    def __init__(self, values: Mapping[str, Any], problems: Problems, where: str = "") -> None:
        self.values = values
        self.problems = problems
        self.where = where
        self.seen: set[str] = set()

    def get(self, *names: str) -> tuple[str, Any]:
        """The first of these fields that is present and not null, as (its place in the file, value)."""
        self.seen.update(names)
        for name in names:
            if self.values.get(name) is not None:
                return self.where + name, self.values[name]
        return self.where + names[0], None

    def whole(self, *names: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        """A whole number under one of these names; without a default it must be there."""
        place, value = self.get(*names)
        if value is None:
            if default is None:
                also = f" (also read: {', '.join(names[1:])})" if names[1:] else ""
                self.problems.add(f"{place}: missing; a whole number from {least} is needed{also}")
                return least
            return default
        return self.problems.whole_number(value, place, least=least, most=most)

    def maybe(self, *names: str, least: int = 1) -> int | None:
        """A whole number, or None where the field is null or absent."""
        return None if self.get(*names)[1] is None else self.whole(*names, least=least)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        place, value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problems.add(f"{place}: {str(value)[:60]!r} is not true or false")
        return value is True

    def word(self, *names: str, default: str = "", known: Sequence[str] = ()) -> str:
        """A text; with `known`, one of these."""
        place, value = self.get(*names)
        if value is None:
            return default
        if not isinstance(value, str):
            self.problems.add(f"{place}: {str(value)[:60]!r} is not a text")
            return default
        if known and value not in known:
            self.problems.add(f"{place}: {unknown('value', value, known)}")
            return known[0]
        return value

    def section(self, name: str) -> "Fields":
        """The fields of a nested mapping; empty where it is absent."""
        place, value = self.get(name)
        values = {} if value is None else self.problems.mapping(value, place)
        return Fields(values, self.problems, f"{place}.")

    def layers(self) -> int:
        """The number of decoder layers, without multi-token-prediction layers."""
        return self.whole("num_hidden_layers", "n_layers", "n_layer", most=MAX_LAYERS)

    def extra_layers(self) -> int:
        """Multi-token-prediction layers, which lists may include and the number of layers does not."""
        direct = self.whole("num_nextn_predict_layers", "mtp_num_hidden_layers", default=0, least=0, most=MAX_LAYERS)
        modules = self.whole("num_mtp_modules", default=0, least=0, most=MAX_LAYERS)
        each = self.whole("mtp_transformer_layers", default=1, most=MAX_LAYERS)
        # Nemotron writes the layers out, one for each mixer or FFN, of one module.
        written = any(self.get(name)[1] for name in ("mtp_hybrid_override_pattern", "mtp_layers_block_type"))
        return direct or modules * each or int(written)

    def per_layer(self, name: str, layers: int, known: Mapping[Any, Any]) -> list[Any] | None:
        """A list with one entry per layer, each translated by `known`; entries of MTP layers are cut off."""
        place, value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            self.problems.add(f"{place}: expected a list with one entry per layer, found {type(value).__name__}")
            return None
        if len(value) not in (layers, layers + self.extra_layers()):
            extra = f" and {self.extra_layers()} multi-token-prediction layers" if self.extra_layers() else ""
            self.problems.add(f"{place}: {len(value)} entries for {layers} layers{extra}")
            return None
        return self.translated(place, value[:layers], known)

    def translated(self, place: str, value: Sequence[Any], known: Mapping[Any, Any]) -> list[Any] | None:
        """Entries as the meanings that `known` gives them; None when one is not known."""
        # True is equal to 1, and lists are not hashable: both are entries of the wrong type.
        wrong = [item for item in value if type(item) not in (int, str) or item not in known]
        if wrong:
            allowed = ", ".join(str(key) for key in known)
            self.problems.add(f"{place}: {str(wrong[0])[:60]!r} is not known; allowed: {allowed}")
            return None
        return [known[item] for item in value]

    def positions(self, name: str, layers: int, first: int = 0) -> set[int]:
        """A list of layer numbers counted from `first`, as a set counted from 0."""
        place, value = self.get(name)
        if value is None:
            return set()
        if not isinstance(value, list):
            self.problems.add(f"{place}: expected a list of layer numbers, found {type(value).__name__}")
            return set()
        return {self.problems.whole_number(item, place, least=first, most=layers - 1 + first) - first for item in value}

    def unread(self) -> list[str]:
        """Fields about mixers that are set and that the reader did not look at."""
        return [name for name in sorted(MIXER_FIELDS - self.seen) if _is_set(self.values.get(name))]


def _is_set(value: Any) -> bool:
    return value not in (None, False, 0, "", [], {})


def chosen(layers: int, rule: Callable[[int], bool]) -> list[bool]:
    """The rule for every layer, counted from 0.

    >>> chosen(4, lambda i: (i + 1) % 2 == 0)
    [False, True, False, True]
    """
    return [rule(index) for index in range(layers)]

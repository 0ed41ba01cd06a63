"""Our iteration times in other people's simulators: one class with the methods that they call.

- SGLang Simulator, `InferTimePredictor`: predict_infer_time(batch); batch.reqs have extend_length (new tokens) and
  past_kv_length (tokens cached). Source: sgl-project/sglang, tools/sglang-simulator, time_predictor/base.py.
- SGLang Simulator, `ml` predictor: predict(rows) of a scikit-learn regressor, over the 18 features of a batch that
  FEATURES lists. Source: the same, time_predictor/ml.py.
- Vidur: get_execution_time(batch, pipeline_stage). Source: microsoft/vidur, execution_time_predictor.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from costmodel.planning.step_times import StepTimes, mean_chunk

FEATURES = (
    "batch_size",
    "sum_extend",
    "max_extend",
    "min_extend",
    "sum_past",
    "max_past",
    "min_past",
    "sum_extend_x_past",
    "sum_extend_squared",
    "sum_past_squared",
    "sum_attn_flops",
    "sum_extend_x_max_past",
    "log1p_sum_past",
    "log1p_sum_attn_flops",
    "batch_size_x_sum_extend",
    "max_past_minus_min_past",
    "is_decode",
    "is_prefill",
)


class ExecutionTime(NamedTuple):
    """Seconds of an iteration, as Vidur reads them: on the device, and with the host's part."""

    model_time: float
    total_time: float

    @property
    def model_time_ms(self) -> float:
        """Milliseconds on the device."""
        return self.model_time * 1e3


class StepPredictor:
    """Seconds of an iteration from what is in it.

    A request with one new token decodes, one with more is a chunk of a prompt (with verified drafts: one with
    times.new_tokens after cached ones decodes too).
    """

    def __init__(self, times: StepTimes) -> None:
        self.times = times

    def seconds(self, requests: Iterable[tuple[int, int]]) -> float:
        """Of requests given as (new tokens, tokens cached before them)."""
        decoding, chunks, cached = 0, [], 0
        for new, past in requests:
            if past and new in (1, self.times.new_tokens):
                decoding, cached = decoding + 1, cached + past
            elif new > 0:
                chunks.append((new, past))
        if not decoding and not chunks:
            return 0.0
        context = cached / decoding + self.times.new_tokens if decoding else 0.0
        length, prefix = mean_chunk(chunks) if chunks else (0.0, 0.0)
        return self.times.step_s(decoding, context, len(chunks), length, prefix)

    def predict_infer_time(self, batch: Any) -> float:
        """For SGLang Simulator: seconds of a batch."""
        return self.seconds((request.extend_length, request.past_kv_length) for request in batch.reqs)

    def predict(self, rows: Iterable[Sequence[float]]) -> list[float]:
        """For a simulator that calls a scikit-learn regressor: seconds of batches given by their FEATURES.

        Sums do not tell a mixed batch apart; taken are equal chunks beside sequences with one new token, which the
        sums of new tokens, of their squares, and of their products with cached ones determine.
        """
        return [self._of_features(row) for row in rows]

    def _of_features(self, row: Sequence[float]) -> float:
        size, new, longest, shortest, past = row[:5]
        products, squares = row[7], row[8]
        if not size:
            return 0.0
        if longest == 1:
            return self.times.decode_s(round(size), past / size + self.times.new_tokens)
        if shortest > 1:
            length = new / size
            pairs = products + squares / 2
            return self.times.step_s(0, 0.0, round(size), length, max(pairs / new - length / 2, 0.0))
        # m chunks of c tokens beside n single ones: Σe − n − m = m(c − 1), Σe² − n − m = m(c² − 1).
        together = new - size
        chunks = max(round(together / ((squares - size) / together - 2)), 1)
        decoding = max(round(size) - chunks, 1)
        length = (new - decoding) / chunks
        # Their prefix p, from all products with the cached tokens: Σe(p + e/2).
        pairs = products + squares / 2 - past - decoding / 2
        prefix = max((pairs / chunks - length * length / 2) / (length - 1), 0.0)
        context = (past - chunks * prefix) / decoding + self.times.new_tokens
        return self.times.step_s(decoding, context, chunks, length, prefix)

    def get_execution_time(self, batch: Any, pipeline_stage: int) -> ExecutionTime:
        """For Vidur: batch.requests with num_processed_tokens, and batch.num_tokens of each; one pipeline stage."""
        counts = zip(batch.requests, batch.num_tokens, strict=True)
        total = self.seconds((new, request.num_processed_tokens) for request, new in counts)
        return ExecutionTime(total - self.times.host_s if total else 0.0, total)

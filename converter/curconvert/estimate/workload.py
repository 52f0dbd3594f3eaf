"""The sizes that an estimate is based on: of the model, of the calibration text and of the conversion's work."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from curconvert.base.names import layer_of
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.calibration.self_text import RESIDENT_BYTES
from curconvert.checkpoint.dtypes import stored_dtype
from curconvert.checkpoint.linears import decoder_linears, total_parameters
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.roles import distinct_inputs
from curconvert.families.skeleton import EMBEDDING
from curconvert.methods.core.options import ConvertOptions
from curconvert.methods.core.planning import keeps_inputs
from curconvert.selection.layers import score_of


class Workload:
    """Describes one conversion by its sizes.

    Args:
        checkpoint: The opened model.
        plan: The plan from shapes alone.
        options: Method, numerics and calibration.

    Attributes:
        options: As given.
        hidden: Hidden size.
        layers: Number of decoder blocks.
        vocabulary: Number of tokens in the vocabulary.
        whole: Parameters of all linears; `block` of the largest block, `head` of the lm_head.
        tokens: Calibration tokens; `length` of them in a sequence.
        probes: Held-out tokens.
        compressed: Matrices that are factorized.
        changed: The same, or all matrices with quantization.
        changed_layers: The layers of `changed`.
        sixteen_bits: Whether weights have 16 bits.
    """

    def __init__(self, checkpoint: Checkpoint, plan: Plan, options: ConvertOptions) -> None:
        self.options, self._checkpoint, self._plan = options, checkpoint, plan
        self.hidden, self.layers = (int(checkpoint.config[key]) for key in ("hidden_size", "num_hidden_layers"))
        self.vocabulary = checkpoint.tensors[EMBEDDING].shape[0]
        self.head = self.vocabulary * self.hidden
        blocks = [0] * self.layers
        for m in plan.matrices:
            blocks[layer_of(m.name)] += m.parameters_before
        self.whole, self.block = sum(blocks), max(blocks)
        text = options.calibration
        self.length, self.sequences = text.tokens_per_sequence, text.sequences + text.probe_sequences
        self.tokens, self.probes = text.sequences * self.length, text.probe_sequences * self.length
        self.compressed = [m for m in plan.matrices if m.is_compressed]
        self.changed: list[MatrixPlan] = list(plan.matrices) if options.quantization else self.compressed
        self.changed_layers = {layer_of(m.name) for m in self.changed}
        self.sixteen_bits = stored_dtype(checkpoint) != "float32"

    @cached_property
    def components(self) -> int:
        """Parameters of a model split into components for learning; 0 without learning."""
        return sum(min(m.shape) * sum(m.shape) for m in self.compressed) if self.options.needs.resident else 0

    @property
    def scored(self) -> bool:
        """Whether layers are chosen by a score."""
        return score_of(self.options.layers) is not None

    @property
    def known(self) -> bool:
        """Whether the first pass stores every linear's inputs."""
        return keeps_inputs(self._checkpoint, self.options)

    @property
    def calibrates_first(self) -> bool:
        """Whether the calibration text runs through the whole original first."""
        return self.options.needs.statistics or self.scored or self._reads_head

    @property
    def _reads_head(self) -> bool:
        asked = self.options.quantization
        return asked is not None and asked.uses_statistics

    @property
    def knows_statistics(self) -> bool:
        """Whether all input statistics are known before blocks are compressed."""
        return self.options.needs.statistics or self.known

    @cached_property
    def grams(self) -> list[int]:
        """Sizes of the inputs whose Gram matrix is formed, for all blocks."""
        return [width for width in self._inputs(self.changed) if self.tokens >= width]

    @cached_property
    def samples(self) -> set[int]:
        """Sizes of the inputs that are stored instead of a Gram matrix."""
        return {m.shape[1] for m in self.changed if self.tokens < m.shape[1]}

    def _inputs(self, matrices: Iterable[MatrixPlan]) -> list[int]:
        return list(distinct_inputs({m.name: m.shape for m in matrices}).values())

    @property
    def table(self) -> int:
        """Bytes of the embedding or the lm_head in memory."""
        return self.head * (2 if self.sixteen_bits else 4)

    @property
    def resident(self) -> int:
        """Bytes of the model in memory while it writes text; 0 if it writes none."""
        total = 4 * total_parameters(self._checkpoint)
        return total if self.options.self_text and total <= RESIDENT_BYTES else 0

    @property
    def learning(self) -> float:
        """Bytes of the original and of its copy in components during learning; 0 without learning."""
        return 4.0 * (2 * total_parameters(self._checkpoint) + self.components) if self.options.needs.resident else 0.0

    @property
    def written_tokens(self) -> float:
        """Tokens that the model writes."""
        return self.options.self_text * self.sequences * self.length if self.resident else 0.0

    @property
    def cache(self) -> float:
        """Bytes of the KV cache while the model writes text."""
        config = self._checkpoint.config
        heads = int(config["num_attention_heads"])
        size = int(config.get("head_dim") or self.hidden // heads)
        return 8.0 * int(config.get("num_key_value_heads") or heads) * size * self.layers * self.written_tokens

    @property
    def widest(self) -> int:
        """Most features of any linear's input or output."""
        return max(max(shape) for shape in decoder_linears(self._checkpoint).values())

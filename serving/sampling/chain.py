"""The whole chain of samplers on one row of logits, on the host and to be read: what a next token is drawn from.

DRY and roles are their references; the rest is as vLLM does it, in its order. Presence and frequency count an output
that is not there yet. It draws nothing, and knows no vLLM.

Source of the order and of the cuts: vLLM 0.32, v1/sample/sampler.py, v1/sample/ops, v1/worker/gpu/sample/sampler.py.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from serving.core import LogitsRules, PreparedRequest, Sampling
from serving.sampling.dry.reference import penalties
from serving.sampling.headers import Headers
from serving.sampling.roles.reference import TokenClasses, constrain, constraint
from serving.sampling.vocabulary import Vocabulary

Row = npt.NDArray[np.float64]

_GREEDY_BELOW = 1e-5
_LEAST_TEMPERATURE = 1e-2


class Chain:
    """The samplers of one model. `penalty_first`: its engine penalizes repetition before our samplers, not after."""

    def __init__(self, vocabulary: Vocabulary, *, penalty_first: bool) -> None:
        self._vocabulary = vocabulary
        self._penalty_first = penalty_first

    @property
    def size(self) -> int:
        """Of a row."""
        return self._vocabulary.size

    @cached_property
    def _classes(self) -> TokenClasses:
        return self._vocabulary.classes()

    def apply(self, logits: Row, request: PreparedRequest) -> Row:
        """The log probabilities `[size]` that the next token of `request` is drawn with. Log probabilities are logits,
        too, but for a repetition penalty: that needs those of the model."""
        row = logits.copy()
        sampling = request.sampling
        for token, bias in sampling.logit_bias.items():
            row[token] += bias
        if sampling.min_tokens:
            row[list(request.stop_token_ids)] = -np.inf
        if self._penalty_first:
            penalize(row, request.token_ids, sampling.repetition_penalty)
        if request.rules is not None:
            row = self._ruled(row, request.token_ids, request.rules)
        if not self._penalty_first:
            penalize(row, request.token_ids, sampling.repetition_penalty)
        return drawn(row, sampling)

    def _ruled(self, row: Row, token_ids: tuple[int, ...], rules: LogitsRules) -> Row:
        if rules.dry is not None:
            breakers = self._vocabulary.breakers(rules.dry.sequence_breakers, rules.markers)
            headers = Headers.of(rules.markers, self._classes.line_break)
            for token, penalty in penalties(token_ids, rules.dry, breakers, headers).items():
                row[token] -= penalty
        if rules.roles is not None:
            told = constraint(token_ids, rules.roles, rules.markers, self._classes)
            row = np.array(constrain(row.tolist(), told))
        return row


def penalize(row: Row, token_ids: Sequence[int], penalty: float) -> None:
    """Change the logits of all tokens that are there, each once, in place."""
    seen = np.unique(np.array(token_ids, int))
    row[seen] = np.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)


def drawn(row: Row, sampling: Sampling) -> Row:
    """Temperature, min-p, top-k and top-p, and what is left made to log probabilities."""
    if sampling.temperature < _GREEDY_BELOW:
        only = np.full_like(row, -np.inf)
        only[row.argmax()] = 0.0
        return only
    row = normal(row / max(sampling.temperature, _LEAST_TEMPERATURE))
    if sampling.min_p:
        row = np.where(row < row.max() + np.log(sampling.min_p), -np.inf, row)
    if 0 < sampling.top_k < len(row):
        row = np.where(row < np.sort(row)[-sampling.top_k], -np.inf, row)
    if sampling.top_p < 1:
        order = np.argsort(row, kind="stable")
        below = np.cumsum(np.exp(normal(row)[order])) <= 1 - sampling.top_p
        below[-1] = False
        row[order[below]] = -np.inf
    return normal(row)


def normal(row: Row) -> Row:
    """The row as log probabilities; one in which nothing is possible stays as it is."""
    top = row.max()
    if top == -np.inf:
        return row
    told: Row = row - (top + np.log(np.exp(row - top).sum()))
    return told

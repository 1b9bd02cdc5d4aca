"""The whole chain of samplers on one row of logits, on the host and to be read: what a next token is drawn from.

DRY and roles are their references; the rest is as vLLM does it, in its order. Left out is the repetition penalty, which
needs the logits themselves, and here are log probabilities; presence and frequency count an output that is not there
yet. It draws nothing, and knows no vLLM.

Source of the order and of the cuts: vLLM 0.32, v1/sample/sampler.py, v1/sample/ops/topk_topp_sampler.py.
"""

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
    """The samplers of one model."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    @property
    def size(self) -> int:
        """Of a row."""
        return self._vocabulary.size

    @cached_property
    def _classes(self) -> TokenClasses:
        return self._vocabulary.classes()

    def apply(self, logprobs: Row, request: PreparedRequest) -> Row:
        """The log probabilities `[size]` that the next token of `request` is drawn with."""
        row = logprobs.copy()
        sampling = request.sampling
        for token, bias in sampling.logit_bias.items():
            row[token] += bias
        if sampling.min_tokens:
            row[list(request.stop_token_ids)] = -np.inf
        if request.rules is not None:
            row = self._ruled(row, request.token_ids, request.rules)
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

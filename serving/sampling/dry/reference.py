"""DRY as it is defined, to be read and to be compared with. Its kernels are `host.py` and `device.py`.

Let S be the prompt and what has been generated, K the breakers (every special token is one), m, b, A and r the
multiplier, base, allowed length and range:

1. m = 0: nothing. W is the last r tokens of S (all of them for r = 0), n = |W|; n < 2: nothing. A position of W is
   *broken* if its token is in K, if it is part of a sequence of K that occurs in W, or if it belongs to the header of a
   message (headers are found in S).
2. L(i), for 0 <= i <= n-2, is the largest l <= 50 with W[i-j] = W[n-1-j] for all j < l, none of these positions broken.
3. M(t) is the largest L(i) of an i whose next position i+1 holds t and is not broken; only M(t) >= 1 counts.
4. Where M(t) >= A the logit of t is lowered by m * b^(M(t) - A), at most by 1e30: once, by the maximum, not the sum.

Headers are left out since they repeat by their nature: `text names= Alice` would be penalised at every turn, and DRY
would decide who speaks.

Source: text-generation-webui, pull request 5677 and its present `DRYLogitsProcessor`.
"""

from collections.abc import Sequence

from serving.core import Dry
from serving.sampling.dry.params import MOST_LENGTH, Breakers, penalty_table
from serving.sampling.headers import Headers


def penalties(
    token_ids: Sequence[int], params: Dry, breakers: Breakers, headers: Headers | None = None
) -> dict[int, float]:
    """What to take off the logits of which tokens, given the history `token_ids`; tokens not named keep theirs."""
    table = penalty_table(params)
    longest = longest_repetitions(token_ids, params, breakers, headers)
    return {token: table[length] for token, length in longest.items() if table[length] > 0}


def longest_repetitions(
    token_ids: Sequence[int], params: Dry, breakers: Breakers, headers: Headers | None = None
) -> dict[int, int]:
    """M(t) of every token t that it is at least 1 for."""
    if params.multiplier <= 0:
        return {}
    begin = max(0, len(token_ids) - params.range) if params.range else 0
    window = token_ids[begin:]
    broken = broken_positions(window, breakers)
    if headers is not None:
        broken = [a or b for a, b in zip(broken, headers.positions(token_ids)[begin:], strict=True)]
    last = len(window) - 1
    longest: dict[int, int] = {}
    for i in range(last):
        if broken[i + 1]:
            continue
        length = 0
        while (
            length < min(i + 1, MOST_LENGTH)
            and window[i - length] == window[last - length]
            and not broken[i - length]
            and not broken[last - length]
        ):
            length += 1
        if length:
            token = window[i + 1]
            longest[token] = max(length, longest.get(token, 0))
    return longest


def broken_positions(window: Sequence[int], breakers: Breakers) -> list[bool]:
    """For each position whether its token is a breaker, or part of a sequence that is one."""
    broken = [token in breakers.ids for token in window]
    for sequence in breakers.sequences:
        size = len(sequence)
        for start in range(len(window) - size + 1) if size else ():
            if tuple(window[start : start + size]) == sequence:
                broken[start : start + size] = [True] * size
    return broken

"""Several choices at once leave their turn to others, however much they have to say."""

import asyncio

from serving.engine.choices import MOST_IN_A_ROW, generate_choices
from serving.engine.scripted import ScriptedEngine
from tests.engine.harness import CONTEXT_TOKENS, VOCAB_SIZE, ask


async def test_others_get_their_turn_between_events() -> None:
    engine = ScriptedEngine(context_tokens=CONTEXT_TOKENS, vocab_size=VOCAB_SIZE)
    turns, in_a_row, most = 0, 0, 0

    async def count_turns() -> None:
        nonlocal turns, in_a_row
        while True:
            turns, in_a_row = turns + 1, 0
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    async for _ in generate_choices(engine, [ask(index=index, max_tokens=60) for index in range(64)]):
        in_a_row += 1
        most = max(most, in_a_row)
    counting.cancel()
    assert most <= MOST_IN_A_ROW
    assert turns > 64

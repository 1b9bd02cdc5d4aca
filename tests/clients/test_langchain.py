"""LangChain's `ChatOpenAI`: a chat, whole and streamed, and an answer by a pydantic model."""

from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.end_to_end.conftest import MODEL, ServerProcess

TURNS = [("system", "A role-play between Mara, the captain of a ship, and Tom."), ("human", "Who is there?")]


class Answer(BaseModel):
    captain: bool


def test_a_chat(server: ServerProcess) -> None:
    model = ChatOpenAI(model=MODEL, base_url=f"{server.url}/v1", api_key=server.key, temperature=0, max_tokens=40)
    whole = model.invoke(TURNS)
    assert whole.content
    assert whole.usage_metadata["output_tokens"] <= 40
    assert "".join(part.content for part in model.stream(TURNS)) == whole.content
    assert isinstance(model.with_structured_output(Answer, method="json_schema").invoke(TURNS), Answer)

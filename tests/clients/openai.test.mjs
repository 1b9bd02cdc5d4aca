// The npm package `openai` against the server: what its users call, and what it makes of answers and errors.

import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const model = "opus-v1-sm";
const address = { baseURL: `${process.env.SERVER_URL}/v1`, apiKey: process.env.SERVER_KEY, maxRetries: 0 };
const client = new OpenAI(address);

const messages = [
  { role: "system", content: "A role-play between Mara, the captain of a ship, and Tom, a boy who hides on it." },
  { role: "user", name: "Tom", content: "Who is there?" },
];
const chat = { model, messages, max_tokens: 60, temperature: 0 };
const text = { model, prompt: "<|im_start|>text names= Mara\n", max_tokens: 40, temperature: 0 };

test("models are listed and found", async () => {
  const ids = [];
  for await (const found of client.models.list()) ids.push(found.id);
  assert.deepEqual(ids, [model, `${model}/text`, `${model}/assistant`]);
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("a streamed chat is the whole chat in parts", async () => {
  const whole = await client.chat.completions.create(chat);
  const [choice] = whole.choices;
  assert.equal(choice.message.role, "assistant");
  assert.ok(choice.message.content);
  assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);

  const stream = client.chat.completions.stream({ ...chat, stream_options: { include_usage: true } });
  let told = "";
  stream.on("content", (part) => (told += part));
  const folded = await stream.finalChatCompletion();
  assert.equal(told, choice.message.content);
  assert.equal(folded.choices[0].message.content, choice.message.content);
  assert.equal(folded.choices[0].finish_reason, choice.finish_reason);
  assert.deepEqual(folded.usage.completion_tokens, whole.usage.completion_tokens);
});

test("a streamed completion is the whole completion in parts", async () => {
  const whole = await client.completions.create(text);
  let told = "";
  for await (const part of await client.completions.create({ ...text, stream: true })) told += part.choices[0].text;
  assert.ok(told);
  assert.equal(told, whole.choices[0].text);
});

test("an answer is parsed by a schema", async () => {
  const Person = z.object({ name: z.enum(["Mara", "Tom"]), captain: z.boolean() });
  const answer = await client.chat.completions.parse({
    ...chat,
    response_format: zodResponseFormat(Person, "person"),
  });
  assert.deepEqual(Person.parse(answer.choices[0].message.parsed), answer.choices[0].message.parsed);
});

test("errors are the client's own, and name the field", async () => {
  const refused = (change) => client.chat.completions.create({ ...chat, ...change });
  await assert.rejects(refused({ model: "gpt-4" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    return error.code === "model_not_found";
  });
  await assert.rejects(refused({ temperature: -1 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    return error.param === "temperature";
  });
  const stranger = new OpenAI({ ...address, apiKey: "sk-wrong" });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});

test("an abort leaves the engine", async () => {
  const endless = { ...text, max_tokens: 3000, stream: true, ignore_eos: true };
  const stream = await client.completions.create(endless);
  for await (const _ of stream) {
    assert.equal(await running(), 1);
    break; // closes the connection
  }
  await until(async () => (await running()) === 0);

  const aborter = new AbortController();
  const aborted = client.completions.create({ ...endless, stream: false }, { signal: aborter.signal });
  const ended = assert.rejects(aborted, OpenAI.APIUserAbortError);
  await until(async () => (await running()) === 1);
  aborter.abort();
  await ended;
  await until(async () => (await running()) === 0);
});

async function running() {
  const metrics = await (await fetch(`${process.env.SERVER_URL}/metrics`)).text();
  return Number(metrics.match(/^serving_running_choices (\S+)$/m)[1]);
}

async function until(condition) {
  const deadline = Date.now() + 10_000;
  while (!(await condition())) assert.ok(Date.now() < deadline, "it did not come to be in 10 seconds");
}

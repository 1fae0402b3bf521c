// The npm package `openai` against the node that BOMBUS_API names. test_npm.py runs this over each kind of backend.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI, { toFile } from "openai";

const { BOMBUS_API, MODEL, EMBEDDER, KNOWN } = process.env;
const client = new OpenAI({ baseURL: `${BOMBUS_API}/v1`, apiKey: "unused", maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "Name three things that bees do." }];
const plain = { model: MODEL, messages, max_tokens: 16, temperature: 0 };

const textOf = async (stream) => {
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  return text;
};

test("the models are listed", async () => {
  const names = [];
  for await (const entry of client.models.list()) names.push(entry.id.replace(/:latest$/, ""));
  assert.ok(names.includes(MODEL) && names.includes(EMBEDDER), names.join());
});

test("an answer has text, usage and a reason to end", async () => {
  const answer = await client.chat.completions.create({ ...plain, max_tokens: 8 });
  assert.ok(answer.choices[0].message.content);
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 8);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + 8);
});

test("a stream says the same as a whole answer", async () => {
  const whole = await client.chat.completions.create(plain);
  assert.equal(await textOf(await client.chat.completions.create({ ...plain, stream: true })), whole.choices[0].message.content);
});

test("the stream helper puts the answer together", async () => {
  const runner = client.chat.completions.stream(plain);
  const final = await runner.finalChatCompletion();
  assert.ok(final.choices[0].message.content);
  assert.equal(final.choices[0].finish_reason, "length");
});

test("a stream that is left stops", async () => {
  const stream = await client.chat.completions.create({ ...plain, max_tokens: 2000, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    break;
  }
});

test("a seed repeats a random answer", async () => {
  const ask = async (seed) => (await client.chat.completions.create({ ...plain, temperature: 1.5, seed })).choices[0].message.content;
  const [first, again, other] = [await ask(1), await ask(1), await ask(2)];
  // llama-server's numbers depend on what else it computes at the time, and a random choice may then fall elsewhere.
  if (KNOWN === "yes") assert.equal(first, again);
  assert.notEqual(first, other);
});

test("a schema is kept to", async () => {
  const schema = {
    type: "object",
    properties: { legs: { type: "integer" }, flies: { type: "boolean" } },
    required: ["legs", "flies"],
    additionalProperties: false,
  };
  const answer = await client.chat.completions.create({
    ...plain,
    max_tokens: 200,
    response_format: { type: "json_schema", json_schema: { name: "insect", schema, strict: true } },
  });
  const insect = JSON.parse(answer.choices[0].message.content);
  assert.equal(typeof insect.legs, "number");
  assert.equal(typeof insect.flies, "boolean");
});

test("log probabilities belong to the text", async () => {
  const { choices } = await client.chat.completions.create({ ...plain, max_tokens: 6, logprobs: true, top_logprobs: 2 });
  const bytes = choices[0].logprobs.content.flatMap((entry) => entry.bytes);
  assert.equal(Buffer.from(bytes).toString(), choices[0].message.content);
});

test("a completion continues raw text", async () => {
  const answer = await client.completions.create({ model: MODEL, prompt: "One, two, three,", max_tokens: 6, temperature: 0 });
  assert.match(answer.choices[0].text, /four/);
});

test("embeddings come as numbers, which the client asks for in base64", async () => {
  const { data } = await client.embeddings.create({ model: EMBEDDER, input: ["the bee", "a red flower"] });
  assert.equal(data.length, 2);
  assert.equal(data[0].embedding.length, 64);
  assert.ok(Math.abs(Math.hypot(...data[0].embedding) - 1) < 1e-3);
});

test("an unknown model is not found", async () => {
  await assert.rejects(client.chat.completions.create({ ...plain, model: "nope" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
});

test("a prompt over the context is the request's fault", async () => {
  const long = [{ role: "user", content: "bee ".repeat(9000) }];
  await assert.rejects(client.chat.completions.create({ ...plain, messages: long }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.code, "context_length_exceeded");
    return true;
  });
});

test("a batch of requests is done and its answers are read", async () => {
  const line = (id, body) => JSON.stringify({ custom_id: id, method: "POST", url: "/v1/chat/completions", body });
  const requests = ["a", "b"].map((id) => line(id, { ...plain, max_tokens: 4 }));
  const content = `${[...requests, line("wrong", { ...plain, temperature: 9 })].join("\n")}\n`;
  const file = await client.files.create({ file: await toFile(Buffer.from(content), "requests.jsonl"), purpose: "batch" });
  let batch = await client.batches.create({ input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" });
  for (const until = Date.now() + 120_000; !["completed", "failed", "expired", "cancelled"].includes(batch.status);) {
    assert.ok(Date.now() < until, JSON.stringify(batch));
    await new Promise((resolve) => setTimeout(resolve, 100));
    batch = await client.batches.retrieve(batch.id);
  }
  assert.equal(batch.status, "completed");
  assert.deepEqual(batch.request_counts, { total: 3, completed: 2, failed: 1 });
  const read = async (id) => (await (await client.files.content(id)).text()).trim().split("\n").map((answer) => JSON.parse(answer));
  const answers = await read(batch.output_file_id);
  assert.deepEqual(answers.map((answer) => answer.custom_id), ["a", "b"]);
  for (const { response } of answers) assert.ok(response.body.choices[0].message.content);
  const [wrong] = await read(batch.error_file_id);
  assert.deepEqual([wrong.custom_id, wrong.response.status_code], ["wrong", 400]);
});

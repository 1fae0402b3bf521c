// The npm package `ollama` against the node that BOMBUS_API names. test_npm.py runs this over each kind of backend.
// KNOWN says whether the node knows its models and their memory, or has only names of them; NAMED whether it can give them further names.
import assert from "node:assert/strict";
import test from "node:test";
import { Ollama } from "ollama";

const { BOMBUS_API, MODEL, EMBEDDER, KNOWN, NAMED } = process.env;
const known = { skip: KNOWN === "yes" ? false : "models are only names here" };
const named = { skip: NAMED === "yes" ? false : "models are those of another node here" };
const client = new Ollama({ host: BOMBUS_API });
const messages = [{ role: "user", content: "Name three things that bees do." }];
const plain = { model: MODEL, messages, options: { temperature: 0, num_predict: 16 } };

test("the models are listed", async () => {
  const { models } = await client.list();
  const names = models.map((entry) => entry.name);
  assert.ok(names.includes(MODEL) && names.includes(`${EMBEDDER}:latest`), names.join());
});

test("an answer has text, counts and durations", async () => {
  const answer = await client.chat({ ...plain, options: { ...plain.options, num_predict: 8 } });
  assert.ok(answer.message.content);
  assert.equal(answer.done_reason, "length");
  assert.equal(answer.eval_count, 8);
  assert.ok(answer.eval_duration > 0 && answer.total_duration > 0);
});

test("a stream says the same as a whole answer", async () => {
  const whole = await client.chat(plain);
  let text = "";
  let last;
  for await (const part of await client.chat({ ...plain, stream: true })) {
    text += part.message.content;
    last = part;
  }
  assert.equal(text, whole.message.content);
  assert.ok(last.done);
  assert.equal(last.eval_count, whole.eval_count);
});

test("a stream can be aborted", async () => {
  const stream = await client.chat({ ...plain, options: { ...plain.options, num_predict: 2000 }, stream: true });
  await assert.rejects(async () => {
    for await (const part of stream) {
      assert.equal(part.done, false);
      stream.abort();
    }
  }, { name: "AbortError" });
});

test("generate answers and streams", async () => {
  const request = { model: MODEL, prompt: "One, two, three,", raw: true, options: { temperature: 0, num_predict: 6 } };
  const whole = await client.generate(request);
  assert.match(whole.response, /four/);
  let text = "";
  for await (const part of await client.generate({ ...request, stream: true })) text += part.response;
  assert.equal(text, whole.response);
});

test("a schema is kept to", async () => {
  const format = { type: "object", properties: { legs: { type: "integer" } }, required: ["legs"] };
  const answer = await client.chat({ ...plain, format, options: { temperature: 0, num_predict: 100 } });
  assert.equal(typeof JSON.parse(answer.message.content).legs, "number");
});

test("log probabilities belong to the text", async () => {
  const answer = await client.chat({ ...plain, logprobs: true, top_logprobs: 2 });
  assert.equal(answer.logprobs.map((entry) => entry.token).join(""), answer.message.content);
});

test("embeddings", async () => {
  const { embeddings } = await client.embed({ model: EMBEDDER, input: ["the bee", "a red flower"] });
  assert.equal(embeddings.length, 2);
  assert.equal(embeddings[0].length, 64);
});

test("an unknown model is not found", async () => {
  await assert.rejects(client.chat({ ...plain, model: "nope" }), { message: "model 'nope' not found", status_code: 404 });
});

test("tools are refused where the model has no place for them", known, async () => {
  const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
  await assert.rejects(client.chat({ ...plain, tools }), /does not support tools/);
});

test("show tells of a model", known, async () => {
  const shown = await client.show({ model: MODEL });
  assert.equal(shown.model_info["general.architecture"], "llama");
  assert.ok(shown.capabilities.includes("completion"));
});

test("a model is loaded, seen and unloaded", known, async () => {
  const loaded = async () => (await client.ps()).models.map((entry) => entry.name);
  await client.generate({ model: MODEL, prompt: "", keep_alive: "5m" });
  assert.ok((await loaded()).includes(MODEL));
  await client.generate({ model: MODEL, prompt: "", keep_alive: 0 });
  for (let round = 0; (await loaded()).includes(MODEL); round += 1) {
    assert.ok(round < 200, "the model is still in memory");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
});

test("a model is copied, made and deleted", named, async () => {
  await client.copy({ source: MODEL, destination: "copy-by-npm" });
  await client.create({ model: "made-by-npm", from: "copy-by-npm", system: "You keep bees.", parameters: { temperature: 0, num_predict: 2 } });
  const answer = await client.chat({ model: "made-by-npm", messages });
  assert.equal(answer.eval_count, 2);
  await client.delete({ model: "made-by-npm" });
  await client.delete({ model: "copy-by-npm" });
  await assert.rejects(client.show({ model: "made-by-npm" }), { status_code: 404 });
});

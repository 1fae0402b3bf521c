// Peers made of js-libp2p in swarms of real nodes. scripts/test.sh runs this with the packages of package-lock.json beside it.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import test from "node:test";

import { JsPeer, LIMIT_MS, sample, TOPICS, until } from "./js-peer.mjs";
import { Node } from "./node.mjs";

/** Starts what a test needs, gives it to the test, and ends it in any case. */
async function using(make, use) {
  const started = [];
  try {
    await use(await make((one) => started.push(one)));
  } finally {
    for (const one of started.reverse()) await one.stop();
  }
}

/** Asserts that a message has every field that the system has which the topics come from. */
function assertWhole(topic, message) {
  for (const field of Object.keys(sample(topic, "x", "x"))) assert.ok(field in message, `${field} in ${JSON.stringify(message)}`);
}

/** A node with two js peers that know only the node: what the second hears of the first went through it. */
const trio = (...more) => async (keep) => {
  const node = await Node.start("rust", ...more);
  keep(node);
  const { id, key } = await node.swarm();
  const peers = [];
  for (let count = 0; count < 2; count += 1) {
    const peer = await JsPeer.start(id, key);
    keep(peer);
    await peer.dial(node.address);
    peers.push(peer);
  }
  await peers[0].meets(peers[1]);
  return { node, id, key, one: peers[0], other: peers[1] };
};

for (const [kind, more] of [["with the swarm's key", []], ["in an open swarm", ["--open"]]]) {
  test(`js peers ${kind} send and hear all seven kinds of messages`, { timeout: 3 * LIMIT_MS }, () =>
    using(trio(...more), async ({ node, one, other }) => {
      for (const topic of TOPICS) {
        await one.publish(topic, sample(topic, one.id, `said-${topic}`));
        const { from, message } = await other.hears(topic, (said) => JSON.stringify(said).includes(`said-${topic}`));
        assert.equal(from, one.id, "the signature is the first peer's");
        assert.deepEqual(Object.keys(message), Object.keys(sample(topic, one.id, "x")), "nothing was added or lost");
      }
      const listed = await until("the node lists the js peer", async () => (await node.get("/peers")).find((peer) => peer.node_id === one.id));
      assert.equal(listed.state, "alive");
      await until("with its models", async () => (await node.get("/peers")).some((peer) => peer.available_models.includes("said-capabilities")));
    }));

  test(`a js peer ${kind} hears what the node says of itself`, { timeout: 3 * LIMIT_MS }, () =>
    using(trio(...more), async ({ node, one }) => {
      const ping = await one.hears("presence_ping", (said) => said.node_id === node.id);
      assert.equal(ping.from, node.id);
      assert.equal(ping.message.type, "presence_ping");
      assert.equal(ping.message.name, "rust");
      assert.ok(Math.abs(Date.parse(ping.message.timestamp) - Date.now()) < 60_000, ping.message.timestamp);
      const { message } = await one.hears("capabilities", (said) => said.node_id === node.id);
      for (const [field, type] of [["cpu", "number"], ["gpu", "number"], ["status", "string"], ["timestamp", "string"]]) {
        assert.equal(typeof message[field], type, `${field} of ${JSON.stringify(message)}`);
      }
      assert.ok(Array.isArray(message.installed) && message.models.some((model) => model.startsWith("fake")), JSON.stringify(message));
    }));

  test(`a js peer's request for help ${kind} is answered by a node that can help`, { timeout: 3 * LIMIT_MS }, () =>
    using(trio(...more), async ({ node, one }) => {
      const { message } = await one.hears("capabilities", (said) => said.node_id === node.id);
      const wanted = message.capabilities[0];
      assert.ok(wanted, `the node can do something: ${JSON.stringify(message)}`);
      await one.publish("task_help_request", { ...sample("task_help_request", one.id, "#7"), requested_capability: wanted });
      const answer = await one.hears("task_help_response", (said) => said.task_id === "#7");
      assert.equal(answer.message.from_node, node.id);
      assert.equal(answer.message.can_help, true);
      assert.ok(answer.message.capabilities.includes(wanted), JSON.stringify(answer.message));
      assertWhole("task_help_response", answer.message);
    }));

  test(`a js peer ${kind} hears what becomes of a node's task`, { timeout: 3 * LIMIT_MS }, () =>
    using(trio(...more), async ({ node, one }) => {
      const { task_id: task } = JSON.parse(await node.command("submit", "--json", "Say hello"));
      for (const topic of ["task_broadcast", "task_claim", "task_result"]) {
        const { from, message } = await one.hears(topic, (said) => said.task_id === task);
        assert.equal(from, node.id);
        assertWhole(topic, message);
      }
    }));
}

test("two nodes and a js peer are one swarm: messages cross from node to node", { timeout: 3 * LIMIT_MS }, () =>
  using(async (keep) => {
    const node = await Node.start("first");
    keep(node);
    const next = await Node.prepare("next");
    await next.command("join", (await node.command("invite")).trim());
    await next.up();
    keep(next);
    const { id, key } = await node.swarm();
    const peers = [];
    for (const at of [node, next]) {
      const peer = await JsPeer.start(id, key);
      keep(peer);
      await peer.dial(at.address);
      peers.push(peer);
    }
    return peers;
  }, async ([one, other]) => {
    await one.meets(other);
    await other.meets(one);
  }));

for (const [what, key] of [["no key", undefined], ["another swarm's key", `/key/swarm/psk/1.0.0/\n/base16/\n${randomBytes(32).toString("hex")}\n`]]) {
  test(`a js peer with ${what} is refused`, { timeout: 3 * LIMIT_MS }, () =>
    using(async (keep) => {
      const node = await Node.start("closed");
      keep(node);
      const stranger = await JsPeer.start((await node.swarm()).id, key);
      keep(stranger);
      return { node, stranger };
    }, async ({ node, stranger }) => {
      await assert.rejects(stranger.dial(node.address));
      assert.deepEqual(await node.get("/peers"), []);
      // The same node lets one with its key in.
      const { id, key: right } = await node.swarm();
      const member = await JsPeer.start(id, right);
      try {
        await member.dial(node.address);
      } finally {
        await member.stop();
      }
    }));
}

test("a js peer with a key is refused by an open node", { timeout: 3 * LIMIT_MS }, () =>
  using(async (keep) => {
    const node = await Node.start("open", "--open");
    keep(node);
    const stranger = await JsPeer.start("open", `/key/swarm/psk/1.0.0/\n/base16/\n${randomBytes(32).toString("hex")}\n`);
    keep(stranger);
    return { node, stranger };
  }, async ({ node, stranger }) => assert.rejects(stranger.dial(node.address))));

test("what a js peer says in another's name, twice or out of time is not passed on", { timeout: 3 * LIMIT_MS }, () =>
  using(trio(), async ({ one, other }) => {
    const said = sample("task_claim", one.id, "said once");
    await one.publish("task_claim", said);
    await one.publish("task_claim", said);
    await one.publish("task_claim", { ...sample("task_claim", one.id, "forged"), node_id: other.id });
    await one.publish("task_claim", sample("task_claim", one.id, "from the future", new Date(Date.now() + 3_600_000)));
    await one.publish("task_claim", sample("task_claim", one.id, "the end"));
    await other.hears("task_claim", (message) => message.task_id === "the end");
    const heard = other.heard.filter((one) => one.topic.endsWith("/task_claim")).map((one) => JSON.parse(one.text).task_id);
    assert.deepEqual(heard.filter((word) => !word.includes("begins")), ["said once", "the end"]);
  }));

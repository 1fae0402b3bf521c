// A peer made of js-libp2p: TCP, Noise, Yamux, identify, ping and gossipsub, under a swarm key or without one.
import { noise } from "@chainsafe/libp2p-noise";
import { yamux } from "@chainsafe/libp2p-yamux";
import { gossipsub } from "@libp2p/gossipsub";
import { identify } from "@libp2p/identify";
import { ping } from "@libp2p/ping";
import { preSharedKey } from "@libp2p/pnet";
import { tcp } from "@libp2p/tcp";
import { multiaddr } from "@multiformats/multiaddr";
import { createLibp2p } from "libp2p";

export const TOPICS = [
  "capabilities",
  "task_broadcast",
  "task_claim",
  "task_result",
  "presence_ping",
  "task_help_request",
  "task_help_response",
];

export const LIMIT_MS = 120_000;
const DIAL_LIMIT_MS = 15_000;

/** Waits until something holds, looking again and again. */
export async function until(what, holds, limitMs = LIMIT_MS) {
  const end = Date.now() + limitMs;
  for (;;) {
    const found = await holds();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what}: not within ${limitMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export class JsPeer {
  /** Starts a peer of a swarm; `key` is the text of a swarm key file, or undefined. */
  static async start(swarmId, key) {
    const peer = new JsPeer();
    peer.swarmId = swarmId;
    peer.heard = [];
    peer.node = await createLibp2p({
      addresses: { listen: ["/ip4/127.0.0.1/tcp/0"] },
      transports: [tcp()],
      connectionEncrypters: [noise()],
      streamMuxers: [yamux()],
      connectionGater: { denyDialMultiaddr: () => false },
      ...(key === undefined ? {} : { connectionProtector: preSharedKey({ psk: new TextEncoder().encode(key) }) }),
      services: { identify: identify(), ping: ping(), pubsub: gossipsub() },
    });
    peer.node.services.pubsub.addEventListener("message", ({ detail }) => {
      peer.heard.push({ topic: detail.topic, from: detail.from?.toString(), text: new TextDecoder().decode(detail.data) });
    });
    for (const topic of TOPICS) peer.node.services.pubsub.subscribe(peer.full(topic));
    return peer;
  }

  get id() {
    return this.node.peerId.toString();
  }

  full(topic) {
    return `bombus/${this.swarmId}/${topic}`;
  }

  /** Connects to an address, with all that belongs to it: the private network, Noise, Yamux. */
  async dial(address) {
    await this.node.dial(multiaddr(address), { signal: AbortSignal.timeout(DIAL_LIMIT_MS) });
  }

  /** Publishes as soon as the other side is in the topic. */
  async publish(topic, message) {
    const full = this.full(topic);
    await until(`somebody in ${full}`, () => this.node.services.pubsub.getSubscribers(full).length > 0);
    await this.node.services.pubsub.publish(full, new TextEncoder().encode(JSON.stringify(message)));
  }

  /** Publishes until another peer hears it: what is said before the node between them has both in its topics is not passed on. */
  async meets(listener) {
    for (let number = 0; number < 50; number += 1) {
      const word = `${this.id} begins, ${number}`;
      await this.publish("task_claim", sample("task_claim", this.id, word));
      const heard = await listener.hears("task_claim", (said) => said.task_id === word, 1000).catch(() => undefined);
      if (heard) return;
    }
    throw new Error("nothing is passed on");
  }

  /** Waits for a message of a topic that fits, and returns it with its sender. */
  async hears(topic, fits, limitMs = LIMIT_MS) {
    const full = this.full(topic);
    const parsed = () => this.heard.filter((one) => one.topic === full).map((one) => ({ ...one, message: JSON.parse(one.text) }));
    return until(`${topic} as expected`, () => parsed().find((one) => fits(one.message, one.from)), limitMs);
  }

  async stop() {
    await this.node.stop();
  }
}

/** Returns a message of a topic from a peer, as the system that the topics come from writes it; `word` is what it is known by. */
export function sample(topic, peerId, word, at = new Date()) {
  const timestamp = at.toISOString().replace(/\.\d+Z$/, "Z");
  return {
    capabilities: {
      type: "capabilities", node_id: peerId, cpu: 43.5, gpu: 2.3, models: ["llama3", word],
      installed: ["ollama", "gemini-cli"], status: "idle", timestamp,
    },
    task_broadcast: {
      type: "task", task_id: word, repo: "example-org/task-repo", issue_url: "https://example.org/task-repo/issues/42",
      model: "ollama", input: "Add unit tests to utils module", params: { branch_prefix: "task-42-" }, timestamp,
    },
    task_claim: { type: "task_claim", task_id: word, node_id: peerId, timestamp },
    task_result: {
      type: "task_result", task_id: word, node_id: peerId, result_type: "pull_request",
      result_url: "https://example.org/task-repo/pull/97", duration_ms: 15830, timestamp,
    },
    presence_ping: { type: "presence_ping", node_id: peerId, name: word, timestamp },
    task_help_request: {
      type: "task_help_request", task_id: word, from_node: peerId, reason: "Long-running task or missing capability",
      requested_capability: "nobody-can-do-this", timestamp,
    },
    task_help_response: {
      type: "task_help_response", task_id: word, from_node: peerId, can_help: true, capabilities: ["claude-cli"],
      eta_seconds: 30, timestamp,
    },
  }[topic];
}

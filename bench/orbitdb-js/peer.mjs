// A peer of OrbitDB that does what bench/orbitdb.py tells it, as crates/bombus-swarm/examples/orbitdb_peer.rs does.
//   node peer.mjs STORAGE
// Takes commands on stdin, one JSON object a line, {"id": 1, "do": "open", ...}; answers {"id": 1, "value": ...} or {"id": 1, "error": ...}
// on stdout, with events {"event": "update", ...} between them. The first line is the event "ready". Ends with its stdin.
import { createInterface } from "node:readline";

import { multiaddr } from "@multiformats/multiaddr";

import { createNode, doc, rssMib, until, wallMs } from "./lib.mjs";

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
process.on("unhandledRejection", (error) => say({ event: "error", error: String(error?.stack ?? error) }));

const node = await createNode(process.argv[2] ?? "level");
let db;

const commands = {
  dial: async ({ address }) => {
    await node.libp2p.dial(multiaddr(address));
  },
  open: async ({ name, watch }) => {
    db = await node.open(name);
    if (watch) db.events.on("update", (entry) => say({ event: "update", key: entry.payload.key, at_ms: wallMs() }));
    return { address: db.address };
  },
  peers: () => db.peers.size,
  /** Puts one after another. */
  put: async ({ from, count }) => {
    const begin_ms = wallMs();
    let head;
    for (let number = from; number < from + count; number++) head = await db.put(doc(number));
    return { begin_ms, end_ms: wallMs(), head };
  },
  /** Waits until an entry and all that it follows have joined. */
  wait: async ({ head, limit_ms }) => {
    await until(() => db.log.has(head), limit_ms, 1);
    return { at_ms: wallMs() };
  },
  rss: () => rssMib(),
};

const lines = createInterface({ input: process.stdin });
lines.on("line", async (line) => {
  const { id, do: name, ...argument } = JSON.parse(line);
  try {
    say({ id, value: (await commands[name](argument)) ?? null });
  } catch (error) {
    say({ id, error: String(error?.stack ?? error) });
  }
});
lines.on("close", async () => {
  await node.stop().catch(() => {});
  process.exit(0);
});

say({ event: "ready", addresses: node.libp2p.getMultiaddrs().map(String) });

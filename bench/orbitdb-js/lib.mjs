// One node of @orbitdb/core on loopback TCP, as its users compose one, and what the scripts beside this file share. Runs on the packages of
// tests/orbitdb-js, into whose folder bench/orbitdb.py copies it.
import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { noise } from "@chainsafe/libp2p-noise";
import { yamux } from "@chainsafe/libp2p-yamux";
import { bitswap } from "@helia/block-brokers";
import { identify } from "@libp2p/identify";
import { gossipsub } from "@libp2p/gossipsub";
import { tcp } from "@libp2p/tcp";
import { createOrbitDB, IPFSAccessController, MemoryStorage } from "@orbitdb/core";
import { MemoryBlockstore } from "blockstore-core";
import { LevelBlockstore } from "blockstore-level";
import { createHelia } from "helia";
import { createLibp2p } from "libp2p";

/** Milliseconds since 1970 with a fraction: one clock for all processes of a machine. */
export const wallMs = () => performance.timeOrigin + performance.now();
export const rssMib = () => process.memoryUsage.rss() / 1048576;
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export async function until(test, limitMs, everyMs) {
  const end = performance.now() + limitMs;
  while (!(await test())) {
    if (performance.now() > end) throw new Error(`nothing after ${limitMs} ms`);
    await sleep(everyMs);
  }
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

/** A document of the size of a small task; every tenth is pending. The Rust side writes the same. */
export const doc = (number) => ({
  _id: `task-${String(number).padStart(8, "0")}`,
  status: number % 10 === 0 ? "PENDING" : "COMPLETED",
  model: "mock-model",
  prompt: "Summarise the following paragraph in one sentence. ".repeat(4) + number,
  createdAt: 1790000000000 + number,
  requester: "12D3KooWBenchmarkRequester",
});

async function bytesOf(directory) {
  let bytes = 0;
  for (const entry of await readdir(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name);
    bytes += entry.isDirectory() ? await bytesOf(path) : (await stat(path)).size;
  }
  return bytes;
}

/** Starts a node with its blocks, heads and index in memory (`memory`) or on the disk (`level`). */
export async function createNode(storage) {
  const directory = await mkdtemp(join(tmpdir(), "bombus-bench-js-"));
  const libp2p = await createLibp2p({
    addresses: { listen: ["/ip4/127.0.0.1/tcp/0"] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionGater: { denyDialMultiaddr: () => false },
    services: { identify: identify(), pubsub: gossipsub({ allowPublishToZeroTopicPeers: true }) },
  });
  const onDisk = storage === "level";
  const blockstore = onDisk ? new LevelBlockstore(join(directory, "blocks")) : new MemoryBlockstore();
  if (onDisk) await blockstore.open();
  const ipfs = await createHelia({ libp2p, blockstore, blockBrokers: [bitswap()], routers: [] });
  const orbitdb = await createOrbitDB({ ipfs, directory: join(directory, "orbitdb") });

  /** Opens documents that everybody may write, by name or by address. */
  const open = async (name) => {
    const options = { type: "documents" };
    if (!onDisk) {
      options.headsStorage = await MemoryStorage();
      options.indexStorage = await MemoryStorage();
    }
    if (!name.startsWith("/orbitdb/")) options.AccessController = IPFSAccessController({ write: ["*"] });
    return orbitdb.open(name, options);
  };
  const stop = async () => {
    await orbitdb.stop();
    await ipfs.stop();
    await libp2p.stop();
    if (onDisk) await blockstore.close();
    await rm(directory, { recursive: true, force: true });
  };
  return { libp2p, open, stop, diskBytes: () => bytesOf(directory) };
}

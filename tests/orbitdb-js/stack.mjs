// A peer of OrbitDB as its users compose one: libp2p over TCP, Noise and Yamux, under a swarm key or without one; Helia with blocks on the
// disk; OrbitDB. Runs on the packages of OrbitDB 4 and on those of OrbitDB 3.
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { noise } from "@chainsafe/libp2p-noise";
import { yamux } from "@chainsafe/libp2p-yamux";
import { bitswap } from "@helia/block-brokers";
import { generateKeyPair, privateKeyFromProtobuf, privateKeyToProtobuf } from "@libp2p/crypto/keys";
import { identify } from "@libp2p/identify";
import { preSharedKey } from "@libp2p/pnet";
import { tcp } from "@libp2p/tcp";
import { createOrbitDB } from "@orbitdb/core";
import { LevelBlockstore } from "blockstore-level";
import { createHelia } from "helia";
import { createLibp2p } from "libp2p";

const here = dirname(fileURLToPath(import.meta.url));
// OrbitDB 4 goes with @libp2p/gossipsub, OrbitDB 3 with its predecessor.
const { gossipsub } = await import("@libp2p/gossipsub").catch(() => import("@chainsafe/libp2p-gossipsub"));

/** Returns the peer's key, which is kept in its directory, as its databases are. */
async function keyOf(directory) {
  const file = join(directory, "peer.key");
  try {
    return privateKeyFromProtobuf(await readFile(file));
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
  }
  const key = await generateKeyPair("Ed25519");
  await writeFile(file, privateKeyToProtobuf(key));
  return key;
}

/** Starts a peer; `swarmKey` is the text of a swarm key file, or undefined. */
export async function start(directory, swarmKey) {
  await mkdir(directory, { recursive: true });
  const libp2p = await createLibp2p({
    privateKey: await keyOf(directory),
    addresses: { listen: ["/ip4/127.0.0.1/tcp/0"] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionGater: { denyDialMultiaddr: () => false },
    ...(swarmKey === undefined ? {} : { connectionProtector: preSharedKey({ psk: new TextEncoder().encode(swarmKey) }) }),
    services: { identify: identify(), pubsub: gossipsub({ allowPublishToZeroTopicPeers: true }) },
  });
  const blockstore = new LevelBlockstore(join(directory, "blocks"));
  await blockstore.open();
  // Blocks come from the peers it is connected with, and from nowhere else.
  const ipfs = await createHelia({ libp2p, blockstore, blockBrokers: [bitswap()], routers: [] });
  const orbitdb = await createOrbitDB({ ipfs, id: "peer", directory: join(directory, "orbitdb") });
  const version = JSON.parse(await readFile(join(here, "node_modules/@orbitdb/core/package.json"), "utf8")).version;
  const stop = async () => {
    await orbitdb.stop();
    await ipfs.stop();
    await libp2p.stop();
    await blockstore.close();
  };
  return { libp2p, orbitdb, version, stop };
}

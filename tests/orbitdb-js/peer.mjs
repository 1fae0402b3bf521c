// A peer of OrbitDB that does what it is told, for tests.
//   node peer.mjs DIRECTORY [SWARM_KEY_FILE]
// Takes commands on stdin, one JSON object a line: {"id": 1, "do": "open", ...}. Answers on stdout: {"id": 1, "value": ...} or {"id": 1,
// "error": "..."}; between answers stand events: {"event": "update", ...}. The first line is the event "ready". Ends with its stdin.
import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";

import { generateKeyPair } from "@libp2p/crypto/keys";
import { multiaddr } from "@multiformats/multiaddr";
import { Documents, Entry, IPFSAccessController, OrbitDBAccessController } from "@orbitdb/core";

import { parse, stringify } from "./json.mjs";
import { start } from "./stack.mjs";

const DIAL_LIMIT_MS = 30_000;

const [directory, swarmKeyFile] = process.argv.slice(2);
const say = (line) => process.stdout.write(`${stringify(line)}\n`);

process.on("unhandledRejection", (error) => say({ event: "error", error: String(error?.stack ?? error) }));

const { libp2p, orbitdb, version, stop } = await start(directory, swarmKeyFile && (await readFile(swarmKeyFile, "utf8")));
const databases = new Map();

function database(address) {
  const found = databases.get(address);
  if (!found) throw new Error(`${address} is not open`);
  return found;
}

/** Tells what happens in a database, and in the one that guards it. */
function follow(address, events) {
  events.on("update", (entry) => say({ event: "update", address, hash: entry.hash, ...entry.payload }));
  events.on("join", (peer) => say({ event: "join", address, peer: String(peer) }));
  events.on("leave", (peer) => say({ event: "leave", address, peer: String(peer) }));
  events.on("error", (error) => say({ event: "error", address, error: String(error?.stack ?? error) }));
}

/** Writes one operation: `value` to documents and events, `value` under `key` to key-value databases. */
function write(db, { key, value }) {
  switch (db.type) {
    case "documents": return db.put(value);
    case "events": return db.add(value);
    default: return db.put(key, value);
  }
}

/** Encrypts bytes by AES-256-GCM with a key of 32 bytes: a nonce of 12 bytes in front, a tag of 16 behind. */
function cipher(key) {
  const encrypt = async (plain) => {
    const nonce = randomBytes(12);
    const sealing = createCipheriv("aes-256-gcm", key, nonce);
    return Uint8Array.from(Buffer.concat([nonce, sealing.update(plain), sealing.final(), sealing.getAuthTag()]));
  };
  const decrypt = async (sealed) => {
    const opening = createDecipheriv("aes-256-gcm", key, sealed.subarray(0, 12));
    opening.setAuthTag(sealed.subarray(-16));
    return Uint8Array.from(Buffer.concat([opening.update(sealed.subarray(12, -16)), opening.final()]));
  };
  return { encrypt, decrypt };
}

/** What encrypts payloads and entries, each by a key of its own that comes from a secret and a salt. */
function encryptionBy(secret, salt) {
  const of = (purpose) => cipher(Buffer.from(hkdfSync("sha256", secret, salt, purpose, 32)));
  return { data: of("data"), replication: of("replication") };
}

/** By a key that all share, 64 hex digits. */
const encryptionByKey = (secret) => encryptionBy(Buffer.from(secret, "hex"), "orbitdb swarm key");

/** By a pair of keys in base64. */
function createEncryptionModule({ publicKey, privateKey }) {
  return encryptionBy(Buffer.from(privateKey, "base64"), Buffer.from(publicKey, "base64"));
}

const commands = {
  dial: async ({ address }) => {
    await libp2p.dial(multiaddr(address), { signal: AbortSignal.timeout(DIAL_LIMIT_MS) });
  },

  /** Opens by name, with the rest of the options, or by address. */
  open: async ({ name, type, write: writers, access = "ipfs", indexBy, meta, secret, keyPair }) => {
    const options = {};
    if (meta) options.meta = meta;
    if (secret) options.encryption = encryptionByKey(secret);
    if (keyPair) options.encryption = createEncryptionModule(keyPair);
    if (type) options.type = type;
    if (indexBy) options.Database = Documents({ indexBy });
    if (!name.startsWith("/orbitdb/")) {
      const Controller = { ipfs: IPFSAccessController, orbitdb: OrbitDBAccessController }[access];
      options.AccessController = Controller(writers ? { write: writers } : {});
    }
    const db = await orbitdb.open(name, options);
    if (databases.get(db.address) !== db) {
      databases.set(db.address, db);
      follow(db.address, db.events);
    }
    return { address: db.address, type: db.type, access: db.access.address, meta: db.meta ?? null };
  },

  close: async ({ address }) => {
    await database(address).close();
    databases.delete(address);
  },

  write: ({ address, ...operation }) => write(database(address), operation),

  /** Writes one after another, and returns the hash of the last one. */
  writeAll: async ({ address, operations }) => {
    let hash;
    for (const operation of operations) hash = await write(database(address), operation);
    return hash;
  },

  /**
   * Puts an entry into the log that a new key signs in the name of whose entry is the head: it names that identity. The library checks the
   * signature by the key, and what the identity may do, and nothing between the two. Returns its hash.
   */
  forge: async ({ address, key, value }) => {
    const { log } = database(address);
    const pair = await generateKeyPair("secp256k1");
    const publicKey = Buffer.from(pair.publicKey.raw).toString("hex");
    const sign = async (_, bytes) => Buffer.from(await pair.sign(bytes)).toString("hex");
    const [head] = await log.heads();
    const identity = { publicKey, hash: head.identity, sign };
    const clock = { id: publicKey, time: head.clock.time + 1 };
    const entry = await Entry.create(identity, address, { op: "PUT", key, value }, undefined, clock, [head.hash], []);
    const { hash, bytes } = await Entry.encode(entry);
    await log.storage.put(hash, bytes);
    if (!(await log.joinEntry(await Entry.decode(bytes)))) throw new Error("it did not join");
    return hash;
  },

  del: ({ address, key }) => database(address).del(key),
  get: async ({ address, key }) => (await database(address).get(key)) ?? null,
  all: ({ address }) => database(address).all(),
  query: ({ address, field, value }) => database(address).query((document) => document[field] === value),

  /** The whole log, oldest first. */
  log: async ({ address }) => (await database(address).log.values()).map((entry) => entry.hash),
  values: async ({ address }) => (await database(address).log.values()).map((entry) => entry.payload.value),
  heads: async ({ address }) => (await database(address).log.heads()).map((entry) => entry.hash),
  has: ({ address, hash }) => database(address).log.has(hash),
  peers: ({ address }) => [...database(address).peers].map(String),

  grant: ({ address, capability, identity }) => database(address).access.grant(capability, identity),
  revoke: ({ address, capability, identity }) => database(address).access.revoke(capability, identity),
  capabilities: async ({ address }) => {
    const found = await database(address).access.capabilities();
    return Object.fromEntries(Object.entries(found).map(([name, ids]) => [name, [...ids].sort()]));
  },
};

async function answer(line) {
  const { id, do: name, ...argument } = parse(line);
  try {
    const value = await commands[name](argument);
    say({ id, value: value ?? null });
  } catch (error) {
    say({ id, error: String(error?.stack ?? error) });
  }
}

const lines = createInterface({ input: process.stdin });
lines.on("line", answer);
lines.on("close", async () => {
  // What does not stop in time is ended by the test.
  await stop().catch((error) => say({ event: "error", error: String(error?.stack ?? error) }));
  process.exit(0);
});

say({ event: "ready", version, peer: libp2p.peerId.toString(), identity: orbitdb.identity.id, addresses: libp2p.getMultiaddrs().map(String) });

// A worker of swarm.mjs, which forks it and talks to it over the channel between the two processes. Its model answers at once.
//   node worker.mjs NAME PICK SETTLE_MS
import { multiaddr } from "@multiformats/multiaddr";

import { createNode, sleep } from "./lib.mjs";

const [name, pick, settleMs] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const node = await createNode("memory");
const executed = [];
let tasks;
let results;
let wake = () => {};

/** Takes one task after another; whoever wrote the last claim may go on. */
async function work() {
  for (;;) {
    const pending = await tasks.query((task) => task.status === "PENDING");
    if (pending.length === 0) {
      await Promise.race([new Promise((resolve) => { wake = resolve; }), sleep(100)]);
      continue;
    }
    pending.sort((left, right) => (left._id < right._id ? -1 : 1));
    const chosen = pending[pick === "random" ? Math.floor(Math.random() * pending.length) : 0];
    const before = (await tasks.get(chosen._id))?.value;
    if (before?.status !== "PENDING") continue;
    await tasks.put({ ...before, status: "CLAIMED", workerPeerId: name, claimedAt: Date.now() });
    if (settleMs > 0) await sleep(settleMs);
    const claimed = (await tasks.get(chosen._id))?.value;
    if (claimed.workerPeerId !== name) continue;
    executed.push(claimed._id);
    await results.put({ _id: `${claimed._id}:${name}`, taskId: claimed._id, workerPeerId: name, response: `answer to ${claimed._id}`, completedAt: Date.now() });
    await tasks.put({ ...claimed, status: "COMPLETED" });
  }
}

const commands = {
  addresses: () => node.libp2p.getMultiaddrs().map(String),
  dial: async ({ address }) => {
    await node.libp2p.dial(multiaddr(address));
  },
  open: async (addresses) => {
    tasks = await node.open(addresses.tasks);
    results = await node.open(addresses.results);
    tasks.events.on("update", () => wake());
  },
  start: () => {
    work().catch((error) => {
      console.error(error);
      process.exit(1);
    });
  },
  executed: () => executed,
};

process.on("disconnect", () => process.exit(0));
process.on("message", async ({ id, do: command, argument }) => {
  try {
    process.send({ id, value: (await commands[command](argument)) ?? null });
  } catch (error) {
    process.send({ id, error: String(error?.stack ?? error) });
  }
});

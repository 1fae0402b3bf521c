// The job of bench/tasks.py as peers of @orbitdb/core do it without leases: a requester writes tasks to a replicated database, workers take
// what is PENDING, write that they CLAIMED it, answer at once, and write the result and that it is COMPLETED.
//   node swarm.mjs TASKS WORKERS PICK SETTLE_MS
// PICK is how a worker chooses among what is PENDING: oldest or random. SETTLE_MS is how long it waits before it looks whether its claim held.
// Prints one JSON object: the milliseconds from the first task to the last result at the requester, and how often tasks were executed.
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";

import { multiaddr } from "@multiformats/multiaddr";

import { createNode, sleep, until } from "./lib.mjs";

const [tasksCount, workersCount, pick, settleMs] = [Number(process.argv[2]), Number(process.argv[3]), process.argv[4], Number(process.argv[5])];
const LIMIT_MS = 120_000;
/** A worker is asked by its number and answers with the same. */
function worker(name) {
  const child = fork(fileURLToPath(new URL("./worker.mjs", import.meta.url)), [name, pick, String(settleMs)], { stdio: ["ignore", "inherit", "inherit", "ipc"] });
  let last = 0;
  const waiting = new Map();
  child.on("message", ({ id, value, error }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(value);
  });
  child.on("exit", (code) => waiting.forEach(({ reject }) => reject(new Error(`a worker ended with ${code}`))));
  return (command, argument = {}) => new Promise((resolve, reject) => {
    last += 1;
    waiting.set(last, { resolve, reject });
    child.send({ id: last, do: command, argument });
  });
}

const node = await createNode("memory");
const tasks = await node.open("swarm-tasks");
const results = await node.open("swarm-results");
const workers = [];
for (let number = 0; number < workersCount; number++) {
  const call = worker(`worker-${number}`);
  const [address] = await call("addresses");
  await node.libp2p.dial(multiaddr(address));
  for (const other of workers) await other("dial", { address });
  await call("open", { tasks: tasks.address, results: results.address });
  workers.push(call);
}
await until(() => tasks.peers.size >= workersCount && results.peers.size >= workersCount, LIMIT_MS, 10);
// The topics' meshes form at gossipsub's heartbeats, one a second.
await sleep(2500);
for (const call of workers) await call("start");

const seen = new Set();
let lastAt = 0;
results.events.on("update", async () => {
  for await (const { value } of results.iterator()) seen.add(value.taskId);
  if (seen.size >= tasksCount && lastAt === 0) lastAt = performance.now();
});
const begin = performance.now();
for (let number = 0; number < tasksCount; number++) {
  const _id = `task-${String(number).padStart(4, "0")}`;
  await tasks.put({ _id, status: "PENDING", model: "mock", prompt: `question ${number}`, createdAt: Date.now() });
}
const submitted = performance.now();
const isWhole = await until(() => lastAt > 0, LIMIT_MS, 5).then(() => true, () => false);
// Late executions count as well.
await sleep(1500);
const executed = (await Promise.all(workers.map((call) => call("executed")))).flat();
const all_ms = isWhole ? lastAt - begin : null;
console.log(JSON.stringify({
  submit_ms: submitted - begin, all_ms, results: seen.size, executions: executed.length, distinct: new Set(executed).size,
}));
process.exit(0);

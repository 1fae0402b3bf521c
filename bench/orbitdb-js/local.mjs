// What one node costs by itself. Prints one JSON object.
//   node local.mjs put STORAGE COUNT         documents put, one after another
//   node local.mjs read STORAGE COUNT        get and query over so many, opening them again, memory and bytes on the disk
import { createNode, doc, median, rssMib } from "./lib.mjs";

const [what, storage, text] = process.argv.slice(2);
const count = Number(text);
const REPEATS = 5;

const node = await createNode(storage);
let db = await node.open("bench");
const begin = performance.now();
for (let number = 0; number < count; number++) await db.put(doc(number));
const seconds = (performance.now() - begin) / 1000;
const result = { per_second: count / seconds };

async function timed(work, repeats = REPEATS) {
  const times = [];
  for (let repeat = 0; repeat < repeats; repeat++) {
    const start = performance.now();
    await work(repeat);
    times.push(performance.now() - start);
  }
  return median(times);
}

if (what === "read") {
  result.query_ms = await timed(async () => {
    const found = await db.query((document) => document.status === "PENDING");
    if (found.length !== Math.ceil(count / 10)) throw new Error(`found ${found.length}`);
  });
  // Keys from everywhere: it walks the log to each of them.
  result.get_us = (await timed((repeat) => db.get(doc((repeat * 7919 + 13) % count)._id), 15)) * 1000;
  result.rss_mib = rssMib();
  result.disk_bytes_per_entry = (await node.diskBytes()) / count;
  if (storage === "level") {
    const address = db.address;
    await db.close();
    const start = performance.now();
    db = await node.open(address);
    await db.get(doc(0)._id);
    result.open_ms = performance.now() - start;
  }
}
console.log(JSON.stringify(result));
await node.stop();
process.exit(0);

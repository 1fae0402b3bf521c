// Real `bombus` nodes for the tests, each with a data directory of its own.
import { execFile, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { until } from "./js-peer.mjs";

const BIN = process.env.BOMBUS_BIN;
if (!BIN || !existsSync(BIN)) throw new Error("BOMBUS_BIN has to name the program under test");

const running = new Set();
// However the tests end, no node outlives them.
process.on("exit", () => running.forEach((child) => child.kill("SIGKILL")));

const CONFIG = `default_model = "fake"
[[backends]]
kind = "fake"
`;

export class Node {
  /** Prepares a node; more arguments go to `bombus up`. */
  static async prepare(name, ...more) {
    const node = new Node();
    node.name = name;
    node.more = more;
    node.dir = await mkdtemp(join(tmpdir(), "bombus-mesh-"));
    await writeFile(join(node.dir, "test.toml"), CONFIG);
    const own = Object.entries(process.env).filter(([key]) => !/^(BOMBUS_|OLLAMA_)/.test(key));
    node.env = { ...Object.fromEntries(own), HOME: node.dir, XDG_CONFIG_HOME: node.dir, BOMBUS_DATA_DIR: node.dir, BOMBUS_DISCOVER__OLLAMA: "false", NO_COLOR: "1" };
    return node;
  }

  static async start(name, ...more) {
    const node = await Node.prepare(name, ...more);
    await node.up();
    return node;
  }

  async up() {
    const args = ["up", `--name=${this.name}`, "--config", join(this.dir, "test.toml"), "--api=127.0.0.1:0", "--p2p=127.0.0.1:0", "--no-mdns", ...this.more];
    this.log = "";
    this.child = spawn(BIN, args, { env: this.env, stdio: ["ignore", "ignore", "pipe"] });
    running.add(this.child);
    this.ended = new Promise((resolve) => this.child.once("exit", (code, signal) => resolve(code ?? signal)));
    this.child.stderr.on("data", (data) => (this.log += data));
    let over = false;
    this.ended.then(() => (over = true));
    await until(`${this.name} serves`, () => {
      if (over) throw new Error(`${this.name} ended: ${this.log}`);
      return this.log.includes(" serves on ");
    });
    this.record = JSON.parse(await readFile(join(this.dir, "node.json"), "utf8"));
  }

  /** Runs a command on the node's data directory. */
  async command(...args) {
    const { stdout } = await promisify(execFile)(BIN, args, { env: this.env });
    return stdout;
  }

  get id() {
    return this.record.node_id;
  }

  get address() {
    return this.record.p2p[0];
  }

  async get(path) {
    const response = await fetch(this.record.api + path);
    if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
    return response.json();
  }

  /** Returns the swarm's id and the text of its key file; no key in an open swarm. */
  async swarm() {
    const { swarm_id: id, open } = await this.get("/swarm");
    return { id, key: open ? undefined : await readFile(join(this.dir, "swarms", id, "swarm.key"), "utf8") };
  }

  async stop() {
    this.child.kill("SIGTERM");
    const code = await this.ended;
    running.delete(this.child);
    await rm(this.dir, { recursive: true, force: true });
    if (code !== 0) throw new Error(`${this.name} ended with ${code}: ${this.log}`);
  }
}

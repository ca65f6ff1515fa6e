// OpenAI's client for Node, of any version: `node of_openai.mjs BASE_URL FOLDER [--breaks] [--wss BASE_URL]`.
// Run within the folder that has node_modules. Audio goes into FOLDER; a JSON line for each case says where, or what
// was raised.

import { writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.cwd(), "package.json"));
const OpenAI = require("openai").OpenAI;

const TEXT = "Good morning. This is a sentence for a client to hear.";
const BREAKS = "This answer breaks off.";
const FORMATS = ["mp3", "opus", "aac", "flac", "wav", "pcm"];
const [url, folder, ...options] = process.argv.slice(2);
const wss = options.includes("--wss") ? options[options.indexOf("--wss") + 1] : null;

class Absent extends Error {}

const client = new OpenAI({ baseURL: url, apiKey: "unused", maxRetries: 0, timeout: 60000 });
const asked = { model: "gpt-4o-mini-tts", voice: "alloy", input: TEXT };
const request = (format, changes) =>
  client.audio.speech.create({ ...asked, response_format: format, ...changes });

async function create(format, changes) {
  const answer = await request(format, changes);
  const data = Buffer.from(await answer.arrayBuffer());
  return [data, { request_id: answer.headers.get("x-request-id") }];
}

async function streaming(format, changes) {
  const start = performance.now();
  const answer = await request(format, changes);
  const pieces = [];
  let first = null;
  for await (const piece of answer.body) {
    first ??= (performance.now() - start) / 1000;
    pieces.push(Buffer.from(piece));
  }
  return [Buffer.concat(pieces), { first_audio_s: first, request_id: answer.headers.get("x-request-id") }];
}

async function sse(format, changes) {
  const answer = await request(format, { stream_format: "sse", ...changes });
  const pieces = [];
  let done = false;
  for (const line of (await answer.text()).split("\n")) {
    if (!line.startsWith("data: ")) continue;
    const event = JSON.parse(line.slice("data: ".length));
    if (event.type === "speech.audio.delta") pieces.push(Buffer.from(event.audio, "base64"));
    done ||= event.type === "speech.audio.done";
  }
  if (!done) throw new Error("the events have no end");
  return [Buffer.concat(pieces), {}];
}

async function realtime() {
  let Socket;
  try {
    Socket = require("openai/realtime/ws").OpenAIRealtimeWS;
  } catch {
    throw new Absent("openai/realtime/ws");
  }
  if (wss === null) throw new Absent("an https address");
  const secure = new OpenAI({ baseURL: wss, apiKey: "unused" });
  const connection = new Socket({ model: "gpt-realtime-2.1-mini" }, secure);
  const pieces = [];
  const item = { type: "message", role: "user", content: [{ type: "input_text", text: TEXT }] };
  const output = { voice: "alloy", format: { type: "audio/pcm", rate: 24000 } };
  try {
    await new Promise((resolve, reject) => {
      setTimeout(() => reject(new Error("no response in time")), 60000).unref();
      connection.on("error", reject);
      connection.on("session.created", () => {
        connection.send({ type: "session.update", session: { type: "realtime", audio: { output } } });
        connection.send({ type: "conversation.item.create", item });
        connection.send({ type: "response.create" });
      });
      connection.on("response.output_audio.delta", (event) => pieces.push(Buffer.from(event.delta, "base64")));
      connection.on("response.done", (event) =>
        event.response.status === "completed" ? resolve() : reject(new Error(event.response.status)),
      );
    });
  } finally {
    connection.close();
  }
  return [Buffer.concat(pieces), {}];
}

const say = (line) => console.log(JSON.stringify(line));

async function tell(format, way, run) {
  const line = { case: `${format} ${way}`, format, way };
  try {
    const [data, facts] = await run();
    line.file = join(folder, `${way}.${format}`);
    writeFileSync(line.file, data);
    Object.assign(line, facts);
  } catch (error) {
    if (error instanceof Absent) line.absent = error.message;
    else line.error = `${error.constructor.name}: ${error.message}`;
  }
  say(line);
}

async function refused(name, run) {
  const line = { case: name };
  try {
    await run();
    line.error = "took it for a success";
  } catch (error) {
    Object.assign(line, { raised: error.constructor.name, message: error.message });
  }
  say(line);
}

for (const format of FORMATS) {
  for (const way of [create, streaming, sse]) await tell(format, way.name, () => way(format));
}
await tell("pcm", "realtime", realtime);
await refused("unknown voice", () => create("mp3", { voice: "nobody" }));
await refused("unknown model", () => create("mp3", { model: "no-such-model" }));
await refused("empty text", () => create("mp3", { input: " " }));
if (options.includes("--breaks")) {
  for (const way of [create, streaming, sse]) {
    await refused(`breaks off, ${way.name}`, () => way("mp3", { input: BREAKS }));
  }
}

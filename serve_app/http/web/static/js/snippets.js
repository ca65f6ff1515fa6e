// The request of the form as programs that can be run as they stand.

/** One POSIX shell word. */
export const shellWord = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** A Python literal of a JSON value; the strings of JSON are strings of Python. */
const python = (value) => (typeof value === "string" ? JSON.stringify(value) : String(value));

const OPENAI_FIELDS = ["model", "voice", "input", "instructions", "response_format", "speed"];

function split(request) {
  const entries = Object.entries(request);
  return [entries.filter(([name]) => OPENAI_FIELDS.includes(name)), entries.filter(([name]) => !OPENAI_FIELDS.includes(name))];
}

const fileName = (request) => `speech.${request.response_format}`;

function curl(request, server, withKey) {
  const lines = [`curl --fail-with-body ${shellWord(new URL("v1/audio/speech", server).href)}`, `-H 'Content-Type: application/json'`];
  if (withKey) lines.push(`-H "Authorization: Bearer $OPENAI_API_KEY"`);
  lines.push(`-d ${shellWord(JSON.stringify(request, null, 2))}`, `--output ${fileName(request)}`);
  return lines.join(" \\\n  ");
}

function pythonProgram(request, server, withKey) {
  const [known, extra] = split(request);
  const names = known.map(([name, value]) => `    ${name}=${python(value)},`);
  // OpenAI's client insists on a voice; a model that makes one up ignores it.
  if (!("voice" in request)) names.unshift(`    voice="alloy",`);
  if (extra.length) names.push(`    extra_body={${extra.map(([name, value]) => `${JSON.stringify(name)}: ${python(value)}`).join(", ")}},`);
  const key = withKey ? "" : `, api_key="unused"`;
  return [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(new URL("v1", server).href)}${key})`,
    "with client.audio.speech.with_streaming_response.create(",
    ...names,
    ") as response:",
    `    response.stream_to_file(${JSON.stringify(fileName(request))})`,
  ].join("\n");
}

function node(request, server, withKey) {
  const fields = Object.entries(request).map(([name, value]) => `  ${name}: ${JSON.stringify(value)},`);
  if (!("voice" in request)) fields.unshift(`  voice: "alloy",`);
  const key = withKey ? "" : `, apiKey: "unused"`;
  return [
    `import { createWriteStream } from "node:fs";`,
    `import { Readable } from "node:stream";`,
    `import { pipeline } from "node:stream/promises";`,
    `import OpenAI from "openai";`,
    "",
    `const client = new OpenAI({ baseURL: ${JSON.stringify(new URL("v1", server).href)}${key} });`,
    "const response = await client.audio.speech.create({",
    ...fields,
    "});",
    `await pipeline(Readable.fromWeb(response.body), createWriteStream(${JSON.stringify(fileName(request))}));`,
  ].join("\n");
}

const WRITERS = { curl, python: pythonProgram, node };

/** `withKey`: whether the server wants a key, which the program takes from OPENAI_API_KEY. */
export function snippet(language, request, server, withKey) {
  return WRITERS[language](request, server, withKey);
}

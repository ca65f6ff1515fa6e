import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import test from "node:test";

const { shellWord, snippet } = await import(new URL("snippets.js", process.env.MODULES));

const SERVER = new URL("http://127.0.0.1:8000/");
const NASTY = `it's "quoted", $HOME \`id\` \\n\nzwei Zeilen ü 中文`;
const REQUEST = { model: "tts-1", input: NASTY, voice: "serena", language: "german", response_format: "mp3", speed: 1.25, seed: 7 };

test("a shell gets any text as it is", () => {
  assert.equal(execFileSync("sh", ["-c", `printf %s ${shellWord(NASTY)}`]).toString(), NASTY);
});

test("curl sends the request", () => {
  // A stand-in of curl prints what it is given as the body.
  const program = snippet("curl", REQUEST, SERVER, false);
  const shell = `curl() { while [ "$1" != -d ]; do shift; done; printf %s "$2"; }\n${program}`;
  assert.deepEqual(JSON.parse(execFileSync("sh", ["-c", shell]).toString()), REQUEST);
});

test("a key is named and never shown", () => {
  for (const language of ["curl", "python", "node"]) {
    assert.ok(!snippet(language, REQUEST, SERVER, true).includes("unused"));
  }
  assert.match(snippet("curl", REQUEST, SERVER, true), /Bearer \$OPENAI_API_KEY/);
});

test("a model without voices still gets the one that OpenAI's clients insist on", () => {
  const { voice, ...without } = REQUEST;
  assert.match(snippet("python", without, SERVER, false), /voice="alloy"/);
  assert.match(snippet("node", without, SERVER, false), /voice: "alloy"/);
});
